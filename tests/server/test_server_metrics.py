"""The figures behind /metrics and the probes, by a clock that the test sets."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from octavo_server.config import EngineConfig, ServerConfig
from octavo_server.frontend.app import create_app
from octavo_server.frontend.client import EngineClient
from octavo_server.frontend.state import ServerState
from octavo_server.ipc import EngineStats, Ready, RequestOutput
from octavo_server.metric_families import length_buckets
from octavo_server.metrics import PromptMetrics, RequestMetrics, ServerMetrics

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"


MODEL_LEN = 300
LENGTHS = (1, 2, 5, 10, 20, 50, 100, 200)
SECONDS = (*(0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680),)
TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
FIRST_TOKEN_SECONDS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560),
)
USUAL = frozenset({"model_name", "engine"})

# Written from vLLM 0.31: its page on production metrics, and the buckets of its families of histograms.
VLLM_GAUGES_AND_COUNTERS = {
    "num_requests_running": USUAL,
    "num_requests_waiting": USUAL,
    "kv_cache_usage_perc": USUAL,
    "prefix_cache_queries_total": USUAL,
    "prefix_cache_hits_total": USUAL,
    "external_prefix_cache_queries_total": USUAL,
    "external_prefix_cache_hits_total": USUAL,
    "num_preemptions_total": USUAL,
    "prompt_tokens_total": USUAL,
    "prompt_tokens_by_source_total": USUAL | {"source"},
    "prompt_tokens_cached_total": USUAL,
    "generation_tokens_total": USUAL,
    "request_success_total": USUAL | {"finished_reason"},
}
VLLM_HISTOGRAMS = {
    "request_prompt_tokens": LENGTHS,
    "request_generation_tokens": LENGTHS,
    "request_max_num_generation_tokens": LENGTHS,
    "request_params_max_tokens": LENGTHS,
    "request_prefill_kv_computed_tokens": LENGTHS,
    "iteration_tokens_total": (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384),
    "request_params_n": (1, 2, 5, 10, 20),
    "request_num_preemptions": (1, 2, 3, 4, 5, 10, 20),
    "time_to_first_token_seconds": FIRST_TOKEN_SECONDS,
    "inter_token_latency_seconds": TOKEN_SECONDS,
    "request_time_per_output_token_seconds": TOKEN_SECONDS,
    "e2e_request_latency_seconds": SECONDS,
    "request_queue_time_seconds": SECONDS,
    "request_inference_time_seconds": SECONDS,
    "request_prefill_time_seconds": SECONDS,
    "request_decode_time_seconds": SECONDS,
}


class Clock:
    """Stands still but where it is set."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def metrics(clock: Clock, tmp_path: Path) -> ServerMetrics:
    made = ServerMetrics("m", EngineConfig(model=tmp_path), clock)
    made.engine_ready(READY)
    return made


NOTED = {"weights_bytes": 16e9, "weights_seconds": 1.5, "kernels": 20.0, "kernels_cached": 5.0, "kernels_seconds": 2.0}
READY = Ready(1, 1, MODEL_LEN, 16, 64, {"import": 2.5}, NOTED, prefix_caching=True)


def value(metrics: ServerMetrics, name: str, **labels: str) -> float:
    found = metrics.registry.get_sample_value(name, {"model_name": "m", "engine": "0", **labels})
    assert found is not None, name
    return found


def stats(**figures: Any) -> EngineStats:
    needed = dict.fromkeys(("running", "waiting", "waiting_prompt_tokens", "kv_blocks_used", "preemptions"), 0)
    more = {"kv_blocks_total": 64, "block_size": 16, "prompt_tokens": 0, "generation_tokens": 0, "steps": 1}
    return EngineStats(**(needed | more | {"step_seconds": 0.0} | figures))


def told(metrics: ServerMetrics) -> dict[str, list[Sample]]:
    """The samples of each metric, as a scraper reads them; a counter's name is that of its samples."""
    body, _ = metrics.exposition("")
    found: dict[str, list[Sample]] = {}
    for family in text_string_to_metric_families(body.decode()):
        name = family.name + "_total" if family.type == "counter" else family.name
        found[name] = family.samples
    return found


def metrics_type(metrics: ServerMetrics, name: str) -> str:
    """gauge, counter or histogram."""
    return next(
        family.type
        for family in metrics.registry.collect()
        if family.name == name.removesuffix("_total") or family.name == name
    )


