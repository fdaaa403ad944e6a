"""What replicas tell of themselves, asked every second: their load, whether they are back, and what they serve."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from octavo_common.names import (
    METRIC_KV_CACHE_USAGE,
    METRIC_KV_TOKENS_TOTAL,
    METRIC_REQUESTS_RUNNING,
    METRIC_REQUESTS_WAITING,
    METRIC_WAITING_PROMPT_TOKENS,
)
from octavo_gateway.model_pool import ModelPool
from octavo_gateway.replica import Replica, Sample
from octavo_gateway.replicas_http import ReplicaLost, ReplicasHttp

log = logging.getLogger(__name__)

EVERY_SECONDS: Final = 1.0
ANSWER_SECONDS: Final = 2.0
MAX_BYTES: Final = 4 * 2**20
AT_ONCE: Final = 32
_READ: Final = tuple(
    name.encode()
    for name in (
        METRIC_REQUESTS_RUNNING,
        METRIC_REQUESTS_WAITING,
        METRIC_KV_CACHE_USAGE,
        METRIC_KV_TOKENS_TOTAL,
        METRIC_WAITING_PROMPT_TOKENS,
    )
)


def read_figures(text: bytes) -> dict[str, float]:
    """The sums of the samples that are needed, by name; what is not there is left out."""
    found: dict[str, float] = {}
    for line in text.split(b"\n"):
        name, _, rest = line.partition(b"{")
        if name in _READ:
            try:
                found[name.decode()] = found.get(name.decode(), 0.0) + float(rest.rpartition(b"} ")[2].split()[0])
            except (ValueError, IndexError):
                continue
    return found


class Scraper:
    """Asks all replicas, a bounded number at a time. One that does not answer keeps what it said, for a while."""

    def __init__(self, http: ReplicasHttp, pools: Callable[[], Iterable[ModelPool]]) -> None:
        self._http = http
        self._pools = pools
        self._gate = asyncio.Semaphore(AT_ONCE)
        self._models: dict[str, bytes] = {}

    async def run(self) -> None:
        """Ask, until cancelled."""
        while True:
            pools = list(self._pools())
            async with asyncio.TaskGroup() as group:
                for pool in pools:
                    for replica in list(pool.replicas.values()):
                        group.create_task(self._look(pool, replica))
            await asyncio.sleep(EVERY_SECONDS)

    async def _look(self, pool: ModelPool, replica: Replica) -> None:
        async with self._gate:
            try:
                await self._ask(pool, replica)
            except ReplicaLost as lost:
                log.debug("no figures from a replica: %s", lost)
            except Exception:
                log.exception("the figures of a replica could not be read")

    async def _ask(self, pool: ModelPool, replica: Replica) -> None:
        endpoint, loop = replica.endpoint, asyncio.get_running_loop()
        if not endpoint.ready:
            return
        if replica.failures:
            status, _ = await self._http.get(f"{endpoint.url}/ready", seconds=ANSWER_SECONDS, most=MAX_BYTES)
            if status == 200:
                replica.paused_until, replica.failures = 0.0, 0
                pool.pump()
        own = replica.in_flight, replica.waiting, replica.waiting_tokens
        text = await self._figures(replica)
        replica.heard = loop.time()
        if text is not None:
            replica.sample = _sample(read_figures(text), replica.heard, own)
            pool.pump()
        if pool.card is None:
            pool.card = await self._card(replica, pool.name)

    async def _figures(self, replica: Replica) -> bytes | None:
        """Its metrics, at either port: with an admin port, they are told there alone."""
        endpoint = replica.endpoint
        status, text = await self._http.get(f"{endpoint.url}/metrics", seconds=ANSWER_SECONDS, most=MAX_BYTES)
        if status != 200 and endpoint.metrics_url is not None:
            url = f"{endpoint.metrics_url}/metrics"
            status, text = await self._http.get(url, seconds=ANSWER_SECONDS, most=MAX_BYTES)
        return text if status == 200 else None

    async def _card(self, replica: Replica, name: str) -> bytes | None:
        """What the replica says of the model in its list."""
        url = f"{replica.endpoint.url}/v1/models"
        status, body = await self._http.get(url, seconds=ANSWER_SECONDS, most=MAX_BYTES)
        if status != 200:
            return None
        try:
            models = msgspec.json.decode(body, type=_Models).data
            return next((bytes(each) for each in models if msgspec.json.decode(each, type=_Model).id == name), None)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None


class _Models(msgspec.Struct):
    data: list[msgspec.Raw]


class _Model(msgspec.Struct):
    id: str


def _sample(figures: dict[str, float], at: float, own: tuple[int, int, int]) -> Sample | None:
    """None without the figures that say how much a replica has to do."""
    if METRIC_REQUESTS_RUNNING not in figures or METRIC_REQUESTS_WAITING not in figures:
        return None
    waiting = int(figures[METRIC_REQUESTS_WAITING])
    kv_tokens = figures.get(METRIC_KV_TOKENS_TOTAL)
    return Sample(
        at=at,
        requests=int(figures[METRIC_REQUESTS_RUNNING]) + waiting,
        waiting=waiting,
        waiting_tokens=int(figures.get(METRIC_WAITING_PROMPT_TOKENS, 0)),
        kv_use=figures.get(METRIC_KV_CACHE_USAGE, 0.0),
        kv_tokens=None if not kv_tokens else int(kv_tokens),
        own_requests=own[0],
        own_waiting=own[1],
        own_waiting_tokens=own[2],
    )
