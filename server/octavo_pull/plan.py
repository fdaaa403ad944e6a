"""What a source was resolved to: files with sizes and digests, pinned, as JSON for the run that goes on with it."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, Self

Unpack = Literal["", "tar", "tar+gzip"]


@dataclass(frozen=True, slots=True)
class File:
    """A thing to fetch.

    name: path in the model's directory; of an archive, what people know it by.
    size: bytes.
    digest: `ALGORITHM:HEX` as `octavo_pull.digests` knows them; None where the source has none.
    address: what the source needs to find it.
    etag: sent with every request, so that a file that changes is noticed; None where the address names the content.
    unpack: how its files are got out of it; empty for a file that is itself one.
    """

    name: str
    size: int
    digest: str | None
    address: str
    etag: str | None = None
    unpack: Unpack = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is fetched of `source` at `revision`."""

    source: str
    revision: str
    files: tuple[File, ...]

    @property
    def total(self) -> int:
        """Bytes to fetch."""
        return sum(file.size for file in self.files)

    def to_json(self) -> str:
        """The plan as text."""
        return json.dumps({"version": 1, **asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises ValueError if this is no plan."""
        try:
            given: dict[str, Any] = json.loads(text)
            return cls(given["source"], given["revision"], tuple(File(**file) for file in given["files"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"no plan: {error!r}") from error


@dataclass(frozen=True, slots=True)
class Address:
    """Where a file is asked for; the headers are for this host alone, not for where it redirects."""

    url: str
    headers: tuple[tuple[str, str], ...] = ()


class Origin(Protocol):
    """A source that can be asked. Its methods are called by several threads."""

    def plan(self) -> Plan:
        """Resolve it. Raises PullError."""

    def address(self, file: File) -> Address:
        """Where to ask for a file of the plan, with what is needed now. Raises PullError."""

    def renew(self) -> bool:
        """After a 401: get new credentials; False if there are no others."""


def batches(start: int, end: int, size: int) -> Iterator[tuple[int, int]]:
    """[start, end) in ranges of at most `size`."""
    for begin in range(start, end, size):
        yield begin, min(begin + size, end)