# --- names, labels, buckets


def test_vllms_metrics_have_vllms_names_labels_and_buckets(metrics: ServerMetrics) -> None:
    found = told(metrics)
    expected = {*VLLM_GAUGES_AND_COUNTERS, *VLLM_HISTOGRAMS, "cache_config_info"}
    assert {name for name in found if name.startswith("vllm:")} == {f"vllm:{name}" for name in expected}
    for name, labels in VLLM_GAUGES_AND_COUNTERS.items():
        assert found[f"vllm:{name}"], name
        assert {frozenset(sample.labels) for sample in found[f"vllm:{name}"]} == {labels}, name
    for name, buckets in VLLM_HISTOGRAMS.items():
        samples = found[f"vllm:{name}"]
        bounds = [float(sample.labels["le"]) for sample in samples if sample.name.endswith("_bucket")]
        assert bounds == [*buckets, float("inf")], name
        assert all(set(sample.labels) - {"le"} == USUAL for sample in samples), name


def test_the_values_of_labels_are_vllms(metrics: ServerMetrics) -> None:
    found = told(metrics)
    sources = {sample.labels["source"] for sample in found["vllm:prompt_tokens_by_source_total"]}
    assert sources == {"local_compute", "local_cache_hit", "external_kv_transfer"}
    reasons = {sample.labels["finished_reason"] for sample in found["vllm:request_success_total"]}
    assert reasons == {"stop", "length", "abort", "error"}


def test_the_caches_configuration_is_told(tmp_path: Path) -> None:
    made = ServerMetrics("m", EngineConfig(model=tmp_path, swap_space=0.5))
    made.engine_ready(READY)
    (sample,) = told(made)["vllm:cache_config_info"]
    assert sample.value == 1
    expected = {"engine": "0", "block_size": "16", "num_gpu_blocks": "64", "kv_cache_size_tokens": "1024"}
    expected |= {"enable_prefix_caching": "True", "gpu_memory_utilization": "0.9", "kv_cache_memory_bytes": "None"}
    assert sample.labels == expected | {"num_gpu_blocks_override": "None", "swap_space": "0.5"}


def test_the_page_on_metrics_and_the_server_agree(metrics: ServerMetrics) -> None:
    page, _, absent = DOCUMENT.read_text().partition("that are absent")
    rows = [[cell.strip() for cell in line.split("|")[1:5]] for line in page.splitlines() if line.startswith("| `")]
    documented = {name.strip("`"): (kind, labels) for name, kind, labels, _ in rows}
    metrics.engine_stats(stats())
    found = told(metrics)
    types = {name: metrics_type(metrics, name) for name in found}
    assert set(documented) == set(found)
    for name, (kind, labels) in documented.items():
        sample = found[name][0]
        assert types[name] == kind.split(",")[0], name
        described = set(re.findall(r"`([^`]+)`", labels))
        assert described == set(sample.labels) - USUAL - {"le"}, name
    missing = set(re.findall(r"`(vllm:[a-z_]+)`", absent))
    assert len(missing) > 10
    assert missing & set(found) == {"vllm:request_success_total"}  # of which only a label's value is absent


# --- requests


def token(count: int = 1, **figures: Any) -> RequestOutput:
    return RequestOutput("r", [7] * count, **figures)


