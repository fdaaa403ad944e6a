"""What is kept of responses: against a list of all that was put and not forgotten."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from octavo_server.frontend.responses_api import store as store_module
from octavo_server.frontend.responses_api.store import ResponseStore, Stored, Turn

MOST_BYTES, SECONDS = 20_000, 100.0
KEYS = st.sampled_from([b"", b"a", b"b"])
IDS = st.sampled_from(["r1", "r2", "r3", "r4"])


class Clock:
    """Stands until it is moved."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class StoreMachine(RuleBasedStateMachine):
    """The model is a list in the order of putting: too old is forgotten; while there is too much, the oldest of the
    key that holds most, and of keys that hold as much, of the one that came first."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.store = ResponseStore(MOST_BYTES, SECONDS, self.clock)
        self.model: list[tuple[bytes, str, Stored]] = []
        self.keys: list[bytes] = []
        self.last: Turn | None = None

    def held(self, key: bytes) -> int:
        return sum(stored.size for other, _, stored in self.model if other == key)

    def keep(self, entries: list[tuple[bytes, str, Stored]]) -> None:
        self.model = entries
        present = {key for key, _, _ in entries}
        self.keys = [key for key in self.keys if key in present]

    def forget_old(self) -> None:
        self.keep([entry for entry in self.model if entry[2].at >= self.clock.now - SECONDS])

    @rule(key=KEYS, name=IDS, size=st.integers(0, 12_000), follows=st.booleans())
    def put(self, key: bytes, name: str, size: int, follows: bool) -> None:
        self.last = turn = Turn(self.last if follows else None, b"i" * size, b"")
        self.store.put(key, name, b"json", turn)
        stored = Stored(b"json", turn, self.clock.now)
        self.keep([entry for entry in self.model if entry[:2] != (key, name)])
        if stored.size > MOST_BYTES:
            return
        self.forget_old()
        self.model.append((key, name, stored))
        if key not in self.keys:
            self.keys.append(key)
        while sum(entry[2].size for entry in self.model) > MOST_BYTES:
            fullest = max(self.keys, key=self.held)
            oldest = next(entry for entry in self.model if entry[0] == fullest)
            self.keep([entry for entry in self.model if entry is not oldest])

    @rule(key=KEYS, name=IDS)
    def delete(self, key: bytes, name: str) -> None:
        there = any(entry[:2] == (key, name) for entry in self.model)
        assert self.store.delete(key, name) == there
        self.keep([entry for entry in self.model if entry[:2] != (key, name)])

    @rule(seconds=st.floats(0, 60))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @invariant()
    def the_store_holds_what_the_model_holds(self) -> None:
        self.forget_old()
        for key in (b"", b"a", b"b"):
            for name in ("r1", "r2", "r3", "r4"):
                expected = [stored for other, one, stored in self.model if (other, one) == (key, name)]
                found = self.store.get(key, name)
                assert ([] if found is None else [found]) == expected
        assert self.store.size == sum(entry[2].size for entry in self.model) <= MOST_BYTES
        assert len(self.store) == len(self.model)


StoreMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestStore = StoreMachine.TestCase


def test_a_conversation_counts_whole_for_each_of_its_responses() -> None:
    first = Turn(None, b"12345", b"678")
    second = Turn(first, b"9", b"")
    assert second.size == first.size + len(b"9") + (first.size - 8)
    assert second.chain() == [first, second]


def test_the_number_of_responses_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MAX_RESPONSES", 3)
    store = ResponseStore(10**9, SECONDS, Clock())
    for number in range(5):
        store.put(b"", str(number), b"{}", Turn(None, b"[]", b"[]"))
    assert len(store) == 3
    assert [store.get(b"", str(number)) is not None for number in range(5)] == [False, False, True, True, True]


def test_a_key_that_keeps_much_takes_nothing_from_the_others() -> None:
    store = ResponseStore(MOST_BYTES, SECONDS, Clock())
    store.put(b"careful", "mine", b"{}", Turn(None, b"[]", b"[]"))
    for number in range(50):
        store.put(b"greedy", str(number), b"{}" * 1000, Turn(None, b"[]", b"[]"))
    assert store.get(b"careful", "mine") is not None
    assert store.get(b"greedy", "49") is not None


def test_without_room_nothing_is_kept() -> None:
    store = ResponseStore(0, SECONDS, Clock())
    store.put(b"", "r", b"", Turn(None, b"", b""))
    assert len(store) == store.size == 0
