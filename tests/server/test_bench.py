"""What `octavo bench` measures: the right requests, on an engine that is empty each time, and the right figures."""

import json
import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo_common.model_config import read_model_config
from octavo_kernels.ops import REFERENCE
from octavo_server.bench.decode import time_decode
from octavo_server.bench.engine import BenchEngine, Engine
from octavo_server.bench.kernels import time_attention, time_model
from octavo_server.bench.prefill import time_first_token, time_prefill
from octavo_server.bench.random_model import has_weights, read_shape, write_model
from octavo_server.bench.startup import phases_of, start_once
from octavo_server.bench.swap import time_copies, time_steps_beside, time_swap
from octavo_server.bench.throughput import time_prefix, time_prefix_cost, time_throughput
from octavo_server.bench.workloads import WORKLOADS, Ask, Lengths, SharedPrefix, Workload, parse_prompts
from octavo_server.config import EngineConfig
from octavo_server.errors import ConfigError, EngineError, ModelError
from octavo_server.frontend.text.tokenizer import TextTokenizer
from octavo_server.worker.models.decoder import load_decoder, weight_places
from octavo_server.worker.random_weights import random_decoder
from tiny_models import config_json

SHAPE: dict[str, Any] = {"vocab_size": 400, "max_position_embeddings": 256, "torch_dtype": "bfloat16"}
FEW = Workload("few", 6, Lengths(20, 40), Lengths(4, 12), 0.6)


def shape_file(folder: Path, architecture: str = "Qwen3ForCausalLM", **fields: Any) -> Path:
    path = folder / "shape.json"
    path.write_text(json.dumps(config_json(architecture, **{**SHAPE, "head_dim": 8, **fields})), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BenchEngine]:
    folder = tmp_path_factory.mktemp("shape")
    write_model(shape_file(folder), folder / "model")
    config = EngineConfig(
        model=folder / "model",
        load_format="random",
        device="cpu",
        max_num_seqs=8,
        max_num_batched_tokens=64,
        num_gpu_blocks_override=256,
        swap_space=0.001,
    )
    engine = BenchEngine(config)
    yield engine
    engine.close()


def test_workload_a_is_drawn_as_the_performance_page_says() -> None:
    random.seed(0)
    prompts = [[random.randint(0, 10_000) for _ in range(random.randint(100, 1024))] for _ in range(256)]
    lengths = [random.randint(100, 1024) for _ in range(256)]
    asks = WORKLOADS["a"].asks(0, 151_936)
    assert [ask.prompt for ask in asks] == prompts
    assert [ask.max_tokens for ask in asks] == lengths
    assert {ask.temperature for ask in asks} == {0.6}


def test_workload_b_is_512_greedy_requests_of_512_tokens_in_and_256_out() -> None:
    asks = WORKLOADS["b"].asks(0, 128_256)
    assert len(asks) == 512
    assert {(len(ask.prompt), ask.max_tokens, ask.temperature) for ask in asks} == {(512, 256, 0.0)}
    assert len({tuple(ask.prompt[:16]) for ask in asks}) == 512  # no page of one is another's


@pytest.mark.parametrize("text", ["0", "9-3", "1-2-3", "x", "", "-5"])
def test_a_length_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="such as 512"):
        Lengths.parse(text)


def test_lengths_and_prompts_are_read() -> None:
    assert (Lengths.parse("512"), Lengths.parse("100-1024")) == (Lengths(512, 512), Lengths(100, 1024))
    assert parse_prompts("32x2048") == (32, 2048)
    with pytest.raises(ValueError, match="COUNTxTOKENS"):
        parse_prompts("32*2048")


def test_decode_is_timed_at_the_context_asked_for(bench: BenchEngine) -> None:
    one, four = time_decode(bench, [1, 4], 120, steps=8)
    assert (one.name, four.name, one.unit) == ("decode-1", "decode-4", "ms")
    for figure in (one, four):
        assert abs(figure.details["context"] - 120) <= 1
        assert 0 < figure.details["host, ms"] <= figure.details["worst, ms"]
        assert figure.value <= figure.details["worst, ms"]


def test_prefill_and_first_tokens_are_timed(bench: BenchEngine) -> None:
    whole, many = time_prefill(bench, [(1, 128), (4, 32)], repeat=1)
    assert whole.value == pytest.approx(128 / whole.details["seconds"], rel=1e-2)
    assert whole.details["steps"] == many.details["steps"] == 2  # of 64 tokens
    (first,) = time_first_token(bench, [100], repeat=2)
    assert first.name == "ttft-100"
    assert first.details["fastest, ms"] <= first.value <= first.details["slowest, ms"]


