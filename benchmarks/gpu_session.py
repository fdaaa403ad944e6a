"""Checks the engine on a GPU and measures every figure of the performance page, in one call of some minutes.

    python benchmarks/gpu_session.py [--only SECTION ...] [--seconds SECONDS] [--json FILE] [--rows FILE] [--commit ID]

Needs torch with CUDA, transformers (the independent truth) and the packages of the `server` extra, but no installation
of octavo: it finds the source roots beside itself. Each section is guarded: what breaks in one hides no other. Checks
come first; if one fails, the figures are measured all the same but not written. `--rows` is a file like
`results/h100.json`, whose rows of the same names are replaced. Exit status 1 if a check failed or a section broke.
"""

import argparse
import dataclasses
import gc
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / name) for name in ("kernels", "server", "tests/support", "benchmarks")]

import decode_steps  # noqa: E402
import engine_checks  # noqa: E402
import figure_sections  # noqa: E402
import figures  # noqa: E402
import grammar_checks  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

from octavo_common.model_config import read_model_config  # noqa: E402
from octavo_server.bench.report import commit  # noqa: E402
from octavo_server.config import EngineConfig  # noqa: E402
from octavo_server.engine.core import EngineCore  # noqa: E402
from octavo_server.engine_start import start_engine  # noqa: E402
from octavo_server.ipc import AddRequest, SamplingParams  # noqa: E402
from octavo_server.worker.models.decoder import load_decoder  # noqa: E402
from paged_loop import PagedLoop, Sequence  # noqa: E402
from tiny_models import MODEL_TYPES, config_json, read_checkpoint, reference_logits, write_checkpoint  # noqa: E402

CUDA = torch.device("cuda")
DEMO = ROOT / "server/octavo_server/demo_model"
REAL_WIDTH: dict[str, Any] = {
    "vocab_size": 32_000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 3,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
}
FP32_TOLERANCE = 1e-3
BF16_RATIO = 1.5  # our bf16 error may be this many times that of transformers
PROMPTS = (
    "Tell me a joke",
    "What is a KV cache?",
    "What is 17 + 25?",
    "Spell the word banana.",
    "My name is Zelda. What is my name?",
)


def paged_logits(directory: Path, dtype: torch.dtype, tokens: list[int]) -> torch.Tensor:
    """[tokens, vocab]: a prefill in two chunks across page borders, then decode, beside another sequence."""
    decoder = load_decoder(directory, read_model_config(directory), dtype, CUDA)
    loop = PagedLoop(decoder, num_blocks=64, block_size=16)
    ours, other = Sequence(), Sequence()
    rows = [loop.step([(other, tokens[::-1][:40]), (ours, tokens[:37])])[1]]
    rows.append(loop.step([(ours, tokens[37:90]), (other, tokens[:1])])[0])
    for token in tokens[90:]:
        rows.append(loop.step([(other, [token]), (ours, [token])])[1])
    return torch.cat(rows).cpu()


def check_parity(
    architecture: str, directory: Path, truth_model: transformers.PreTrainedModel | None = None
) -> dict[str, float]:
    """Largest differences of logits to transformers' own, at real widths."""
    truth_model = truth_model or write_checkpoint(directory, config_json(architecture, **REAL_WIDTH))
    tokens = torch.randint(0, 32_000, (110,), generator=torch.Generator().manual_seed(1)).tolist()
    truth = reference_logits(truth_model, tokens)
    theirs_model = read_checkpoint(directory).to(CUDA, torch.bfloat16)
    with torch.no_grad():
        theirs = theirs_model(torch.tensor([tokens], device=CUDA), use_cache=False).logits[0].float().cpu()
    return {
        "fp32": (paged_logits(directory, torch.float32, tokens) - truth).abs().max().item(),
        "bf16": (paged_logits(directory, torch.bfloat16, tokens) - truth).abs().max().item(),
        "bf16 of transformers": (theirs - truth).abs().max().item(),
    }


def demo_engine(device: str, dtype: str = "float32", **others: Any) -> EngineCore:
    given = others if "num_gpu_blocks_override" in others else {"kv_cache_memory_bytes": 2**28, **others}
    engine = start_engine(EngineConfig(model=DEMO, device=device, dtype=dtype, **given), lambda _phase: None)  # type: ignore[arg-type]
    while engine.idle():
        continue
    return engine


def generate(engine: EngineCore, prompts: list[list[int]], sampling: SamplingParams) -> list[list[int]]:
    """All prompts in one batch."""
    found: list[list[int]] = [[] for _ in prompts]
    for index, prompt in enumerate(prompts):
        engine.add(AddRequest(0, str(index), prompt, sampling, 0.0))
    while engine.has_work:
        for output in engine.step():
            if output.error:
                raise RuntimeError(output.error)
            found[int(output.request_id)] += output.token_ids
    return found


def demo_prompts() -> list[list[int]]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO)
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        for text in PROMPTS
    ]


