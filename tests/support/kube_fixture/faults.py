"""What a test can do to the road between a client and the API server, and what it can read of the traffic on it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

MUTATING_METHODS = frozenset({"POST", "PUT", "PATCH", "DELETE"})

Outcome = int | Literal["disconnect", "after", "hang"]
Match = Callable[["RequestRecord"], bool]


@dataclass
class RequestRecord:
    """One request as it came in. `status` is None until it is answered, and stays so when the answer is lost."""

    method: str
    path: str
    query: dict[str, str]
    content_type: str
    user_agent: str
    body: bytes
    status: int | None = None

    @property
    def field_manager(self) -> str | None:
        return self.query.get("fieldManager")

    @property
    def watch(self) -> bool:
        return self.method == "GET" and self.query.get("watch") in {"1", "true", "True"}

    @property
    def mutating(self) -> bool:
        """Whether it can change what is stored. A dry run cannot; nor can a review, which is a question put by POST."""
        return self.method in MUTATING_METHODS and "dryRun" not in self.query and not self.plural.endswith("reviews")

    @property
    def plural(self) -> str:
        """The resource that the path names: `deployments` for `/apis/apps/v1/namespaces/a/deployments/b/status`."""
        return self._parts[0] if self._parts else ""

    @property
    def name(self) -> str | None:
        return self._parts[1] if len(self._parts) > 1 else None

    @property
    def subresource(self) -> str | None:
        return self._parts[2] if len(self._parts) > 2 else None

    @property
    def json(self) -> Any:
        """The body, decoded. Raises ValueError where it is not JSON."""
        return json.loads(self.body)

    @property
    def _parts(self) -> list[str]:
        parts = self.path.strip("/").split("/")
        rest = parts[2:] if parts[0] == "api" else parts[3:]
        return rest[2:] if len(rest) > 2 and rest[0] == "namespaces" and rest[2] != "status" else rest

    def __str__(self) -> str:
        manager = f" by {self.field_manager}" if self.field_manager else ""
        return f"{self.method} {self.path}{manager} -> {self.status}"


def not_a_lease(record: RequestRecord) -> bool:
    """What counts as a write where a test does not say: a leader renews its Lease at any moment."""
    return record.plural != "leases"


@dataclass
class WriteFault:
    """One write that is to go wrong. `record` is the request, and `hit` is set once it did.

    With "after" and "hang" that is when the write is done, so that a test can kill whoever waits for the answer.
    """

    countdown: int
    outcome: Outcome
    match: Match
    hit: threading.Event = field(default_factory=threading.Event)
    record: RequestRecord | None = None

    async def happened(self, timeout: float = 20) -> RequestRecord:
        """Wait until it did. Raises TimeoutError."""
        if not await asyncio.to_thread(self.hit.wait, timeout) or self.record is None:
            raise TimeoutError(f"no write went wrong within {timeout} s: {self}")
        return self.record


class Faults:
    """The faults of one control plane. Safe to call from any thread; `reset` ends them all.

    Only what goes through the control plane's `url` is counted, recorded and broken; a test's own requests go to
    `direct_url` and stay out of it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: list[RequestRecord] = []
        self._writes: list[WriteFault] = []
        self.refusing = False
        self.hanging = False
        self.watches_refused = False
        self.lists_stale = False
        self.on_change: Callable[[str], None] = lambda change: None  # set by the proxy, which holds the connections

    def fail_write(self, k: int = 1, status: Outcome = 500, match: Match = not_a_lease) -> WriteFault:
        """Let the k-th mutating request from now (1 is the next one that `match` accepts) go wrong.

        `status`: an HTTP status answers in the server's stead and nothing is written (429 with Retry-After: 1);
        "disconnect" closes the connection, nothing is written; "after" writes and closes the connection, so the
        answer is lost; "hang" writes and never answers.
        """
        if k < 1:
            raise ValueError(f"k counts from 1, got {k}")
        fault = WriteFault(k, status, match)
        with self._lock:
            self._writes.append(fault)
        return fault

    def drop_watches(self) -> None:
        """Close the connection of every open watch. Its client may go on from the version that it knows."""
        self.on_change("drop")

    def expire_watches(self) -> None:
        """End every open watch with 410, and answer 410 to any from before now: clients must list again."""
        self.on_change("expire")

    @contextlib.contextmanager
    def watches_down(self, *, expire: bool = True) -> Iterator[None]:
        """No watch inside the block: open ones are closed, new ones answered 503.

        With `expire`, no watch can go on afterwards from before the end of the block: what was deleted inside it is
        never reported as DELETED, it is only missing from the next list.
        """
        self.watches_refused = True
        self.on_change("drop")
        try:
            yield
        finally:
            if expire:
                self.on_change("expire")
            self.watches_refused = False

    @contextlib.contextmanager
    def stale_lists(self) -> Iterator[None]:
        """Inside the block every list that was asked for before is answered as it was the last time."""
        self.lists_stale = True
        try:
            yield
        finally:
            self.lists_stale = False

    @contextlib.contextmanager
    def unreachable(self, how: Literal["refuse", "hang"] = "refuse") -> Iterator[None]:
        """Inside the block connections are closed unanswered, or requests are taken and never answered."""
        self.hanging, self.refusing = how == "hang", how == "refuse"
        self.on_change("drop")
        try:
            yield
        finally:
            self.hanging = self.refusing = False
            self.on_change("heal")

    def reset(self) -> None:
        """End every fault and forget the requests."""
        with self._lock:
            self._writes.clear()
            self._records.clear()
        self.refusing = self.hanging = self.watches_refused = self.lists_stale = False
        self.on_change("reset")

    @property
    def requests(self) -> list[RequestRecord]:
        """Every request since the last reset, in the order of arrival."""
        with self._lock:
            return list(self._records)

    def writes(self, ignore: Sequence[str] = ("leases",)) -> list[RequestRecord]:
        """The mutating requests since the last reset, but for those to the resources to `ignore`."""
        return [record for record in self.requests if record.mutating and record.plural not in ignore]

    def take(self, record: RequestRecord) -> WriteFault | None:
        """Record a request, and return the fault that strikes it (for the proxy, which sets `hit`)."""
        with self._lock:
            self._records.append(record)
            if not record.mutating:
                return None
            for fault in [fault for fault in self._writes if fault.match(record)]:
                fault.countdown -= 1
                if fault.countdown == 0:
                    self._writes.remove(fault)
                    fault.record = record
                    return fault
            return None
