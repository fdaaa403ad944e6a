"""HTTP as all sources speak it: what an answer means, what is tried again and how long is waited before."""

import contextlib
import random
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import httpx

from octavo_common.version import __version__
from octavo_pull.errors import ChangedError, PullError, RefusedError, UnfinishedError

T = TypeVar("T")

CONNECT_SECONDS: Final = 15.0
MOST_REDIRECTS: Final = 5
LONGEST_RETRY_AFTER: Final = 120.0
LONGEST_ERROR: Final = 8192
_BUSY: Final = frozenset({408, 421, 425, 429, 500, 502, 503, 504, 509, 520, 521, 522, 523, 524, 529})


class TransientError(Exception):
    """Something that passes: try again, after `retry_after` seconds if the server says so."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Patience:
    """How often something is tried without any progress, and how long is waited between: doubling, with jitter."""

    attempts: int = 8
    first_pause: float = 0.5
    longest_pause: float = 30.0

    def pause(self, failures: int, retry_after: float | None) -> float:
        """Seconds to wait after so many failures in a row."""
        doubled = min(self.longest_pause, self.first_pause * 2.0 ** (failures - 1))
        return max(doubled * random.uniform(0.5, 1.0), min(retry_after or 0.0, LONGEST_RETRY_AFTER))


def client(connections: int, seconds: float) -> httpx.Client:
    """A client that follows no redirects by itself: credentials are for the first host alone.

    seconds: that a server may be silent.
    """
    timeout = httpx.Timeout(seconds, connect=min(seconds, CONNECT_SECONDS))
    limits = httpx.Limits(max_connections=connections + 2, max_keepalive_connections=connections + 2)
    headers = {"User-Agent": f"octavo/{__version__}", "Accept-Encoding": "identity"}
    return httpx.Client(timeout=timeout, limits=limits, headers=headers, follow_redirects=False)


def patiently(call: Callable[[], T], patience: Patience, wait: Callable[[float], object], what: str) -> T:
    """`call()`, again and again while it raises TransientError, up to the limit.

    Raises:
        UnfinishedError: it did so every time.
    """
    failures = 0
    while True:
        try:
            return call()
        except TransientError as error:
            failures += 1
            if failures >= patience.attempts:
                raise UnfinishedError(f"{what}: {error}; tried {failures} times") from error
            wait(patience.pause(failures, error.retry_after))


def of_transport(error: httpx.HTTPError | httpx.InvalidURL, host: str) -> TransientError | PullError:
    """What a request that got no answer means."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            text = f"the certificate of {host} is not trusted: {cause.verify_message}; SSL_CERT_FILE names others"
            return RefusedError(text)
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
        return RefusedError(f"{host} sends elsewhere, to no address: {error}")
    return TransientError(f"{host}: {str(error) or type(error).__name__}")


def of_status(response: httpx.Response, what: str) -> TransientError | PullError:
    """What an answer that is no success means. The response's body must have been read."""
    status = response.status_code
    said = spoken(response)
    message = f"{what}: {response.url.host} answers {status}{f': {said}' if said else ''}"
    if status in _BUSY:
        return TransientError(message, retry_after(response))
    if status in (412, 416):
        return ChangedError(f"{what} has changed while it was fetched; run it again")
    return RefusedError(message, status)


def spoken(response: httpx.Response) -> str:
    """The server's own words about an error, on one line."""
    if said := response.headers.get("X-Error-Message"):
        return str(said)[:500]
    try:
        body = response.json()
    except ValueError:
        text = response.text
        is_page = "<html" in text[:500].lower()
        return "" if is_page else " ".join(text.split())[:300]
    return _words(body)[:500]


def _words(body: Any) -> str:
    match body:
        case {"errors": [{"message": str(message), **rest}, *_]}:  # a registry's
            code = rest.get("code")
            return f"{code}: {message}" if code else message
        case {"error": str(message)} | {"message": str(message)}:  # the hub's
            return message
    return ""


def retry_after(response: httpx.Response) -> float | None:
    """Seconds, where the server names them."""
    try:
        return max(0.0, float(response.headers.get("Retry-After", "")))
    except ValueError:
        return None


def whole_error(response: httpx.Response) -> httpx.Response:
    """A streamed error with the beginning of its body, which has no end that must be waited for."""
    body = b""
    with contextlib.suppress(httpx.HTTPError):
        for piece in response.iter_raw():
            body += piece
            if len(body) >= LONGEST_ERROR:
                break
    kept = {name: value for name, value in response.headers.items() if not name.startswith(("content-", "transfer-"))}
    return httpx.Response(response.status_code, headers=kept, content=body[:LONGEST_ERROR], request=response.request)


def small_body(response: httpx.Response, limit: int, what: str) -> bytes:
    """A streamed body of at most `limit` bytes.

    Raises:
        RefusedError: it is longer.
    """
    body = b""
    for piece in response.iter_bytes():
        body += piece
        if len(body) > limit:
            raise RefusedError(f"{what} is longer than {limit} bytes")
    return body