def check_demo() -> dict[str, int]:
    """Tokens of the demo model's greedy answers that differ between CPU and GPU, in fp32."""
    prompts, sampling = demo_prompts(), SamplingParams(temperature=0.0, max_tokens=120)
    cpu, gpu = (generate(demo_engine(device), prompts, sampling) for device in ("cpu", "cuda"))
    differing = sum(a != b for a, b in zip(cpu, gpu, strict=True))
    return {"answers": len(prompts), "tokens": sum(map(len, cpu)), "answers that differ": differing}


def check_overlap() -> dict[str, int]:
    """Answers on the GPU that change with overlap, or with pages swapped meanwhile; none should. And the swaps.

    Batch-invariant, as with overlap a request that has ended is in the batch for a step more. Some have penalties.
    """
    tight = {"num_gpu_blocks_override": 16, "max_model_len": 160, "preemption_mode": "swap", "swap_space": 0.05}
    greedy = SamplingParams(temperature=0.0, max_tokens=100, ignore_eos=True, logprobs=1)
    drawn = SamplingParams(temperature=1.0, top_p=0.95, seed=3, max_tokens=100, ignore_eos=True, repetition_penalty=1.1)
    differing = swaps = 0
    for sampling in (greedy, drawn):
        answers = []
        for config in ({"async_scheduling": False}, {}, tight):
            engine = demo_engine("cuda", batch_invariant=True, **config)
            answers.append(generate(engine, demo_prompts(), sampling))
            swaps += engine.stats().swapped_in
            engine.close(5.0)
            del engine
            free_memory()
        differing += sum(a != b for other in answers[1:] for a, b in zip(answers[0], other, strict=True))
    return {"answers that differ": differing, "pages swapped in": swaps}


def free_memory() -> None:
    """Gives back what the engines before have left."""
    gc.collect()
    torch.cuda.empty_cache()


def taken_bytes() -> int:
    """Of the GPU's memory, by whomever."""
    free, total = torch.cuda.mem_get_info()
    return total - free


def check_memory() -> dict[str, Any]:
    """GPU memory that a server with default flags plans with, and has taken in the end, stage by stage.

    In a process that has done nothing else on the GPU, the CUDA context is part of both; what engines before have left
    behind would not be.
    """
    fresh = torch.cuda.max_memory_reserved() == 0
    free_memory()
    stages = {"context": taken_bytes()}
    torch.cuda.reset_peak_memory_stats()
    reserved = torch.cuda.memory_reserved()
    engine = start_engine(
        EngineConfig(model=DEMO, device="cuda"), lambda name: stages.update({f"before {name}": taken_bytes()})
    )
    stages["ready"] = taken_bytes()
    graphs = []
    while engine.idle():
        graphs.append(taken_bytes())
    stages["idle work done"] = taken_bytes()
    full = SamplingParams(
        temperature=1.0, top_p=0.9, presence_penalty=0.5, max_tokens=20, logprobs=20, prompt_logprobs=20
    )
    generate(engine, [prompt * 20 for prompt in demo_prompts() * 50], full)
    stages["after requests"] = taken_bytes()
    planned = engine.runner.planned_bytes  # type: ignore[attr-defined]
    ours = stages["after requests"] - (0 if fresh else stages["context"])
    found = {
        "planned, MiB": planned >> 20,
        "taken, MiB": ours >> 20,
        "reserved by torch at most, MiB": torch.cuda.max_memory_reserved() - reserved >> 20,
        "fresh process": fresh,
        "stages, MiB": {name: size >> 20 for name, size in stages.items()},
        "added by pieces of idle work, KiB": [b - a >> 10 for a, b in pairwise(graphs)],
    }
    engine.close(5.0)
    del engine
    free_memory()
    return {**found, "failures": [f"{ours - planned >> 20} MiB more than planned are taken"] if ours > planned else []}


def parity() -> dict[str, Any]:
    """The four architectures at real widths against transformers: the decoder, and the engine in all its ways."""
    report: dict[str, Any] = {"failures": []}
    for architecture in MODEL_TYPES:
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder)
            truth = write_checkpoint(directory, config_json(architecture, **REAL_WIDTH))
            errors = report[architecture] = check_parity(architecture, directory, truth)
            engine = report[f"{architecture}, engine"] = engine_checks.check_engine(directory, truth.to(CUDA))
        if not errors["fp32"] <= FP32_TOLERANCE or not errors["bf16"] <= BF16_RATIO * errors["bf16 of transformers"]:
            report["failures"].append(f"{architecture}: {errors}")
        report["failures"] += [f"{architecture}, engine: {failure}" for failure in engine["failures"]]
    return report


def demo() -> dict[str, Any]:
    found = check_demo()
    return {**found, "failures": ["answers differ"] if found["answers that differ"] else []}


def overlap() -> dict[str, Any]:
    found = check_overlap()
    failures = [] if found["pages swapped in"] else ["no page was swapped in"]
    return {**found, "failures": failures + (["answers differ"] if found["answers that differ"] else [])}