def test_throughput_counts_every_token_of_every_answer(bench: BenchEngine) -> None:
    (figure,) = time_throughput(bench, FEW)
    asks = FEW.asks(0, bench.vocab_size)
    assert figure.details["output tokens"] == sum(ask.max_tokens for ask in asks)
    assert figure.value == pytest.approx(figure.details["output tokens"] / figure.details["seconds"], rel=1e-2, abs=1)


def test_a_run_serves_each_request_to_its_length(bench: BenchEngine) -> None:
    asks = FEW.asks(3, bench.vocab_size)
    with bench.fresh() as engine:
        run = engine.run(asks)
    assert len(run.first_tokens) == len(asks)
    assert sum(step.tokens for step in run.steps) == run.output_tokens
    assert run.first_tokens == sorted(run.first_tokens)
    assert run.seconds >= run.first_tokens[-1]


def test_each_engine_begins_with_an_empty_cache_and_answers_alike(bench: BenchEngine) -> None:
    asks = [Ask([7] * 64, 6)] * 2
    hits, answers = [], []
    for _ in range(2):
        with bench.fresh(prefix_caching=True) as engine:
            engine.run(asks[:1])
            hits.append(engine.core.stats().prefix_hits)
            answers.append(tokens_of(engine, asks[1]))
            assert engine.core.stats().prefix_hits > 0  # within one it is not empty any more
    assert hits == [0, 0]
    assert answers[0] == answers[1]


def tokens_of(engine: Engine, ask: Ask) -> list[int]:
    engine.add(ask)
    found: list[int] = []
    while engine.core.has_work:
        for output in engine.step():
            found += output.token_ids
    return found


def test_prefix_caching_is_compared_with_and_without(bench: BenchEngine) -> None:
    figures = {each.name: each for each in time_prefix_cost(bench, FEW, repeat=1)}
    assert set(figures) == {"throughput-few", "prefix-cost"}
    cost = figures["prefix-cost"]
    (plain,), (cached,) = cost.details["without, s"], cost.details["with, s"]
    assert cost.value == pytest.approx(100 * (cached / plain - 1), abs=0.2)
    (shared,) = time_prefix(bench, SharedPrefix(8, 96, 8, 3), compare=True, repeat=1)
    assert shared.details["steps"] < 8 * (96 + 8) // 64  # most of it was computed once
    assert shared.details["without prefix caching, s"] > 0


def test_swapping_is_measured_on_a_pool_that_is_too_small(bench: BenchEngine) -> None:
    many = replace(FEW, requests=8, output_tokens=Lengths(30, 40))
    figures = {each.name: each.details for each in time_swap(bench, many, share=0.3)}
    assert set(figures) == {"swap-auto", "swap-swap", "swap-recompute"}
    assert figures["swap-swap"]["by swap"] == figures["swap-swap"]["preemptions"] > 0
    assert figures["swap-swap"]["GB out"] > 0
    assert figures["swap-recompute"]["by swap"] == 0 < figures["swap-recompute"]["preemptions"]
    assert [each.name for each in time_copies(bench, repeat=1)] == ["swap-copies-out", "swap-copies-in"]
    (slower,) = time_steps_beside(bench, batch=2, context=100, steps=4)
    assert slower.details["pages a step, each way"] > 0


