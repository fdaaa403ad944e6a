"""What `/metrics` tells: names, labels and buckets of vLLM's endpoint where vLLM has the figure, else `octavo:`.

`docs/metrics.md` lists them all. Prompt and answer tokens are counted here, where they reach a client, and not in the
engine: tokens that a stop string overran count nowhere. The engine's own counters begin anew with each of its starts;
those here go on.
"""

import time
from collections.abc import Callable
from typing import Final

import prometheus_client

from octavo_server.config import EngineConfig
from octavo_server.engine_metrics import EngineFamilies
from octavo_server.ipc import EngineStats, Ready, RequestOutput
from octavo_server.metric_families import (
    CHOICES_BUCKETS,
    PREEMPTIONS_BUCKETS,
    REQUEST_BUCKETS,
    TOKEN_BUCKETS,
    TTFT_BUCKETS,
    Families,
    Histogram,
    length_buckets,
)

FINISHED_REASONS: Final = ("stop", "length", "abort", "error")
PROMPT_SOURCES: Final = ("local_compute", "local_cache_hit", "external_kv_transfer")


class ServerMetrics:
    """The metrics of one served model."""

    def __init__(
        self, model_name: str, config: EngineConfig | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`config` is what `vllm:cache_config_info` shows, with what the engine tells when it is ready."""
        families = Families(model_name)
        self.registry = families.registry
        self.clock = clock
        self.requests = RequestFamilies(families)
        self._engine = EngineFamilies(families)
        self._families = families
        self._config = config
        self._started = False

    def engine_ready(self, ready: Ready) -> None:
        """The engine has started, maybe anew. Its size is told before its first step brings the rest."""
        self._engine.ready(ready)
        if self._started:
            self._engine.restarts.inc()
            return
        # What depends on the engine's size is made once: another start of it has the same configuration.
        self._started = True
        self.requests.add_lengths(self._families, length_buckets(ready.max_model_len))
        self._families.info(
            "vllm:cache_config_info", "The KV cache's configuration.", _cache_facts(ready, self._config)
        )

    def engine_stats(self, stats: EngineStats | None) -> None:
        """The engine's state after a step; None when it is gone, and all it held with it."""
        self._engine.state(stats)

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """(body, content type) for a scrape with this Accept header."""
        encode, content_type = prometheus_client.exposition.choose_encoder(accept)
        return encode(self.registry), content_type


def _cache_facts(ready: Ready, config: EngineConfig | None) -> dict[str, str]:
    """Spelt as vLLM spells them: by Python's `str`."""
    facts: dict[str, object] = {
        "block_size": ready.block_size,
        "num_gpu_blocks": ready.num_blocks,
        "kv_cache_size_tokens": ready.num_blocks * ready.block_size,
        "enable_prefix_caching": ready.prefix_caching,
    }
    if config is not None:
        for name in ("gpu_memory_utilization", "kv_cache_memory_bytes", "num_gpu_blocks_override", "swap_space"):
            facts[name] = getattr(config, name)
    return {name: str(value) for name, value in facts.items()}


class RequestFamilies:
    """What is measured of requests, where they are answered."""

    def __init__(self, families: Families) -> None:
        counter, histogram = families.counter, families.histogram
        self.prompt_tokens = counter("vllm:prompt_tokens", "Tokens of prompts.")
        self.prompt_tokens_by = families.counters(
            "vllm:prompt_tokens_by_source",
            "Tokens of prompts, by where their K and V came from.",
            "source",
            PROMPT_SOURCES,
        )
        self.prompt_tokens_cached = counter("vllm:prompt_tokens_cached", "Tokens of prompts that a cache saved.")
        self.generation_tokens = families.count("vllm:generation_tokens", "Tokens of answers.")
        self.finished = families.counters(
            "vllm:request_success", "Requests that ended, by reason.", "finished_reason", FINISHED_REASONS
        )
        self.time_to_first_token = histogram(
            "vllm:time_to_first_token_seconds", "From a request's arrival to its first token.", TTFT_BUCKETS
        )
        self.inter_token_latency = histogram(
            "vllm:inter_token_latency_seconds", "From a request's token to its next.", TOKEN_BUCKETS
        )
        self.time_per_output_token = histogram(
            "vllm:request_time_per_output_token_seconds", "A request's mean time between tokens.", TOKEN_BUCKETS
        )
        self.end_to_end = histogram(
            "vllm:e2e_request_latency_seconds", "From a request's arrival to its end.", REQUEST_BUCKETS
        )
        self.queue = histogram(
            "vllm:request_queue_time_seconds", "From a request's arrival to its first step.", REQUEST_BUCKETS
        )
        self.inference = histogram(
            "vllm:request_inference_time_seconds", "From a request's first step to its last token.", REQUEST_BUCKETS
        )
        self.prefill = histogram(
            "vllm:request_prefill_time_seconds", "From a request's first step to its first token.", REQUEST_BUCKETS
        )
        self.decode = histogram(
            "vllm:request_decode_time_seconds", "From a request's first token to its last.", REQUEST_BUCKETS
        )
        self.choices = histogram("vllm:request_params_n", "Answers asked for to a prompt.", CHOICES_BUCKETS)
        self.preemptions = histogram(
            "vllm:request_num_preemptions", "How often a request lost its place.", PREEMPTIONS_BUCKETS
        )
        self._lengths: dict[str, Histogram] = {}

    def add_lengths(self, families: Families, buckets: list[int]) -> None:
        """The histograms of lengths, whose buckets reach up to the context."""
        for name, text in (
            ("request_prompt_tokens", "Tokens of a request's prompt."),
            ("request_generation_tokens", "Tokens of a request's answer."),
            ("request_max_num_generation_tokens", "Tokens of the longest of a prompt's answers."),
            ("request_params_max_tokens", "Most tokens that an answer was allowed."),
            ("request_prefill_kv_computed_tokens", "Tokens of a request's prompt that no cache saved."),
        ):
            self._lengths[name] = families.histogram(f"vllm:{name}", text, buckets)

    def length(self, name: str, tokens: int) -> None:
        """Observe a length; before the engine was ready once, there is none."""
        if name in self._lengths:
            self._lengths[name].observe(tokens)


class PromptMetrics:
    """What is measured once for a prompt, when the last of its `n` answers has ended."""

    def __init__(self, metrics: ServerMetrics, n: int = 1) -> None:
        self._metrics = metrics
        self._n = self._open = n
        self._longest = 0

    def answer_ends(self, tokens: int) -> None:
        """One of the answers ended with this many tokens."""
        self._open -= 1
        self._longest = max(self._longest, tokens)
        if self._open == 0:
            self._metrics.requests.choices.observe(self._n)
            self._metrics.requests.length("request_max_num_generation_tokens", self._longest)


class RequestMetrics:
    """Measures one answer's way through the engine, from its arrival."""

    def __init__(
        self,
        metrics: ServerMetrics,
        arrival: float,
        prompt_tokens: int,
        *,
        max_tokens: int | None = None,
        prompt: PromptMetrics | None = None,
        generates: bool = True,
    ) -> None:
        """`arrival` is by the clock of `metrics`; `prompt` is shared by the answers to one prompt.

        `generates`: False for an embedding, which has no tokens, and so none of the figures of tokens.
        """
        self._metrics, self._requests = metrics, metrics.requests
        self._arrival = arrival
        self._prompt_tokens = prompt_tokens
        self._max_tokens = max_tokens
        self._prompt = prompt if prompt is not None else PromptMetrics(metrics)
        self._generates = generates
        self._tokens = self._cached = self._preemptions = 0
        self._first = self._latest = arrival
        self._scheduled: float | None = None
        self._begun = False
        self.reason: str | None = None  # with which it ended

    def output(self, output: RequestOutput, count: int) -> None:
        """A result of the engine, of whose tokens `count` belong to the answer; none where only the prompt counts."""
        now, requests = self._metrics.clock(), self._requests
        if output.num_preemptions > self._preemptions:
            self._preemptions = output.num_preemptions
        if not self._begun:
            self._begin(output, now)
        elif count:
            requests.inter_token_latency.observe(now - self._latest)
        requests.generation_tokens.inc(count)
        self._tokens += count
        self._latest = now

    def end(self, reason: str) -> None:
        """It has ended for one of `FINISHED_REASONS`; what comes later does not count."""
        if self.reason is not None:
            return
        self.reason, requests = reason, self._requests
        requests.finished[reason].inc()
        requests.end_to_end.observe(self._metrics.clock() - self._arrival)
        requests.length("request_prompt_tokens", self._prompt_tokens)
        if self._max_tokens is not None:
            requests.length("request_params_max_tokens", self._max_tokens)
        requests.preemptions.observe(self._preemptions)
        if self._generates:
            requests.length("request_generation_tokens", self._tokens)
            self._prompt.answer_ends(self._tokens)
        if self._begun:
            self._end_phases()

    def phases(self) -> dict[str, float]:
        """Seconds until its "first_token", in the "queue", of "prefill" and of "decode", as far as it came."""
        if not self._begun:
            return {}
        told = {"first_token": self._first - self._arrival, "decode": self._latest - self._first}
        if self._scheduled is not None:
            told |= {"queue": self._scheduled - self._arrival, "prefill": self._first - self._scheduled}
        return told

    def _begin(self, output: RequestOutput, now: float) -> None:
        requests, cached, external = self._requests, output.num_cached_tokens, output.num_external_tokens
        self._begun, self._first, self._cached = True, now, cached
        self._scheduled = output.first_scheduled
        if self._generates:
            requests.time_to_first_token.observe(now - self._arrival)
        requests.prompt_tokens.inc(self._prompt_tokens)
        requests.prompt_tokens_cached.inc(cached)
        for source, tokens in zip(
            PROMPT_SOURCES, (self._prompt_tokens - cached, cached - external, external), strict=True
        ):
            requests.prompt_tokens_by[source].inc(tokens)

    def _end_phases(self) -> None:
        requests = self._requests
        if self._scheduled is not None:
            requests.queue.observe(self._scheduled - self._arrival)
            requests.prefill.observe(self._first - self._scheduled)
            requests.inference.observe(self._latest - self._scheduled)
        if self._generates:
            requests.decode.observe(self._latest - self._first)
        requests.length("request_prefill_kv_computed_tokens", self._prompt_tokens - self._cached)
        if self._tokens > 1:
            requests.time_per_output_token.observe((self._latest - self._first) / (self._tokens - 1))
