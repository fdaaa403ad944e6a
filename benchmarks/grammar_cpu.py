"""What grammars cost on the CPU: compiling, and the masks of a step. Needs llguidance; no model, no GPU.

    python benchmarks/grammar_cpu.py [--tokenizer FILE] [--json FILE]

Where FILE is not there yet, or none is given, a tokenizer of 128,256 tokens is trained on the Python installation's own
sources, which takes minutes. A mask is that of one row for one token, the answer being random within its grammar. All
times are the CPU's, of all threads together, so that a busy machine counts less.
"""

import argparse
import json
import random
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / name) for name in ("kernels", "server", "tests/support")]

import numpy as np  # noqa: E402
from llguidance import LLExecutor, LLMatcher, LLTokenizer  # noqa: E402

from octavo_server.frontend.structured import choice_grammar, grammar_source  # noqa: E402
from octavo_server.frontend.structured_fields import StructuredOutputs  # noqa: E402
from octavo_server.frontend.text.grammar_worker import serialize  # noqa: E402
from octavo_server.grammar_compiler import compile_grammar  # noqa: E402

VOCAB: Final = 128_256
TEXT: Final = {"type": "string", "maxLength": 40}
ROWS: Final = (1, 8, 64)
TOKENS: Final = 60  # of an answer


def invoice() -> dict[str, Any]:
    """A schema as programs have them: nested, with references, enumerations, bounds and patterns."""
    line = {
        "type": "object",
        "properties": {"sku": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"}, "count": {"type": "integer"}},
        "required": ["sku", "count"],
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {
            **dict.fromkeys(("customer", "street", "city", "note"), TEXT),
            "currency": {"enum": ["EUR", "USD", "JPY"]},
            "due": {"type": "string", "format": "date"},
            "paid": {"type": "boolean"},
            "total": {"type": "number", "minimum": 0, "maximum": 1e6},
            "lines": {"type": "array", "items": {"$ref": "#/$defs/line"}, "minItems": 1, "maxItems": 20},
        },
        "required": ["customer", "currency", "lines"],
        "additionalProperties": False,
        "$defs": {"line": line},
    }


GRAMMARS: Final[dict[str, dict[str, Any]]] = {
    "json_object": {"json_object": True},
    "json, 3 fields": {
        "json": {
            "type": "object",
            "properties": {"name": TEXT, "age": {"type": "integer"}, "ok": {"type": "boolean"}},
            "required": ["name", "age", "ok"],
            "additionalProperties": False,
        }
    },
    "json, an invoice": {"json": invoice()},
    "json, 100 fields": {"json": {"type": "object", "properties": {f"field_{index}": TEXT for index in range(100)}}},
    "choice of 3": {"choice": ["positive", "negative", "neutral"]},
    "choice of 1000": {"choice": [f"label {index * 7919 % 10_007}" for index in range(1000)]},
    "regex, a date": {"regex": r"\d{4}-\d{2}-\d{2}"},
    "regex, words": {"regex": r"(\w+ ){10,30}\w+"},
    "lark, arithmetic": {"grammar": 'start: e\ne: e "+" e | e "*" e | "(" e ")" | /[0-9]{1,9}/\n'},
    "lark, ambiguous": {"grammar": 'start: a\na: "x" | a a | a a a | ""\n'},
}


def train(path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    def texts() -> Iterator[str]:
        for source in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
            yield source.read_text(encoding="utf-8", errors="ignore")

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.save(str(path))


def source_of(outputs: dict[str, Any]) -> dict[str, Any]:
    if "choice" in outputs:
        return {"kind": "lark", "text": choice_grammar(outputs["choice"]), "reasoning": None}
    source = grammar_source(None, StructuredOutputs.model_validate(outputs))
    if source is None:
        raise ValueError(outputs)
    return {"kind": source.kind, "text": source.text, "reasoning": None}


def walk(compiled: LLMatcher, ends: set[int], seed: int) -> tuple[list[float], list[LLMatcher]]:
    """Seconds of each mask, and matchers in the middle of answers."""
    draw, times, states = random.Random(seed), list[float](), list[LLMatcher]()
    matcher = compiled.deep_copy()
    for _ in range(TOKENS):
        begin = time.thread_time()
        mask = matcher.compute_bitmask()
        times.append(time.thread_time() - begin)
        allowed = np.flatnonzero(np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little"))
        going_on = [int(token) for token in allowed if int(token) not in ends]
        if not going_on or not matcher.consume_token(draw.choice(going_on)):
            break
        states.append(matcher.deep_copy())
    return times, states


def steps(states: list[LLMatcher], width: int) -> dict[str, float]:
    """CPU milliseconds of all masks of a step of so many rows, by as many threads as there are cores."""
    executor, found = LLExecutor(), dict[str, float]()
    for rows in ROWS:
        times = []
        for repeat in range(9):
            bits = np.full((rows, width), -1, dtype=np.int32)
            asked = [(states[(repeat * rows + row) % len(states)].deep_copy(), row) for row in range(rows)]
            begin = time.process_time()
            executor.unsafe_compute_mask_ptr(asked, bits.ctypes.data, bits[0].nbytes, rows)
            times.append((time.process_time() - begin) * 1000)
        found[f"{rows} rows"] = round(statistics.median(times), 3)
    return found


def measure(tokenizer: LLTokenizer, name: str) -> dict[str, Any]:
    compiling, source = [], source_of(GRAMMARS[name])
    for _ in range(5):
        begin = time.process_time()
        compiled = compile_grammar(tokenizer, serialize(source, tokenizer))
        compiling.append((time.process_time() - begin) * 1000)
    times, states = list[float](), list[LLMatcher]()
    for seed in range(5):
        found = walk(compiled, set(tokenizer.eos_tokens), seed)
        times += found[0]
        states += found[1]
    ordered = sorted(times)
    return {
        "compile ms": round(statistics.median(compiling), 2),
        "mask us": round(statistics.median(times) * 1e6, 1),
        "mean us": round(statistics.mean(times) * 1e6, 1),
        "p99 us": round(ordered[int(0.99 * len(ordered))] * 1e6),
        "step ms": steps(states, -(-tokenizer.vocab_size // 32)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        path = options.tokenizer or Path(directory) / "tokenizer.json"
        if not path.exists():
            train(path)
        begin = time.perf_counter()
        tokenizer = LLTokenizer(str(path))
        report: dict[str, Any] = {"tokens": tokenizer.vocab_size, "tokenizer s": round(time.perf_counter() - begin, 2)}
    print(report)
    for name in GRAMMARS:
        report[name] = measure(tokenizer, name)
        print(f"{name:18} {report[name]}", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
