"""The metrics of the engine: what it tells of itself after its steps."""

from collections.abc import Iterable
from typing import Final

from prometheus_client import Metric
from prometheus_client.registry import Collector

from octavo_common import names
from octavo_server.ipc import EngineStats, Ready
from octavo_server.metric_families import SCHEDULE_BUCKETS, STEP_BUCKETS, STEP_TOKEN_BUCKETS, Families

_NOTHING: Final = EngineStats(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0.0)


class EngineFamilies(Collector):
    """What the engine tells of itself after its steps."""

    def __init__(self, families: Families) -> None:
        families.registry.register(self)  # before its own, so that they are up to date when they are asked
        gauge, counter = families.gauge, families.counter
        self._running = gauge(names.METRIC_REQUESTS_RUNNING, "Requests in the running batch.")
        self._waiting = gauge(names.METRIC_REQUESTS_WAITING, "Requests that wait for a place in the batch.")
        self._waiting_tokens = gauge(names.METRIC_WAITING_PROMPT_TOKENS, "Prompt tokens of waiting requests.")
        self._kv_usage = gauge(names.METRIC_KV_CACHE_USAGE, "Share of the KV cache's pages in use, 0 to 1.")
        self._kv_used = gauge(names.METRIC_KV_TOKENS_USED, "Tokens that the KV cache's used pages can hold.")
        self._kv_total = gauge(names.METRIC_KV_TOKENS_TOTAL, "Tokens that the whole KV cache can hold.")
        self._pages = families.gauges(
            "octavo:kv_pages", "Pages of the KV cache, by what they hold.", "state", ("free", "used", "cached")
        )
        self._host_pages = families.gauges(
            "octavo:host_pages", "Pages of the pool in host memory.", "state", ("free", "used")
        )
        self._disk_pages = gauge("octavo:disk_pages", "Cached pages on disk.")
        self._prefill_rate = gauge(names.METRIC_PREFILL_RATE, "Prompt tokens a second, over the last such steps.")
        self._decode_rate = gauge(names.METRIC_DECODE_RATE, "Answer tokens a second, over the last such steps.")
        self._phases = families.gauge_of(
            "octavo:startup_phase_seconds", "Seconds that a phase of the engine's last start took.", "phase"
        )
        self._figures = {
            "weights_bytes": gauge("octavo:startup_weights_bytes", "Weights read at the engine's last start."),
            "weights_seconds": gauge("octavo:startup_weights_seconds", "Seconds that reading them took."),
            "kernels": gauge("octavo:startup_kernels", "Kernels made ready at the engine's last start."),
            "kernels_cached": gauge("octavo:startup_kernels_cached", "Of these, found compiled on disk."),
            "kernels_seconds": gauge("octavo:startup_kernels_seconds", "Seconds until all of them were ready."),
        }
        self.restarts = counter("octavo:engine_restarts", "Starts of the engine after its first.")
        self._steps = counter("octavo:steps", "Steps of the engine.")
        self._preemptions = counter(names.METRIC_PREEMPTIONS, "Requests that gave up their pages to others.")
        self._preemptions_by = families.counters(
            "octavo:preemptions", "Preemptions, by what became of the pages.", "mode", ("swap", "recompute")
        )
        self._queries = counter("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache.")
        self._hits = counter("vllm:prefix_cache_hits", "Of these, tokens found on the device.")
        self._external_queries = counter(
            "vllm:external_prefix_cache_queries", "Prompt tokens looked up in host memory and on disk."
        )
        self._external_hits = counter("vllm:external_prefix_cache_hits", "Of these, tokens found.")
        self._hits_by = families.counters(
            "octavo:prefix_hit_tokens", "Prompt tokens found, by where.", "source", ("device", "host", "disk")
        )
        self._moved = families.counters(
            "octavo:moved_pages",
            "Pages copied between the tiers.",
            "direction",
            ("swap_in", "swap_out", "disk_load", "disk_store"),
        )
        self._disk_dropped = counter(
            "octavo:disk_pages_dropped",
            "Pages lost before they were on disk: host memory let them go or had no place there, or writing failed.",
        )
        self._step_tokens = families.histogram("vllm:iteration_tokens_total", "Tokens of a step.", STEP_TOKEN_BUCKETS)
        self._step_seconds = families.histogram(
            "octavo:step_seconds", "A step, from its launch to its tokens.", STEP_BUCKETS
        )
        self._schedule_seconds = families.histogram(
            "octavo:schedule_seconds",
            "The host's part of a step: deciding it, and taking in its tokens.",
            SCHEDULE_BUCKETS,
        )
        self._shown = self._now = _NOTHING

    def ready(self, ready: Ready) -> None:
        """It has started."""
        self._kv_total.set(ready.num_blocks * ready.block_size)
        self._pages["free"].set(ready.num_blocks)
        for phase, seconds in ready.phases.items():
            self._phases(phase).set(seconds)
        for name, figure in self._figures.items():
            figure.set(ready.figures.get(name, 0.0))

    def state(self, stats: EngineStats | None) -> None:
        """Its state after a step; None when it is gone. There are many steps between two scrapes: those do most."""
        if stats is None:
            self.collect()
            self._shown = self._now = _NOTHING
            self._set(_NOTHING)
            return
        if stats.steps > self._now.steps:
            self._step_seconds.observe(stats.step_seconds)
            self._schedule_seconds.observe(stats.schedule_seconds)
            self._step_tokens.observe(stats.step_tokens)
        self._now = stats

    def collect(self) -> Iterable[Metric]:
        """For the registry, at a scrape: brings gauges and counters up to the newest state. Has none of its own."""
        if self._now is not self._shown:
            self._set(self._now)
            self._count(self._now, self._shown)
            self._shown = self._now
        return ()

    def _set(self, stats: EngineStats) -> None:
        """The gauges."""
        self._running.set(stats.running)
        self._waiting.set(stats.waiting)
        self._waiting_tokens.set(stats.waiting_prompt_tokens)
        self._kv_usage.set(stats.kv_blocks_used / max(1, stats.kv_blocks_total))
        self._kv_used.set(stats.kv_blocks_used * stats.block_size)
        self._kv_total.set(stats.kv_blocks_total * stats.block_size)
        self._pages["used"].set(stats.kv_blocks_used)
        self._pages["cached"].set(stats.kv_blocks_cached)
        self._pages["free"].set(stats.kv_blocks_total - stats.kv_blocks_used - stats.kv_blocks_cached)
        self._host_pages["used"].set(stats.host_blocks_used)
        self._host_pages["free"].set(stats.host_blocks_total - stats.host_blocks_used)
        self._disk_pages.set(stats.disk_blocks)
        self._prefill_rate.set(stats.prefill_tokens_per_second)
        self._decode_rate.set(stats.decode_tokens_per_second)

    def _count(self, now: EngineStats, last: EngineStats) -> None:
        """The counters, by what the engine's have grown."""
        preemptions = now.preemptions - last.preemptions
        swapped = now.preemptions_by_swap - last.preemptions_by_swap
        self._preemptions.inc(preemptions)
        self._preemptions_by["swap"].inc(swapped)
        self._preemptions_by["recompute"].inc(preemptions - swapped)
        queries, device = now.prefix_queries - last.prefix_queries, now.prefix_hits - last.prefix_hits
        host, disk = now.prefix_hits_host - last.prefix_hits_host, now.prefix_hits_disk - last.prefix_hits_disk
        self._queries.inc(queries)
        self._hits.inc(device)
        if now.host_blocks_total:
            self._external_queries.inc(queries - device)
        self._external_hits.inc(host + disk)
        for source, found in (("device", device), ("host", host), ("disk", disk)):
            self._hits_by[source].inc(found)
        self._moved["swap_in"].inc(now.swapped_in - last.swapped_in)
        self._moved["swap_out"].inc(now.swapped_out - last.swapped_out)
        self._moved["disk_load"].inc(now.loaded - last.loaded)
        self._moved["disk_store"].inc(now.stored - last.stored)
        self._disk_dropped.inc(now.dropped - last.dropped)
        self._steps.inc(now.steps - last.steps)