def test_a_request_is_timed_from_its_arrival(metrics: ServerMetrics, clock: Clock) -> None:
    request = RequestMetrics(metrics, clock.now, prompt_tokens=11, max_tokens=40)
    clock.now = 100.5
    request.output(token(first_scheduled=100.2, num_cached_tokens=8, num_external_tokens=3), 1)
    for at, tokens in [(100.6, 1), (100.9, 2)]:
        clock.now = at
        request.output(token(tokens, num_preemptions=2), tokens)
    clock.now = 101.5
    request.end("stop")
    request.end("abort")  # of no effect: it has ended
    sums = {
        "time_to_first_token_seconds": 0.5,
        "inter_token_latency_seconds": 0.4,
        "request_time_per_output_token_seconds": 0.4 / 3,
        "e2e_request_latency_seconds": 1.5,
        "request_queue_time_seconds": 0.2,
        "request_prefill_time_seconds": 0.3,
        "request_inference_time_seconds": 0.7,
        "request_decode_time_seconds": 0.4,
        "request_prompt_tokens": 11,
        "request_generation_tokens": 4,
        "request_max_num_generation_tokens": 4,
        "request_params_max_tokens": 40,
        "request_params_n": 1,
        "request_prefill_kv_computed_tokens": 3,
        "request_num_preemptions": 2,
    }
    assert {name: value(metrics, f"vllm:{name}_sum") for name in sums} == pytest.approx(sums)
    counts = {name: value(metrics, f"vllm:{name}_count") for name in sums}
    assert counts == dict.fromkeys(sums, 1) | {"inter_token_latency_seconds": 2}
    assert value(metrics, "vllm:prompt_tokens_total") == 11
    assert value(metrics, "vllm:prompt_tokens_cached_total") == 8
    assert value(metrics, "vllm:prompt_tokens_by_source_total", source="local_compute") == 3
    assert value(metrics, "vllm:prompt_tokens_by_source_total", source="local_cache_hit") == 5
    assert value(metrics, "vllm:prompt_tokens_by_source_total", source="external_kv_transfer") == 3
    assert value(metrics, "vllm:generation_tokens_total") == 4
    assert value(metrics, "vllm:request_success_total", finished_reason="stop") == 1
    assert value(metrics, "vllm:request_success_total", finished_reason="abort") == 0


def test_a_request_that_never_began_has_no_first_token(metrics: ServerMetrics) -> None:
    RequestMetrics(metrics, 100.0, prompt_tokens=11).end("abort")
    for name in ("time_to_first_token_seconds", "request_queue_time_seconds", "request_decode_time_seconds"):
        assert value(metrics, f"vllm:{name}_count") == 0
    assert value(metrics, "vllm:prompt_tokens_total") == 0
    assert value(metrics, "vllm:request_success_total", finished_reason="abort") == 1


def test_the_answers_to_one_prompt_are_one_request_of_n(metrics: ServerMetrics, clock: Clock) -> None:
    prompt = PromptMetrics(metrics, n=3)
    for tokens in (5, 9, 2):
        answer = RequestMetrics(metrics, clock.now, 11, prompt=prompt)
        answer.output(token(tokens), tokens)
        assert value(metrics, "vllm:request_params_n_count") == 0
        answer.end("length")
    assert value(metrics, "vllm:request_params_n_sum") == 3
    assert value(metrics, "vllm:request_params_n_count") == 1
    assert value(metrics, "vllm:request_max_num_generation_tokens_sum") == 9
    assert value(metrics, "vllm:request_success_total", finished_reason="length") == 3


# --- the engine


def test_the_engines_state_is_shown_and_gone_with_it(metrics: ServerMetrics) -> None:
    pages = {"kv_blocks_used": 16, "kv_blocks_cached": 10, "host_blocks_used": 3, "host_blocks_total": 8}
    rates = {"prefill_tokens_per_second": 900.0, "decode_tokens_per_second": 30.0}
    metrics.engine_stats(stats(running=2, waiting=3, waiting_prompt_tokens=50, disk_blocks=5, **pages, **rates))
    assert value(metrics, "vllm:num_requests_running") == 2
    assert value(metrics, "vllm:num_requests_waiting") == 3
    assert value(metrics, "octavo:waiting_prompt_tokens") == 50
    assert value(metrics, "vllm:kv_cache_usage_perc") == 0.25
    assert value(metrics, "octavo:kv_tokens_used") == 256
    assert value(metrics, "octavo:kv_tokens_total") == 1024
    shown = [value(metrics, "octavo:kv_pages", state=state) for state in ("used", "cached", "free")]
    assert shown == [16, 10, 38]
    assert [value(metrics, "octavo:host_pages", state=state) for state in ("used", "free")] == [3, 5]
    assert value(metrics, "octavo:disk_pages") == 5
    assert value(metrics, "octavo:prefill_tokens_per_second") == 900
    assert value(metrics, "octavo:decode_tokens_per_second") == 30
    metrics.engine_stats(None)
    assert all(value(metrics, name) == 0 for name in ("vllm:num_requests_running", "octavo:kv_tokens_used"))
    assert all(value(metrics, "octavo:kv_pages", state=state) == 0 for state in ("used", "cached", "free"))


