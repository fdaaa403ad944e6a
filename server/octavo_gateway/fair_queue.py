"""Requests that wait for a replica: bounded in number and bytes, the holders of API keys in turn. Pure."""

from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class Held(Generic[T]):
    """One that waits: whose it is, its bytes, and the tokens of its prompt, estimated."""

    key: str
    size: int
    tokens: int
    item: T


class FairQueue(Generic[T]):
    """Each key's in their order, and the keys in turn: who sends many lets others wait no longer.

    What had begun to be answered goes before all others, and is taken whatever the bounds are.
    """

    def __init__(self, most_requests: int, most_bytes: int) -> None:
        self.most_requests, self._most_bytes = most_requests, most_bytes
        self._begun: deque[Held[T]] = deque()
        self._by_key: OrderedDict[str, deque[Held[T]]] = OrderedDict()
        self._count = self._bytes = self._tokens = 0

    def __len__(self) -> int:
        return self._count

    @property
    def tokens(self) -> int:
        """Of all prompts, estimated."""
        return self._tokens

    def has_room(self, size: int) -> bool:
        """Whether one of so many bytes can be held."""
        return self._count < self.most_requests and self._bytes + size <= self._most_bytes

    def add(self, held: Held[T], *, begun: bool = False) -> None:
        """Behind the others of its key."""
        if begun:
            self._begun.append(held)
        else:
            self._by_key.setdefault(held.key, deque()).append(held)
        self._count += 1
        self._bytes += held.size
        self._tokens += held.tokens

    def first(self) -> Held[T] | None:
        """Whose turn it is."""
        if self._begun:
            return self._begun[0]
        return next(iter(self._by_key.values()))[0] if self._by_key else None

    def take(self) -> None:
        """Let the first one go; then it is the next key's turn."""
        if self._begun:
            self._left(self._begun.popleft())
            return
        key, waiting = next(iter(self._by_key.items()))
        self._left(waiting.popleft())
        if waiting:
            self._by_key.move_to_end(key)
        else:
            del self._by_key[key]

    def remove(self, held: Held[T]) -> bool:
        """It waits no longer, of its own; whether it had waited."""
        waiting = self._begun if held in self._begun else self._by_key.get(held.key)
        if waiting is None or held not in waiting:
            return False
        waiting.remove(held)
        self._left(held)
        if waiting is not self._begun and not waiting:
            del self._by_key[held.key]
        return True

    def _left(self, held: Held[T]) -> None:
        self._count -= 1
        self._bytes -= held.size
        self._tokens -= held.tokens