def sanitizer() -> dict[str, Any]:
    """NVIDIA's compute-sanitizer over every kernel, see `kernel_sanitizer`: what it says is printed."""
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks/kernel_sanitizer.py")], check=False)
    what = {0: [], 2: ["there is no compute-sanitizer"]}
    return {"failures": what.get(done.returncode, ["errors were found, or a result is wrong"])}


def figures_of(measure: Callable[[], list[figures.Measured]]) -> Callable[[], dict[str, Any]]:
    """A section whose report has rows of figures."""
    return lambda: {"rows": measure(), "failures": []}


CHECKS: dict[str, Callable[[], dict[str, Any]]] = {
    "parity": parity,
    "windows": lambda: engine_checks.check_windows(REAL_WIDTH),
    "demo": demo,
    "overlap": overlap,
    "tiers": lambda: engine_checks.check_tiers(DEMO, demo_prompts() * 3),
    "grammars": lambda: grammar_checks.check_grammars(DEMO, demo_prompts()),
    "memory": check_memory,
    "graphs": lambda: decode_steps.check_graphs(demo_prompts()),
    "invariant": lambda: decode_steps.check_invariant(demo_prompts()),
    "synchronisation": lambda: decode_steps.check_synchronisation(demo_prompts()),
    "bounds": decode_steps.check_bounds,
    "compiles": lambda: decode_steps.check_compiles(demo_prompts()),
}
FIGURES: dict[str, Callable[[], dict[str, Any]]] = {
    "8b": figures_of(figure_sections.figures_8b),
    "0.6b": figures_of(figure_sections.figures_06b),
    "kernels": figures_of(figure_sections.figures_kernels),
    "swap": figures_of(figure_sections.figures_swap),
    "http-0.6b": figures_of(lambda: figure_sections.figures_http("0.6b")),
    "http-8b": figures_of(lambda: figure_sections.figures_http("8b")),
    "start": figures_of(figure_sections.figures_start),
}
# By name alone: it takes minutes.
EXTRAS: dict[str, Callable[[], dict[str, Any]]] = {
    "sanitizer": sanitizer,
    "price": figure_sections.price_of_invariance,
}
SECTIONS = {**CHECKS, **EXTRAS, **FIGURES}


def guarded(name: str, section: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the section found, or what broke it."""
    begin = time.perf_counter()
    try:
        found = section()
    except Exception:
        traceback.print_exc()
        found = {"failures": [traceback.format_exc(limit=-3)]}
    free_memory()
    found["seconds"] = round(time.perf_counter() - begin, 1)
    shown = {key: value for key, value in found.items() if key != "rows"}
    print(f"== {name}: {shown}", flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where all that was found goes")
    parser.add_argument("--rows", type=Path, help=f"whose rows are replaced, such as {figures.RESULTS.name}")
    parser.add_argument("--commit", help="that is measured, where this is no checkout")
    names, usual = ["checks", "figures", *SECTIONS], ["checks", "figures"]
    parser.add_argument("--only", nargs="+", choices=names, default=usual, metavar="SECTION", help=", ".join(names))
    parser.add_argument("--seconds", type=float, default=900.0, help="no section begins later than that")
    arguments = parser.parse_args()
    logging.basicConfig(format="   %(message)s")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # for the servers that are started
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    report: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    begin, wanted = time.perf_counter(), chosen(arguments.only)
    for name in wanted:
        if time.perf_counter() - begin > arguments.seconds:
            report[name] = {"failures": ["left out: no time"]}
            continue
        report[name] = guarded(name, SECTIONS[name])
        if arguments.json:  # after each: a run that is cut off leaves what it has
            arguments.json.write_text(json.dumps(report, indent=1, default=dataclasses.asdict) + "\n", encoding="utf-8")
        if arguments.rows and report[name].get("rows") and not failures_of(report, CHECKS):
            found = commit() if arguments.commit is None else arguments.commit
            figures.update(arguments.rows, report[name]["rows"], device=report["device"], commit=found)
    rows = [figures.row(each, None) for name in wanted for each in report[name].get("rows", ())]
    if rows:
        print(figures.table(figures.with_excuses(rows)))
    failures = failures_of(report, SECTIONS)
    print("FAILED: " + json.dumps(failures, indent=1) if failures else "all checks passed")
    return int(bool(failures))


def chosen(names: list[str]) -> list[str]:
    """The sections, "checks" and "figures" standing for all of their kind; in their order, each once."""
    meant = {"checks": CHECKS, "figures": FIGURES}
    wanted = {section for name in names for section in meant.get(name, [name])}
    return [name for name in SECTIONS if name in wanted]


def failures_of(report: dict[str, Any], sections: Iterable[str]) -> dict[str, Any]:
    return {name: report[name]["failures"] for name in sections if name in report and report[name].get("failures")}


if __name__ == "__main__":
    sys.exit(main())
