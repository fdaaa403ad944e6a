"""Bytes of a file from where it is to the disk: one request, its answer looked at, what comes written and recorded."""

import os
import re
import threading
import time
from collections.abc import Iterator
from typing import Final

import httpx

from octavo_pull.errors import ChangedError, RefusedError
from octavo_pull.http_get import get
from octavo_pull.partial import Partial
from octavo_pull.plan import Address, File, Origin
from octavo_pull.tally import Tally
from octavo_pull.web import TransientError

# At most so much of each connection is fetched again after a kill.
RECORD_BYTES: Final = 4 * 1024 * 1024
RECORD_SECONDS: Final = 2.0
MOVED_SECONDS: Final = 300.0  # signed addresses to which hubs redirect live a few times as long
_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)")


class StoppedError(Exception):
    """Another thread has failed, or the lock is lost."""


class NoRangesError(Exception):
    """The server sends whole files only."""


class Transfer:
    """Fetches ranges of a plan's files into a `Partial`, for several threads, until `stop` is set."""

    def __init__(
        self, client: httpx.Client, origin: Origin, partial: Partial, tally: Tally, stop: threading.Event
    ) -> None:
        self._client, self._origin, self._partial, self._tally, self._stop = client, origin, partial, tally, stop
        self._moved: dict[int, tuple[str, float]] = {}
        self._descriptors: dict[int, int] = {}
        self._opening = threading.Lock()
        self.opaque: set[int] = set()  # files of which the source says that its ETag is no MD5

    def fetch(self, index: int, position: int, end: int, *, whole: bool) -> Iterator[int]:
        """Write what comes of [position, end); yields how far it is, and ends where the answer does.

        whole: ask for all of the file, of a server that knows no ranges.

        Raises:
            NoRangesError: all of it was sent, though a range was asked for.
            TransientError, PullError: it was not sent.
            StoppedError: it is not wanted any more.
            OSError: it cannot be written.
        """
        file = self._partial.plan.files[index]
        headers = {"If-Match": file.etag} if file.etag else {}
        if not whole:
            headers["Range"] = f"bytes={position}-{end - 1}"
        moved = self._remembered(index)
        address = Address(moved) if moved else self._origin.address(file)
        try:
            with get(self._client, address, headers, file.name) as response:
                if _is_elsewhere(response.url, httpx.URL(address.url)):
                    self._moved[index] = (str(response.url), time.monotonic())
                if _is_encrypted(response):
                    self.opaque.add(index)
                _check_answer(response, file, position, whole=whole or end - position == file.size)
                yield from self._write(response, index, position, end)
        except RefusedError as error:
            if not moved:
                raise
            self._moved.pop(index, None)
            raise TransientError("the address it was redirected to has expired") from error

    def settle(self, index: int) -> None:
        """Put what was written on the disk. Raises OSError if that fails."""
        os.fsync(self._descriptor(index))

    def close(self, index: int) -> None:
        """Nothing more is written to the file."""
        with self._opening:
            descriptor = self._descriptors.pop(index, None)
        if descriptor is not None:
            os.close(descriptor)

    def _remembered(self, index: int) -> str:
        """Where the source redirected a moment ago; empty if it is to be asked again."""
        url, since = self._moved.get(index, ("", 0.0))
        return url if time.monotonic() - since < MOVED_SECONDS else ""

    def _write(self, response: httpx.Response, index: int, position: int, end: int) -> Iterator[int]:
        recorded, since, descriptor = position, time.monotonic(), self._descriptor(index)
        try:
            for piece in response.iter_raw():
                if self._stop.is_set():
                    raise StoppedError
                piece = piece[: end - position]
                write_all(descriptor, piece, position)
                position += len(piece)
                self._tally.add(len(piece))
                if position - recorded >= RECORD_BYTES or time.monotonic() - since >= RECORD_SECONDS:
                    self._partial.record(index, recorded, position)
                    recorded, since = position, time.monotonic()
                yield position
                if position == end:
                    break
        finally:
            if position > recorded:
                self._partial.record(index, recorded, position)

    def _descriptor(self, index: int) -> int:
        with self._opening:
            if index not in self._descriptors:
                self._descriptors[index] = self._partial.open(index)
            return self._descriptors[index]


def _is_elsewhere(url: httpx.URL, asked: httpx.URL) -> bool:
    """Whether it is another host: one that the source's own credentials would open could not be asked without them."""
    return (url.scheme, url.host, url.port) != (asked.scheme, asked.host, asked.port)


def _is_encrypted(response: httpx.Response) -> bool:
    """Whether S3 has the object encrypted by a key of its owner's, when it makes the ETag of what it stores."""
    names = ("x-amz-server-side-encryption", "x-amz-server-side-encryption-customer-algorithm")
    told = [response.headers.get(name, "") for name in names]
    return told[0].startswith("aws:kms") or bool(told[1])


def _check_answer(response: httpx.Response, file: File, position: int, *, whole: bool) -> None:
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise RefusedError(f"{file.name}: {response.url.host} sends it compressed, though it was asked not to")
    if response.status_code == 206:
        told = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if told is None or int(told[1]) != position:
            raise TransientError(f"{response.url.host} sends another range than was asked for")
        length = told[3]
    elif whole:
        length = response.headers.get("Content-Length", "*")
    else:
        raise NoRangesError
    if length not in ("*", str(file.size)):
        raise ChangedError(f"{file.name} has {length} bytes and had {file.size}: it has changed; run it again")


def write_all(descriptor: int, data: bytes, position: int) -> None:
    """All of it: a write may be cut short by a disk that is nearly full."""
    while data:
        count = os.pwrite(descriptor, data, position)
        data, position = data[count:], position + count
