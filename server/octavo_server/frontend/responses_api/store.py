"""Responses that may be asked for later, in memory: bounded in bytes, number and age. Each API key has its own.

A conversation is a chain of turns, and each response holds the turn that it ended. A chain counts whole for each of its
responses, although they share it: what is really held is less.
"""

import heapq
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

MAX_RESPONSES: Final = 65_536
_OVERHEAD_BYTES: Final = 1024  # of a response, besides its bytes


@dataclass(frozen=True, slots=True)
class Turn:
    """Items that were added to a conversation, input and output, as JSON lists of them; and the turn before."""

    before: "Turn | None"
    input: bytes
    output: bytes
    size: int = field(init=False)
    """Bytes of the chain."""

    def __post_init__(self) -> None:
        earlier = 0 if self.before is None else self.before.size
        object.__setattr__(self, "size", earlier + len(self.input) + len(self.output) + _OVERHEAD_BYTES)

    def chain(self) -> list["Turn"]:
        """From the first one to this."""
        found = []
        turn: Turn | None = self
        while turn is not None:
            found.append(turn)
            turn = turn.before
        return found[::-1]


@dataclass(frozen=True, slots=True)
class Stored:
    """A response: its JSON, the turn that it ended, and when it was put here (seconds of the monotonic clock)."""

    json: bytes
    turn: Turn
    at: float

    @property
    def size(self) -> int:
        """Bytes that it counts."""
        return len(self.json) + self.turn.size


class _Shelf:
    """The responses of one key, the oldest first."""

    def __init__(self) -> None:
        self.responses: OrderedDict[str, Stored] = OrderedDict()
        self.size = 0

    def take_out(self, response_id: str) -> None:
        self.size -= self.responses.pop(response_id).size


class ResponseStore:
    """Used by the event loop alone. What is over its bounds is forgotten: the oldest of the key that holds most.

    A key is what keeps callers apart (`Caller.salt`); empty without any.
    """

    def __init__(self, most_bytes: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """most_bytes: 0 keeps nothing. seconds: after which a response is forgotten."""
        self._most_bytes, self._seconds, self._clock = most_bytes, seconds, clock
        self._shelves: dict[bytes, _Shelf] = {}
        self._size = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def size(self) -> int:
        """Bytes that are held, counted as above."""
        return self._size

    def put(self, key: bytes, response_id: str, json: bytes, turn: Turn) -> None:
        """Keep a response, if it can be kept at all."""
        self.delete(key, response_id)
        stored = Stored(json, turn, self._clock())
        if stored.size > self._most_bytes:
            return
        self._forget_old()
        shelf = self._shelves.setdefault(key, _Shelf())
        shelf.responses[response_id] = stored
        shelf.size += stored.size
        self._size += stored.size
        self._count += 1
        while self._is_over:
            self._forget_some()

    def get(self, key: bytes, response_id: str) -> Stored | None:
        """The response, if this key has one of that id."""
        self._forget_old()
        shelf = self._shelves.get(key)
        return None if shelf is None else shelf.responses.get(response_id)

    def delete(self, key: bytes, response_id: str) -> bool:
        """Whether there was one."""
        shelf = self._shelves.get(key)
        if shelf is None or response_id not in shelf.responses:
            return False
        before = shelf.size
        shelf.take_out(response_id)
        self._size -= before - shelf.size
        self._count -= 1
        if not shelf.responses:
            del self._shelves[key]
        return True

    @property
    def _is_over(self) -> bool:
        return self._size > self._most_bytes or self._count > MAX_RESPONSES

    def _forget_some(self) -> None:
        """Of the key that holds most, until another one does: a large response may push out thousands of small ones."""
        fullest, *others = heapq.nlargest(2, self._shelves.items(), key=lambda entry: entry[1].size)
        (key, shelf), next_size = fullest, others[0][1].size if others else 0
        while self._is_over and shelf.responses and shelf.size >= next_size:
            self.delete(key, next(iter(shelf.responses)))

    def _forget_old(self) -> None:
        for key, response_id in list(self._old()):
            self.delete(key, response_id)

    def _old(self) -> Iterator[tuple[bytes, str]]:
        limit = self._clock() - self._seconds
        for key, shelf in self._shelves.items():
            for response_id, stored in shelf.responses.items():
                if stored.at >= limit:
                    break  # those behind it are younger
                yield key, response_id