def test_pages_that_move_beside_timed_steps_are_nobodys(bench: BenchEngine) -> None:
    with bench.fresh() as engine:
        before = tokens_of(engine, Ask(list(range(50)), 8))
    time_steps_beside(bench, batch=2, context=100, steps=4)
    with bench.fresh() as engine:
        assert tokens_of(engine, Ask(list(range(50)), 8)) == before


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda bench: time_decode(bench, [1], 1000), "--context 1000: .* takes 256 at most"),
        (lambda bench: time_decode(bench, [9], 100), r"--batch 9: .* --max-num-seqs \(8\)"),
        (lambda bench: time_decode(bench, [1], 20), "--context 20: .* leave no prompt; give"),
        (lambda bench: time_prefill(bench, [(1, 300)]), "--prompts 1x300: .* 301 tokens"),
        (lambda bench: time_first_token(bench, [256]), "--input-tokens 256: .* takes 256 at most"),
        (lambda bench: time_swap(bench, FEW, share=0.01), "--pool 0.01: .* room for the longest one"),
        (lambda bench: time_prefix(bench), "--shared-tokens, --own-tokens: .* takes 256 at most"),
    ],
)
def test_what_does_not_fit_is_refused_by_the_name_of_its_flag(bench: BenchEngine, measure: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        measure(bench)


def test_a_step_that_fails_ends_the_benchmark(bench: BenchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: Any) -> None:
        raise RuntimeError("no such kernel")

    with bench.fresh() as engine:
        monkeypatch.setattr(bench.runner.decoder, "forward", broken)
        with pytest.raises(EngineError, match="the engine failed on request 0"):
            engine.run([Ask([1, 2, 3], 2)])
        monkeypatch.undo()
    with bench.fresh() as engine:
        assert engine.run([Ask([1, 2, 3], 2)]).output_tokens == 2


def test_a_trace_is_written_of_the_first_timed_part(bench: BenchEngine, tmp_path: Path) -> None:
    bench.profile = tmp_path / "trace.json"
    time_prefill(bench, [(1, 16)], repeat=2)
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert bench.profile is None


def test_kernels_are_timed_in_the_models_shape(tmp_path: Path) -> None:
    shape, cpu = read_shape(shape_file(tmp_path)), torch.device("cpu")
    figures = time_attention(shape, cpu, torch.float32, decodes=[(2, 32)], prefills=[(1, 32)])
    figures += time_model(shape, cpu, torch.float32, [1])
    assert [each.name for each in figures] == ["attention-decode-2x32", "attention-prefill-1x32", "model-1"]
    assert all(each.value > 0 for each in figures)


@pytest.mark.parametrize("tied", [True, False])
def test_random_weights_are_the_same_noise_at_each_start_and_norms_are_one(tmp_path: Path, tied: bool) -> None:
    shape = read_shape(shape_file(tmp_path, tie_word_embeddings=tied))
    one, two = (random_decoder(shape, torch.float32, torch.device("cpu"), REFERENCE) for _ in range(2))
    assert torch.equal(one.embedding, two.embedding)
    assert torch.all(one.norm == 1)
    assert one.embedding.std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.equal(one.head.weight.to_dense(), one.embedding) == tied


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Qwen3ForCausalLM"])
def test_a_directory_with_random_weights_can_be_read_as_any_other(tmp_path: Path, architecture: str) -> None:
    path = shape_file(tmp_path, architecture, tie_word_embeddings=architecture.startswith("Qwen3"))
    directory = tmp_path / "model"
    shape = write_model(path, directory)
    assert not has_weights(directory, shape)
    write_model(path, directory, weights=True)
    assert has_weights(directory, shape)
    places = weight_places(load_decoder(directory, read_model_config(directory), torch.bfloat16, torch.device("cpu")))
    for name, place in places.items():
        assert torch.all(place == 1) if "norm" in name else 0.015 < place.float().std() < 0.025, name


def test_the_tokenizer_has_a_text_for_each_token_of_the_vocabulary(tmp_path: Path) -> None:
    write_model(shape_file(tmp_path), tmp_path / "model")
    tokenizer = TextTokenizer(tmp_path / "model")
    assert all(tokenizer.token_bytes(token) for token in range(400))
    assert tokenizer.token_bytes(400) == b""
    text = "Grüße, 世界"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_a_shape_that_cannot_be_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="hidden_size is 'wide'; it must be a positive integer"):
        write_model(shape_file(tmp_path, hidden_size="wide"), tmp_path / "model")
    with pytest.raises(ModelError, match="vocab_size is 100; a byte-level tokenizer needs 258"):
        write_model(shape_file(tmp_path, vocab_size=100), tmp_path / "model")


def test_pages_of_random_weights_are_not_kept_on_disk(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leave out --load-format random"):
        EngineConfig(model=tmp_path, load_format="random", swap_space=1.0, disk_cache_dir=tmp_path)


def test_the_phases_of_a_start_are_read_from_the_servers_log() -> None:
    ready = "INFO x: engine: ready for contexts of 512 tokens (import 1.7 s, load weights 0.0 s)"
    log = f"INFO x: engine: import (after 0.0 s)\n{ready}\n"
    assert phases_of(log) == {"import": 1.7, "load weights": 0.0}
    assert phases_of("nothing") == {}


# It listens, but closes the port and says why only a moment later, as servers do that end.
ENDS = """
import socket, sys, time
with socket.create_server(("127.0.0.1", 0)) as listener:
    print(f"octavo: listening on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
time.sleep(0.3)
sys.exit("octavo: this is why")
"""


def test_a_start_that_fails_is_told_with_the_servers_last_words() -> None:
    with pytest.raises(EngineError, match="the server broke off while it started: octavo: this is why"):
        start_once([sys.executable, "-c", ENDS], {}, patience=60.0)


def test_a_start_that_takes_too_long_is_told_with_the_time_that_it_had() -> None:
    with pytest.raises(EngineError, match=r"the server did not start within 0\.5 s: it said nothing"):
        start_once([sys.executable, "-c", "import time; time.sleep(60)"], {}, patience=0.5)
