"""Answers kept to grammars on the GPU: do they fit, are their neighbours untouched? A part of `gpu_session.py`."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import tokenizers
from llguidance import LLMatcher

from octavo_server.config import EngineConfig
from octavo_server.engine_start import start_engine
from octavo_server.ipc import AddRequest, SamplingParams

PLATE: Final = r"[A-Z]{2}-[0-9]{4}( or [A-Z]{2}-[0-9]{4}){0,3}"
SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo", "Lima"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}


def is_plate(text: str) -> bool:
    return re.fullmatch(PLATE, text) is not None


def is_trip(text: str) -> bool:
    try:
        trip = json.loads(text)
    except ValueError:
        return False
    return set(trip) == {"city", "days"} and trip["city"] in ("Rome", "Oslo", "Lima") and trip["days"] in range(1, 10)


def grammars() -> list[tuple[str, Callable[[str], bool]]]:
    """Serialized, with what tells whether a text fits."""
    shape = {"whitespace_flexible": False}
    schema = LLMatcher.grammar_from_json_schema(SCHEMA, defaults=shape)
    return [(LLMatcher.grammar_from_regex(PLATE), is_plate), (schema, is_trip)]


def answers(model: Path, device: str, requests: Sequence[tuple[list[int], SamplingParams]]) -> list[list[int]]:
    """Of an engine of its own, all at once."""
    config = EngineConfig(
        model=model,
        device=device,  # type: ignore[arg-type]
        dtype="float32",
        batch_invariant=True,
        kv_cache_memory_bytes=2**28,
    )
    core, found = start_engine(config, lambda _phase: None), [list[int]() for _ in requests]
    while core.idle():
        continue
    for index, (prompt, sampling) in enumerate(requests):
        core.add(AddRequest(0, str(index), prompt, sampling, 0.0))
    while core.has_work:
        for output in core.step():
            if output.error:
                raise RuntimeError(output.error)
            found[int(output.request_id)] += output.token_ids
    core.close(5.0)
    return found


def check_grammars(model: Path, prompts: Sequence[list[int]], device: str = "cuda") -> dict[str, Any]:
    """With a grammar and without, greedy and at temperature 1, in one batch; and the same without the grammars."""
    tokenizer = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
    kept: list[tuple[list[int], SamplingParams]] = []
    fits: list[Callable[[str], bool]] = []
    free: list[tuple[list[int], SamplingParams]] = []
    for seed, temperature in enumerate((0.0, 1.0, 1.0, 1.0)):
        for prompt in prompts:
            free.append((prompt, SamplingParams(temperature=temperature, seed=seed, max_tokens=60)))
            for grammar, fit in grammars():
                sampling = SamplingParams(temperature=temperature, seed=seed, max_tokens=200, grammar=grammar)
                kept.append((prompt, sampling))
                fits.append(fit)
    together, alone = answers(model, device, kept + free), answers(model, device, free)
    greedy = [request for request in kept if request[1].temperature == 0.0]
    expected = answers(model, "cpu", greedy)
    texts = [tokenizer.decode(ids) for ids in together[: len(kept)]]
    failures = [f"does not fit: {text!r}" for text, fit in zip(texts, fits, strict=True) if not fit(text)]
    if together[len(kept) :] != alone:
        failures.append("answers without a grammar differ beside some with one")
    if together[: len(greedy)] != expected:
        failures.append("greedy answers with a grammar differ from the CPU's")
    return {"answers with a grammar": len(kept), "different ones": len(set(texts)), "failures": failures[:5]}
