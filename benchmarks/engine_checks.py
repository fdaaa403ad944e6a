"""What the engine says, over each of its ways to a token, against `transformers`: a part of `gpu_session.py`.

Prompts in one piece and in chunks, decode with graphs, prefix hits, pages that were swapped out and came back, sliding
windows; then host memory and disk together. In fp32: any wrong page or position shows.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
import transformers

from octavo_server import page_hash
from octavo_server.bench.engine import BenchEngine, Engine
from octavo_server.config import EngineConfig
from octavo_server.engine.core import EngineCore
from octavo_server.engine_start import start_engine
from octavo_server.ipc import AddRequest, SamplingParams
from tiny_models import config_json, write_checkpoint

TOLERANCE: Final = 1e-3  # of a log-probability; and how much likelier than the greedy token another may be
ANSWER: Final = 24
WINDOWED: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "Mistral, window of 48": ("MistralForCausalLM", {"sliding_window": 48}),
    "Qwen3, two of three layers with a window of 48": (
        "Qwen3ForCausalLM",
        {
            "use_sliding_window": True,
            "sliding_window": 48,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
}
Answer = list[tuple[int, float]]  # tokens with their log-probabilities


def prompts_of(vocab_size: int) -> list[list[int]]:
    """Seven: one begin in common, which is more than three pages, and ends of several lengths; two are alike."""
    draw = torch.Generator().manual_seed(2)

    def some(count: int) -> list[int]:
        found: list[int] = torch.randint(0, vocab_size, (count,), generator=draw).tolist()
        return found

    shared = some(60)
    prompts = [shared + some(length) for length in (1, 5, 17, 40, 64, 90)]
    return [*prompts, list(prompts[2])]


def serve(core: EngineCore, prompts: Sequence[list[int]]) -> list[Answer]:
    """All at once, greedily."""
    kv_cache, found = core.scheduler.kv_cache, [Answer() for _ in prompts]
    sampling = SamplingParams(temperature=0.0, max_tokens=ANSWER, ignore_eos=True, logprobs=0)
    for index, prompt in enumerate(prompts):
        hashes = page_hash.hash_pages(prompt, kv_cache.block_size, b"") if kv_cache.prefix_caching else b""
        core.add(AddRequest(0, str(index), prompt, sampling, 0.0, page_hashes=hashes))
    while core.has_work:
        for output in core.step():
            if output.error:
                raise RuntimeError(output.error)
            pairs = zip(output.token_ids, output.logprobs or (), strict=True)
            found[int(output.request_id)] += [(token, said.logprobs[0]) for token, said in pairs]
    return found


@torch.no_grad()
def largest_error(
    truth: transformers.PreTrainedModel, prompts: Sequence[list[int]], answers: Sequence[Answer]
) -> float:
    """Of the log-probabilities, and of the greedy choices, in log-probability."""
    worst = 0.0
    for prompt, answer in zip(prompts, answers, strict=True):
        if len(answer) != ANSWER:
            return float("inf")
        tokens, said = (torch.tensor(column, device=truth.device) for column in zip(*answer, strict=True))
        ids = torch.cat([torch.tensor(prompt, device=truth.device), tokens[:-1]])
        logits = truth(ids[None], use_cache=False).logits[0, len(prompt) - 1 :]
        distribution = logits.float().log_softmax(-1)
        chosen = distribution.gather(1, tokens[:, None])[:, 0]
        worst = max(worst, (chosen - said).abs().max().item(), (distribution.amax(-1) - chosen).max().item())
    return worst


def check_engine(directory: Path, truth: transformers.PreTrainedModel, device: str = "cuda") -> dict[str, Any]:
    """Largest error over each way; and how much was hit and swapped, which must be something."""
    config = EngineConfig(
        model=directory,
        device=device,  # type: ignore[arg-type]
        dtype="float32",
        max_num_batched_tokens=96,
        max_num_seqs=8,
        kv_cache_memory_bytes=2**28,
        swap_space=0.25,
    )
    bench, found, failures = BenchEngine(config), dict[str, Any](), list[str]()
    prompts = prompts_of(bench.vocab_size)

    def look(name: str, engine: Engine, asked: Sequence[list[int]]) -> None:
        found[name] = largest_error(truth, asked, serve(engine.core, asked))
        if not found[name] <= TOLERANCE:
            failures.append(f"{name}: {found[name]:.1e}")

    with bench.fresh() as engine:
        look("alone", engine, prompts[3:4])
        look("in chunks, together", engine, prompts)
    with bench.fresh(prefix_caching=True) as engine:
        look("into an empty prefix cache", engine, prompts)
        look("prefix hits", engine, prompts[::-1])
        found["tokens hit"] = engine.core.stats().prefix_hits
    tight = max(-(-(len(prompt) + ANSWER) // bench.page_size) for prompt in prompts) * 2 + 2
    with bench.fresh(num_pages=tight, preemption_mode="swap") as engine:
        look("swapped", engine, prompts)
        found["pages swapped in"] = engine.core.stats().swapped_in
    with bench.fresh(num_pages=tight, preemption_mode="swap", prefix_caching=True) as engine:
        look("swapped, with a prefix cache", engine, prompts)
        look("hits in host memory", engine, prompts)
        found["tokens hit in host memory"] = engine.core.stats().prefix_hits_host
    must = ["tokens hit", "tokens hit in host memory"]
    if bench.first.scheduler.kv_cache.window is None:  # else requests are small, and all of them find room
        must.append("pages swapped in")
    failures += [f"{name}: none" for name in must if not found[name]]
    bench.close()
    return {**found, "failures": failures}


def check_windows(widths: dict[str, Any], device: str = "cuda") -> dict[str, Any]:
    """Sliding windows, in all layers and in some: contexts of three windows, decode with graphs."""
    report: dict[str, Any] = {"failures": []}
    for name, (architecture, fields) in WINDOWED.items():
        with tempfile.TemporaryDirectory() as folder:
            truth = write_checkpoint(Path(folder), config_json(architecture, **widths, **fields)).to(device)
            report[name] = check_engine(Path(folder), truth, device)
        report["failures"] += [f"{name}: {failure}" for failure in report[name].pop("failures")]
    return report


def check_tiers(model: Path, prompts: Sequence[list[int]], device: str = "cuda") -> dict[str, Any]:
    """Host memory and disk at once, with pages for two requests: the same answers as with room for all, also from disk.

    The engine is ended and started again on the same directory; what it then reads from disk was written by the first.
    """
    common: dict[str, Any] = {"model": model, "device": device, "dtype": "float32", "max_model_len": 256}
    with tempfile.TemporaryDirectory() as folder:
        plain = start_engine(EngineConfig(**common, kv_cache_memory_bytes=2**28), lambda _phase: None)
        expected, longest = serve(plain, prompts), max(map(len, prompts)) + ANSWER
        pages = -(-longest // plain.scheduler.kv_cache.block_size)
        plain.close(5.0)
        small = EngineConfig(
            **common,
            num_gpu_blocks_override=max(2 * pages, 256 // plain.scheduler.kv_cache.block_size),
            swap_space=0.05,
            preemption_mode="swap",
            disk_cache_dir=Path(folder),
            disk_cache_size=1.0,
        )
        found, failures = dict[str, Any](), list[str]()
        for name in ("first start", "second start"):
            core = start_engine(small, lambda _phase: None)
            while core.idle():
                continue
            core.idle()
            runs = [tokens_of(serve(core, prompts)) for _ in range(2)]
            stats = core.stats()
            found[name] = {key: getattr(stats, key) for key in ("swapped_in", "swapped_out", "stored", "loaded")}
            differing = sum(a != b for run in runs for a, b in zip(run, tokens_of(expected), strict=True))
            if differing:
                failures.append(f"{name}: {differing} answers differ from those of an engine with room for all")
            core.close(20.0)
    if not found["first start"]["swapped_in"]:
        failures.append("no page was swapped in")
    if not found["second start"]["loaded"]:
        failures.append("no page was read from disk")
    return {**found, "failures": failures}


def tokens_of(answers: Sequence[Answer]) -> list[list[int]]:
    return [[token for token, _ in answer] for answer in answers]
