"""One GET with its redirects, whose credentials go to the first host alone."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Final

import httpx

from octavo_pull.errors import RefusedError
from octavo_pull.plan import Address
from octavo_pull.web import MOST_REDIRECTS, of_status, of_transport, small_body, whole_error

_MOVED: Final = frozenset({301, 302, 303, 307, 308})


@contextlib.contextmanager
def get(
    client: httpx.Client, address: Address, headers: Mapping[str, str], what: str, *, method: str = "GET"
) -> Iterator[httpx.Response]:
    """The answer, whose body is still to be read; its `url` is where the redirects led.

    Raises:
        TransientError: a thing that passes.
        PullError: a thing that does not.
    """
    with contextlib.ExitStack() as stack:
        url, own = httpx.URL(address.url), dict(address.headers)
        for _ in range(MOST_REDIRECTS + 1):
            sent = {**headers, **own}
            try:
                response = stack.enter_context(client.stream(method, url, headers=sent))
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise of_transport(error, url.host) from error
            if response.status_code not in _MOVED or "Location" not in response.headers:
                break
            target = _joined(url, response.headers["Location"], what)
            if (target.scheme, target.host, target.port) != (url.scheme, url.host, url.port):
                own = {}
            url = target
            response.close()
        else:
            raise RefusedError(f"{what}: more than {MOST_REDIRECTS} redirects")
        if not response.is_success:
            raise of_status(whole_error(response), what)
        try:
            yield response
        except httpx.HTTPError as error:  # while the body is read
            raise of_transport(error, url.host) from error


def get_small(
    client: httpx.Client, address: Address, headers: Mapping[str, str], limit: int, what: str
) -> httpx.Response:
    """The answer with its body, of at most `limit` bytes."""
    with get(client, address, headers, what) as response:
        body = small_body(response, limit, what)
        kept = {name: value for name, value in response.headers.items() if name != "content-encoding"}
        return httpx.Response(response.status_code, headers=kept, content=body, request=response.request)


def _joined(url: httpx.URL, location: str, what: str) -> httpx.URL:
    try:
        target = url.join(location)
    except httpx.InvalidURL as error:
        raise RefusedError(f"{what}: {url.host} redirects to no address") from error
    if target.scheme not in ("http", "https") or (url.scheme == "https" and target.scheme == "http"):
        raise RefusedError(f"{what}: {url.host} redirects from {url.scheme} to {target.scheme}")
    return target
