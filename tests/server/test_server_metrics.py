"""The figures behind /metrics and the probes, by a clock that the test sets."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from octavo_server.config import ServerConfig
from octavo_server.frontend.app import create_app
from octavo_server.frontend.client import EngineClient
from octavo_server.frontend.state import ServerState
from octavo_server.ipc import EngineStats, Ready
from octavo_server.metrics import RequestMetrics, ServerMetrics, length_buckets


class Clock:
    """Stands still but where it is set."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def metrics(clock: Clock) -> ServerMetrics:
    made = ServerMetrics("m", clock)
    made.engine_ready(Ready(1, 1, 300, 16, 64, {"import": 2.5}))
    return made


def value(metrics: ServerMetrics, name: str, **labels: str) -> float:
    found = metrics.registry.get_sample_value(name, {"model_name": "m", "engine": "0", **labels})
    assert found is not None, name
    return found


def stats(preemptions: int = 0, running: int = 0, used: int = 0) -> EngineStats:
    return EngineStats(running, 3, 50, used, 64, 16, preemptions, 0, 0, 1, 0.0)


def test_a_request_is_timed_from_its_arrival(metrics: ServerMetrics, clock: Clock) -> None:
    request = RequestMetrics(metrics, clock.now, prompt_tokens=11)
    for at, tokens in [(100.5, 1), (100.6, 1), (100.9, 2)]:
        clock.now = at
        request.tokens(tokens)
    clock.now = 101.5
    request.end("stop")
    request.end("abort")  # of no effect: it has ended
    assert value(metrics, "vllm:time_to_first_token_seconds_sum") == pytest.approx(0.5)
    assert value(metrics, "vllm:inter_token_latency_seconds_count") == 2
    assert value(metrics, "vllm:inter_token_latency_seconds_sum") == pytest.approx(0.4)
    assert value(metrics, "vllm:request_time_per_output_token_seconds_sum") == pytest.approx(0.4 / 3)
    assert value(metrics, "vllm:e2e_request_latency_seconds_sum") == pytest.approx(1.5)
    assert value(metrics, "vllm:prompt_tokens_total") == 11
    assert value(metrics, "vllm:generation_tokens_total") == 4
    assert value(metrics, "vllm:request_prompt_tokens_sum") == 11
    assert value(metrics, "vllm:request_generation_tokens_sum") == 4
    assert value(metrics, "vllm:request_success_total", finished_reason="stop") == 1
    assert value(metrics, "vllm:request_success_total", finished_reason="abort") == 0


def test_a_request_that_never_began_has_no_first_token(metrics: ServerMetrics) -> None:
    RequestMetrics(metrics, 100.0, prompt_tokens=11).end("abort")
    assert value(metrics, "vllm:time_to_first_token_seconds_count") == 0
    assert value(metrics, "vllm:prompt_tokens_total") == 0
    assert value(metrics, "vllm:request_success_total", finished_reason="abort") == 1


def test_the_engines_state_is_shown_and_gone_with_it(metrics: ServerMetrics) -> None:
    metrics.engine_stats(stats(running=2, used=16))
    assert value(metrics, "vllm:num_requests_running") == 2
    assert value(metrics, "vllm:num_requests_waiting") == 3
    assert value(metrics, "octavo:waiting_prompt_tokens") == 50
    assert value(metrics, "vllm:kv_cache_usage_perc") == 0.25
    assert value(metrics, "octavo:kv_tokens_used") == 256
    assert value(metrics, "octavo:kv_tokens_total") == 1024
    metrics.engine_stats(None)
    assert value(metrics, "vllm:num_requests_running") == value(metrics, "octavo:kv_tokens_used") == 0


def test_preemptions_grow_over_restarts_of_the_engine(metrics: ServerMetrics) -> None:
    for entry in (stats(2), stats(5), None, stats(0), stats(1)):
        metrics.engine_stats(entry)
    assert value(metrics, "vllm:num_preemptions_total") == 6


def test_buckets_of_lengths_go_by_one_two_five_up_to_the_context() -> None:
    assert length_buckets(300) == [1, 2, 5, 10, 20, 50, 100, 200]
    assert length_buckets(1) == [1]
    assert length_buckets(100) == [1, 2, 5, 10, 20, 50, 100]


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
