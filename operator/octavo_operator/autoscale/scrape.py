"""Reads the metrics of replicas and gateways over HTTP: in parallel, and bounded in number, time and bytes.

What is scraped may hang, lie or send without end; whatever it does costs no more than `Bounds` allow, and nobody else.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

import httpx

from octavo_operator.autoscale.exposition import ExpositionError, Values, Wanted
from octavo_operator.autoscale.observation import Sample
from octavo_operator.autoscale.readings import (
    OF_A_GATEWAY,
    OF_A_REPLICA,
    GatewayReading,
    ReadingError,
    gateway_readings,
    replica_sample,
)

ReadT = TypeVar("ReadT")

_REPLICA: Final = Wanted(OF_A_REPLICA)
_GATEWAY: Final = Wanted(OF_A_GATEWAY)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What scraping may take: `seconds` and `bytes` for one answer as a whole, and how many are asked `at_once`."""

    seconds: float = 3.0
    bytes: int = 2 * 2**20
    at_once: int = 64


class ScrapeError(Exception):
    """Nothing usable was told. `kind`: "unreachable", "timeout", "refused" (a status), "too_long" or "malformed"."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Scraper:
    """An asynchronous context, so that connections are kept from one look to the next.

    `count` is called with "ok" or the kind of failure, for each answer that was asked for. `key`: sent to all of them,
    None where metrics need none.
    """

    def __init__(
        self,
        bounds: Bounds | None = None,
        count: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.time,
        key: str | None = None,
    ) -> None:
        self._bounds = bounds or Bounds()
        self._count = count
        self._clock = clock
        self._turns = asyncio.Semaphore(self._bounds.at_once)
        # Proxies of the environment are for the world outside, and where a redirect leads nobody asked for.
        limits = httpx.Limits(max_connections=self._bounds.at_once, max_keepalive_connections=self._bounds.at_once)
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        # Certificates name no pod's address, by which it is asked: who could take that could answer over HTTP as well.
        self._client = httpx.AsyncClient(
            trust_env=False, limits=limits, follow_redirects=False, timeout=None, headers=headers, verify=False
        )

    async def __aenter__(self) -> "Scraper":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def replicas(self, urls: Mapping[str, str]) -> dict[str, Sample]:
        """What the replicas of these URLs (by any key) tell now; those that tell nothing usable are missing."""
        return await self._all(urls, self._replica)

    async def gateways(self, urls: Mapping[str, str]) -> dict[str, dict[str, GatewayReading]]:
        """The same of gateways, each by model."""
        return await self._all(urls, self._gateway)

    async def _all(self, urls: Mapping[str, str], ask: Callable[[str], Awaitable[ReadT]]) -> dict[str, ReadT]:
        async def one(url: str) -> ReadT | None:
            try:
                answer = await ask(url)
            except ScrapeError as error:
                self._count(error.kind)
                return None
            self._count("ok")
            return answer

        answers = await asyncio.gather(*(one(url) for url in urls.values()))
        return {key: answer for key, answer in zip(urls, answers, strict=True) if answer is not None}

    async def _replica(self, url: str) -> Sample:
        return _read(await self._fetch(url), _REPLICA, lambda values: replica_sample(values, self._clock()))

    async def _gateway(self, url: str) -> dict[str, GatewayReading]:
        return _read(await self._fetch(url), _GATEWAY, lambda values: gateway_readings(values, self._clock()))

    async def _fetch(self, url: str) -> bytes:
        """Raises ScrapeError for all but a body of status 200, in time and not too long."""
        async with self._turns:
            try:
                async with asyncio.timeout(self._bounds.seconds):
                    return await self._body(url)
            except TimeoutError as error:
                raise ScrapeError("timeout", f"no whole answer within {self._bounds.seconds:g} s") from error
            except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
                raise ScrapeError("unreachable", f"{type(error).__name__}: {error}") from error

    async def _body(self, url: str) -> bytes:
        # Compressed, a small answer could be a large one.
        headers = {"Accept": "text/plain; version=0.0.4", "Accept-Encoding": "identity"}
        async with self._client.stream("GET", url, headers=headers) as answer:
            if answer.status_code != 200:
                raise ScrapeError("refused", f"HTTP {answer.status_code}")
            if answer.headers.get("Content-Encoding", "identity") != "identity":
                raise ScrapeError("malformed", "compressed, which was not asked for")
            body = bytearray()
            async for piece in answer.aiter_raw():
                body += piece
                if len(body) > self._bounds.bytes:
                    raise ScrapeError("too_long", f"more than {self._bounds.bytes} bytes")
            return bytes(body)


def _read(body: bytes, wanted: Wanted, read: Callable[[Values], ReadT]) -> ReadT:
    try:
        return read(wanted.read(body))
    except (ExpositionError, ReadingError) as error:
        raise ScrapeError("malformed", str(error)) from error
