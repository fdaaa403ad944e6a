"""What `/metrics` tells: names, labels and buckets of vLLM's endpoint where vLLM has the figure, else `octavo:`.

Prompt and answer tokens are counted here, where they reach a client, and not in the engine: tokens that a stop string
overran count nowhere.
"""

import time
from collections.abc import Callable
from typing import Final

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from octavo_common import names
from octavo_server.ipc import EngineStats, Ready

prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # nothing reads those second series

_LABELS: Final = ("model_name", "engine")
FINISHED_REASONS: Final = ("stop", "length", "abort", "error")
_TTFT_BUCKETS: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0),
    *(80.0, 160.0, 640.0, 2560.0),
)
_TOKEN_BUCKETS: Final = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
_REQUEST_BUCKETS: Final = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0),
    *(1920.0, 7680.0),
)


def length_buckets(longest: int) -> list[int]:
    """1, 2, 5, 10, 20, 50, … up to `longest` tokens."""
    buckets = []
    scale = 1
    while scale <= longest:
        buckets += [scale * step for step in (1, 2, 5) if scale * step <= longest]
        scale *= 10
    return buckets


class ServerMetrics:
    """The metrics of one served model, in a registry of their own."""

    def __init__(self, model_name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.registry = CollectorRegistry()
        self.clock = clock
        self._values = (model_name, "0")
        self._running = self._gauge(names.METRIC_REQUESTS_RUNNING, "Requests in the running batch.")
        self._waiting = self._gauge(names.METRIC_REQUESTS_WAITING, "Requests that wait for a place in the batch.")
        self._kv_usage = self._gauge(names.METRIC_KV_CACHE_USAGE, "Share of the KV cache's pages in use, 0 to 1.")
        self._kv_used = self._gauge(names.METRIC_KV_TOKENS_USED, "Tokens that the KV cache's used pages can hold.")
        self._kv_total = self._gauge(names.METRIC_KV_TOKENS_TOTAL, "Tokens that the whole KV cache can hold.")
        self._waiting_tokens = self._gauge(names.METRIC_WAITING_PROMPT_TOKENS, "Prompt tokens of waiting requests.")
        self._preemptions = self._counter(names.METRIC_PREEMPTIONS, "Requests that gave up their pages to others.")
        self.prompt_tokens = self._counter("vllm:prompt_tokens", "Tokens of prompts that were computed.")
        self.generation_tokens = self._counter("vllm:generation_tokens", "Tokens of answers.")
        self._success = Counter(
            "vllm:request_success",
            "Requests that ended, by reason.",
            (*_LABELS, "finished_reason"),
            registry=self.registry,
        )
        self.finished = {reason: self._success.labels(*self._values, reason) for reason in FINISHED_REASONS}
        self.time_to_first_token = self._histogram(
            "vllm:time_to_first_token_seconds", "From a request's arrival to its first token.", _TTFT_BUCKETS
        )
        self.inter_token_latency = self._histogram(
            "vllm:inter_token_latency_seconds", "From a request's token to its next.", _TOKEN_BUCKETS
        )
        self.time_per_output_token = self._histogram(
            "vllm:request_time_per_output_token_seconds", "A request's mean time between tokens.", _TOKEN_BUCKETS
        )
        self.end_to_end = self._histogram(
            "vllm:e2e_request_latency_seconds", "From a request's arrival to its end.", _REQUEST_BUCKETS
        )
        self._phases = Gauge(
            "octavo:startup_phase_seconds",
            "Seconds that a phase of the engine's start took.",
            (*_LABELS, "phase"),
            registry=self.registry,
        )
        self._lengths: tuple[Histogram, Histogram] | None = None
        self._last: EngineStats | None = None

    def engine_ready(self, ready: Ready) -> None:
        """The engine has started, maybe anew. Its size is told before its first step brings the rest."""
        self._kv_total.set(ready.num_blocks * ready.block_size)
        for phase, seconds in ready.phases.items():
            self._phases.labels(*self._values, phase).set(seconds)
        if self._lengths is None:
            buckets = length_buckets(ready.max_model_len)
            self._lengths = (
                self._histogram("vllm:request_prompt_tokens", "Tokens of a request's prompt.", buckets),
                self._histogram("vllm:request_generation_tokens", "Tokens of a request's answer.", buckets),
            )

    def engine_stats(self, stats: EngineStats | None) -> None:
        """The engine's state after a step; None when it is gone, and all it held with it."""
        last, self._last = self._last, stats
        self._running.set(stats.running if stats else 0)
        self._waiting.set(stats.waiting if stats else 0)
        self._waiting_tokens.set(stats.waiting_prompt_tokens if stats else 0)
        self._kv_usage.set(stats.kv_blocks_used / max(1, stats.kv_blocks_total) if stats else 0)
        self._kv_used.set(stats.kv_blocks_used * stats.block_size if stats else 0)
        self._kv_total.set(stats.kv_blocks_total * stats.block_size if stats else 0)
        if stats is not None:
            self._preemptions.inc(stats.preemptions - (last.preemptions if last else 0))

    def request_lengths(self, prompt_tokens: int, generation_tokens: int) -> None:
        """A request has ended."""
        if self._lengths is not None:
            self._lengths[0].observe(prompt_tokens)
            self._lengths[1].observe(generation_tokens)

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """(body, content type) for a scrape with this Accept header."""
        encode, content_type = prometheus_client.exposition.choose_encoder(accept)
        return encode(self.registry), content_type

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, _LABELS, registry=self.registry).labels(*self._values)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, _LABELS, registry=self.registry).labels(*self._values)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...] | list[int]) -> Histogram:
        return Histogram(name, text, _LABELS, registry=self.registry, buckets=buckets).labels(*self._values)


class RequestMetrics:
    """Measures one prompt's way through the engine, from its arrival."""

    def __init__(self, metrics: ServerMetrics, arrival: float, prompt_tokens: int) -> None:
        """`arrival` is by the clock of `metrics`."""
        self._metrics = metrics
        self._arrival = arrival
        self._prompt_tokens = prompt_tokens
        self._tokens = 0
        self._first = self._latest = arrival
        self._begun = self._ended = False

    def tokens(self, count: int) -> None:
        """Some tokens arrived together; none, where only the prompt was to be computed."""
        now, metrics = self._metrics.clock(), self._metrics
        if not self._begun:
            self._begun, self._first = True, now
            metrics.time_to_first_token.observe(now - self._arrival)
            metrics.prompt_tokens.inc(self._prompt_tokens)
        elif count:
            metrics.inter_token_latency.observe(now - self._latest)
        metrics.generation_tokens.inc(count)
        self._tokens += count
        self._latest = now

    def end(self, reason: str) -> None:
        """It has ended for one of `FINISHED_REASONS`; what comes later does not count."""
        if self._ended:
            return
        self._ended, metrics = True, self._metrics
        metrics.finished[reason].inc()
        metrics.end_to_end.observe(metrics.clock() - self._arrival)
        metrics.request_lengths(self._prompt_tokens, self._tokens)
        if self._tokens > 1:
            metrics.time_per_output_token.observe((self._latest - self._first) / (self._tokens - 1))
