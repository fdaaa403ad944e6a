"""No request can make the engine need more memory than its bill says."""

import re
from pathlib import Path
from typing import Any, Final

import pytest

from engine_process import EngineProcess
from tiny_models import config_json, write_checkpoint

# The vocabulary of a large model on the layers of a tiny one: its logits are what would grow.
VOCAB: Final = 32_768
PAGES: Final = 96
LENGTH: Final = 1000
SLACK: Final = 48 * 2**20  # answers on their way, the allocator's gaps
UNITS: Final = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    shape: dict[str, Any] = {"vocab_size": VOCAB, "num_hidden_layers": 1, "max_position_embeddings": PAGES * 16}
    write_checkpoint(folder, config_json("LlamaForCausalLM", **shape))
    return folder


def status(pid: int, name: str) -> int:
    """Bytes."""
    (line,) = re.findall(rf"^{name}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.M)
    return int(line) * 1024


def billed(log: str, label: str) -> float:
    amount, unit = re.findall(rf"^ +{label} .*?([\d.,]+) (B|KiB|MiB|GiB)$", log, re.M)[0]
    return float(amount.replace(",", "")) * UNITS[unit]


def prompt(length: int, seed: int = 0) -> list[int]:
    return [3 + (seed + 7919 * index) % (VOCAB - 3) for index in range(length)]


REQUESTS: Final[dict[str, list[tuple[list[int], dict[str, Any]]]]] = {
    "prompt_logprobs of a long prompt": [
        (prompt(LENGTH, seed), {"prompt_logprobs": 20, "max_tokens": 1}) for seed in range(2)
    ],
    "128 answers to one prompt": [
        (prompt(100), {"choice": choice, "temperature": 1.0, "seed": 1, "max_tokens": 4}) for choice in range(128)
    ],
    "20 logprobs each for 64": [
        (prompt(30, index), {"logprobs": 20, "max_tokens": 6, "frequency_penalty": 0.5}) for index in range(64)
    ],
}


def test_the_engine_stays_within_its_bill(model: Path) -> None:
    config = {"num_gpu_blocks_override": PAGES, "max_num_seqs": 128, "max_num_batched_tokens": 512}
    with EngineProcess(model, **config) as engine:
        engine.ready()
        log, pid = engine.log.read_text(), engine.process.pid
        workspace, cache = billed(log, r"workspace \(.*\)"), billed(log, "KV cache")
        # What could not be bounded would be several times as much: the logits of all those prompt tokens.
        assert workspace + cache + SLACK < 4 * LENGTH * VOCAB * 4
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # sets the high-water mark to where it is now
        before = status(pid, "VmRSS")
        for kind, requests in REQUESTS.items():
            names = [f"{kind} {index}" for index in range(len(requests))]
            for name, (tokens, sampling) in zip(names, requests, strict=True):
                engine.add(name, tokens, ignore_eos=True, **sampling)
            done = engine.finish(*names)
            assert {last.finish_reason for _, last in done.values()} == {"length"}
            grown = status(pid, "VmHWM") - before
            assert grown <= workspace + cache + SLACK, f"{kind}: {grown / 2**20:.0f} MiB"
        assert len(engine.results["prompt_logprobs of a long prompt 0"][-1].prompt_logprobs or ()) == LENGTH