def test_counters_grow_over_restarts_of_the_engine(metrics: ServerMetrics) -> None:
    for count in (2, 5, None, 0, 1):
        metrics.engine_stats(None if count is None else stats(preemptions=count, preemptions_by_swap=count // 2))
    assert value(metrics, "vllm:num_preemptions_total") == 6
    assert value(metrics, "octavo:preemptions_total", mode="swap") == 2
    assert value(metrics, "octavo:preemptions_total", mode="recompute") == 4
    assert value(metrics, "octavo:engine_restarts_total") == 0
    metrics.engine_ready(READY)
    assert value(metrics, "octavo:engine_restarts_total") == 1
    assert value(metrics, "octavo:startup_phase_seconds", phase="import") == 2.5
    assert {name: value(metrics, f"octavo:startup_{name}") for name in NOTED} == NOTED


def test_hits_are_told_by_where_they_were_found(metrics: ServerMetrics) -> None:
    hits = {"prefix_hits": 32, "prefix_hits_host": 16, "prefix_hits_disk": 8}
    metrics.engine_stats(stats(prefix_queries=100, host_blocks_total=4, **hits))
    assert value(metrics, "vllm:prefix_cache_queries_total") == 100
    assert value(metrics, "vllm:prefix_cache_hits_total") == 32
    assert value(metrics, "vllm:external_prefix_cache_queries_total") == 68
    assert value(metrics, "vllm:external_prefix_cache_hits_total") == 24
    found = [value(metrics, "octavo:prefix_hit_tokens_total", source=at) for at in ("device", "host", "disk")]
    assert found == [32, 16, 8]


def test_without_a_pool_in_host_memory_nothing_is_looked_up_there(metrics: ServerMetrics) -> None:
    metrics.engine_stats(stats(prefix_queries=100, prefix_hits=32))
    assert value(metrics, "vllm:external_prefix_cache_queries_total") == 0


def test_moves_between_the_tiers_are_told_by_direction(metrics: ServerMetrics) -> None:
    metrics.engine_stats(stats(swapped_in=1, swapped_out=2, loaded=3, stored=4))
    metrics.engine_stats(stats(swapped_in=2, swapped_out=2, loaded=3, stored=4))
    directions = ("swap_in", "swap_out", "disk_load", "disk_store")
    assert [value(metrics, "octavo:moved_pages_total", direction=at) for at in directions] == [2, 2, 3, 4]


def test_a_step_is_observed_once_and_a_heartbeat_not_at_all(metrics: ServerMetrics) -> None:
    step = {"step_seconds": 0.04, "schedule_seconds": 0.0003, "step_tokens": 20}
    for steps in (1, 1, 2, 4):
        metrics.engine_stats(stats(steps=steps, **step))
    assert value(metrics, "octavo:steps_total") == 4
    for name, total in (
        ("octavo:step_seconds", 0.12),
        ("octavo:schedule_seconds", 0.0009),
        ("vllm:iteration_tokens_total", 60),
    ):
        assert value(metrics, f"{name}_count") == 3
        assert value(metrics, f"{name}_sum") == pytest.approx(total)


def test_buckets_of_lengths_go_by_one_two_five_up_to_the_context() -> None:
    assert length_buckets(300) == [1, 2, 5, 10, 20, 50, 100, 200]
    assert length_buckets(1) == [1]
    assert length_buckets(100) == [1, 2, 5, 10, 20, 50, 100]


# --- probes


@pytest.fixture
async def probes(tmp_path: Path) -> AsyncIterator[tuple[ServerState, httpx.AsyncClient]]:
    state = ServerState(ServerConfig(model=tmp_path))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(state)), base_url="http://x") as client:
        yield state, client
    state.close()


async def test_a_silent_engine_is_neither_healthy_nor_ready(
    probes: tuple[ServerState, httpx.AsyncClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, client = probes
    assert (await client.get("/health")).status_code == 200
    assert (await client.get("/ready")).json() == {"status": "starting", "phase": "starting"}
    monkeypatch.setattr(EngineClient, "hangs", True)
    assert (await client.get("/health")).status_code == 503
    assert (await client.get("/ready")).json()["status"] == "not responding"


async def test_an_unexpected_error_tells_nothing_of_the_inside(
    probes: tuple[ServerState, httpx.AsyncClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    state, _ = probes

    def broken(name: str) -> None:
        raise RuntimeError("/etc/secret at 0x7f00")

    monkeypatch.setattr(state, "check_name", broken)
    transport = httpx.ASGITransport(create_app(state), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        answer = await client.get("/v1/models/x")
    assert answer.status_code == 500
    assert set(answer.json()) == {"error"}
    assert "secret" not in answer.text
    assert "0x7f00" not in answer.text
