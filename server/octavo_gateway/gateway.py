"""What a running gateway knows and has: models, replicas, keys, figures."""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

from octavo_common.access.key_files import read_keys
from octavo_common.body_share import Room
from octavo_common.errors import ConfigError, RequestError
from octavo_common.routing import Router, RoutingPolicy
from octavo_gateway.access import Access
from octavo_gateway.attempts import Attempts
from octavo_gateway.config import GatewayConfig
from octavo_gateway.discovery import Fleet, Wishes
from octavo_gateway.fair_queue import FairQueue
from octavo_gateway.means import Means
from octavo_gateway.metrics import GatewayMetrics
from octavo_gateway.model_pool import ModelPool
from octavo_gateway.replicas_http import ReplicasHttp
from octavo_gateway.scrape import Scraper
from octavo_gateway.timing import Targets, Timing

log = logging.getLogger(__name__)

MAX_BODIES_BYTES: Final = 2**30  # of all requests that are open, but for small ones
_SHOWN_MODELS: Final = 20


class Gateway:
    """Made within the event loop, and used by it alone."""

    def __init__(self, config: GatewayConfig) -> None:
        """Raises ConfigError: a key file cannot be used."""
        self.config = config
        self.access = Access(config)
        self.pools: dict[str, ModelPool] = {}
        self.known = False  # whether anything has been said about replicas
        self.draining = False
        self.closing = False  # nothing new is taken
        self.open = 0
        self.room = Room(MAX_BODIES_BYTES)
        self.metrics = GatewayMetrics(self._all_pools)
        self._targets: dict[str, Targets] = {}
        key = self._replica_key()
        self.http = ReplicasHttp()
        self.http.key = key
        attempts = Attempts(config.stall_seconds)
        self.means = Means(self.http, self.metrics, attempts, config.attempts, config.hold_seconds)
        self.scraper = Scraper(self.http, self._all_pools)
        self.idle = asyncio.Event()
        self.idle.set()

    def publish(self, fleet: Fleet, wishes: Mapping[str, Wishes] = MappingProxyType({})) -> None:
        """These models and replicas are there now, and this is said of models."""
        self.known = True
        for gone in self.pools.keys() - fleet.keys():
            pool = self.pools.pop(gone)
            self._targets.pop(gone, None)
            pool.update(())
            pool.end(_no_model(gone, self.pools))
        for name, endpoints in fleet.items():
            self._wish(self._pool(name), wishes.get(name, Wishes()))
            self.pools[name].update(endpoints)
        ready = sum(endpoint.ready for endpoints in fleet.values() for endpoint in endpoints)
        log.info("%d models, %d replicas that are ready", len(fleet), ready)

    def pool(self, model: str) -> ModelPool:
        """The replicas of a model.

        Raises:
            RequestError: 404: there is no such model; or 503, before anything is known of models.
        """
        pool = self.pools.get(model)
        if pool is not None:
            return pool
        if not self.known:
            message = "the gateway does not know yet which models there are"
            raise RequestError(message, code="not_ready", status=503, type="server_error")
        raise _no_model(model, self.pools)

    def read_replica_key(self) -> str | None:
        """Read the gateway's own key again; says so if it is another one.

        Raises:
            ConfigError: its file cannot be used.
        """
        before, self.http.key = self.http.key, self._replica_key()
        return None if before == self.http.key else "the gateway's own key was read again"

    def _replica_key(self) -> str | None:
        if (path := self.config.replica_api_key_file) is None:
            return None
        try:
            return read_keys(path)[0].key
        except ConfigError as error:
            raise ConfigError(f"--replica-api-key-file {error}") from None

    def begins(self) -> None:
        """A request that a drain waits for."""
        self.open += 1
        self.idle.clear()

    def ended(self, timing: Timing) -> None:
        """It has ended: count it."""
        self.open -= 1
        if self.open == 0:
            self.idle.set()
        if timing.model is None:
            return
        metrics, model, key = self.metrics, timing.model, timing.key or ""
        metrics.requests.add(key, model, str(timing.status))
        metrics.tokens.add(key, model, "prompt", amount=timing.prompt_tokens)
        metrics.tokens.add(key, model, "completion", amount=timing.completion_tokens)
        if timing.held > 0.0005:
            metrics.held.labels(model).observe(timing.held)
        if timing.status == 200 and timing.error is None:
            metrics.finished.add(model)
        if timing.first is not None:
            metrics.ttft.labels(model).observe(timing.first - timing.arrival)
        targets = self._targets.get(model)
        if targets is not None and timing.is_late_at_first(targets):
            metrics.late_ttft.add(model)
        if targets is not None and timing.is_late_between(targets):
            metrics.late_tpot.add(model)

    def _all_pools(self) -> Iterable[ModelPool]:
        return list(self.pools.values())

    def _wish(self, pool: ModelPool, wishes: Wishes) -> None:
        config = self.config
        ttft = config.ttft_target if wishes.ttft_target is None else wishes.ttft_target
        tpot = config.tpot_target if wishes.tpot_target is None else wishes.tpot_target
        self._targets[pool.name] = Targets(ttft, config.ttft_target_per_1000_tokens, tpot)
        held = config.hold_requests if wishes.hold_requests is None else wishes.hold_requests
        pool.queue.most_requests = held

    def _pool(self, name: str) -> ModelPool:
        pool = self.pools.get(name)
        if pool is None:
            config = self.config
            router = Router(RoutingPolicy(max_waiting=config.max_waiting))
            pool = ModelPool(name, router, FairQueue(config.hold_requests, config.hold_mib * 2**20))
            pool.on_routed = lambda chosen: self.metrics.routed.add(name, chosen.why)
            self.pools[name] = pool
        return pool


def _no_model(model: str, pools: Iterable[str]) -> RequestError:
    names = sorted(pools)
    known = ", ".join(names[:_SHOWN_MODELS]) + (" and others" if len(names) > _SHOWN_MODELS else "")
    return RequestError(
        f"the model {model[:256]!r} does not exist; served here: {known or 'none'}",
        param="model",
        code="model_not_found",
        status=404,
    )
