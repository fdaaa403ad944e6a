"""HTTP towards replicas: one pool of connections for all."""

import asyncio
import io
import logging
from collections.abc import Mapping
from types import TracebackType
from typing import Final, Self

import aiohttp

from octavo_gateway.replica import Replica

log = logging.getLogger(__name__)

CONNECT_SECONDS: Final = 3.0
LARGE_BYTES: Final = 2**20
MAX_ANSWER_BYTES: Final = 256 * 2**20
PASSED_UP: Final = ("traceparent", "tracestate")
PASSED_DOWN: Final = frozenset(
    {"content-type", "cache-control", "x-accel-buffering", "retry-after", "x-should-retry", "www-authenticate"}
)


class ReplicaLost(Exception):
    """The replica went away before its answer was whole, or could not be `reached` at all: then it had no request."""

    def __init__(self, why: str, *, reached: bool = True) -> None:
        super().__init__(why)
        self.reached = reached


class Exchange:
    """One request to one replica, and its answer as it comes."""

    def __init__(self, replica: Replica, answer: aiohttp.ClientResponse) -> None:
        self.replica = replica
        self.status = answer.status
        self.headers = {name: value for name, value in answer.headers.items() if name.lower() in PASSED_DOWN}
        self.is_limit_of_key = any(name.lower().startswith("x-ratelimit") for name in answer.headers)
        self.latest = asyncio.get_running_loop().time()
        self._answer = answer

    async def piece(self) -> bytes:
        """The next bytes; none at the end.

        Raises:
            ReplicaLost: the connection broke.
        """
        try:
            data = await self._answer.content.readany()
        except (aiohttp.ClientError, OSError) as error:
            raise ReplicaLost(type(error).__name__) from error
        self.latest = asyncio.get_running_loop().time()
        return data

    async def whole(self) -> bytes:
        """All of it.

        Raises:
            ReplicaLost: the connection broke, or it does not end.
        """
        pieces, size = [], 0
        while piece := await self.piece():
            size += len(piece)
            if size > MAX_ANSWER_BYTES:
                raise ReplicaLost("an answer without end")
            pieces.append(piece)
        return b"".join(pieces)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """A connection whose answer was read to its end is used again; any other is closed, which ends its request."""
        if kind is None and self._answer.content.at_eof():
            self._answer.release()
        else:
            self._answer.close()


class ReplicasHttp:
    """Sends requests, with the gateway's own key where it has one."""

    def __init__(self) -> None:
        self.key: str | None = None
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=30.0, enable_cleanup_closed=False)
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=timeout,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent", "Accept-Encoding"),
            read_bufsize=2**18,
        )

    def headers(self, client: Mapping[str, str], request_id: str) -> dict[str, str]:
        """What is said to a replica for a client: whose request it is says our key, if we have one."""
        told = {"content-type": "application/json", "x-request-id": request_id}
        if self.key is not None:
            told["authorization"] = f"Bearer {self.key}"
        elif "authorization" in client:
            told["authorization"] = client["authorization"]
        for name in PASSED_UP:
            if name in client:
                told[name] = client[name]
        return told

    async def send(
        self, replica: Replica, method: str, path: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> Exchange:
        """The head of the answer.

        Raises:
            ReplicaLost: it cannot be reached, or went away before it.
        """
        try:
            answer = await self._session.request(
                method, replica.endpoint.url + path, headers=headers, data=_payload(body), allow_redirects=False
            )
        except aiohttp.ClientConnectorError as error:
            raise ReplicaLost("it cannot be reached", reached=False) from error
        except aiohttp.ServerTimeoutError as error:  # of the connection: nothing else has a limit
            raise ReplicaLost("it cannot be reached", reached=False) from error
        except (aiohttp.ClientError, OSError) as error:
            raise ReplicaLost(type(error).__name__) from error
        return Exchange(replica, answer)

    async def get(self, url: str, *, seconds: float, most: int) -> tuple[int, bytes]:
        """Status and body of a short question of our own.

        Raises:
            ReplicaLost: there is no answer, or a longer one.
        """
        headers = {} if self.key is None else {"authorization": f"Bearer {self.key}"}
        timeout = aiohttp.ClientTimeout(total=seconds)
        try:
            async with self._session.get(url, headers=headers, timeout=timeout, allow_redirects=False) as answer:
                body = await answer.content.read(most + 1)
                while len(body) <= most and (more := await answer.content.read(most + 1 - len(body))):
                    body += more
                if len(body) > most:
                    raise ReplicaLost("too long an answer")
                return answer.status, body
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise ReplicaLost(type(error).__name__) from error

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()


def _payload(body: bytes | None) -> io.BytesIO | bytes | None:
    """A large body is written in pieces, between which others have their turn."""
    return io.BytesIO(body) if body is not None and len(body) > LARGE_BYTES else body
