"""Pages under every order of events: a stateful machine, checked after each operation against what must be in them."""

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from octavo_server import page_hash
from octavo_server.engine.request import Request
from page_machine import PageMachine, Sizes, drop_cached

SALTS = (b"", b"", b"", b"another tenant")


class Pages(RuleBasedStateMachine):
    """Operations are drawn as three bytes each: which one, on which request, and how much.

    Many to a rule, because drawing costs more than doing; the invariants are checked after every single one.
    """

    happened: Counter[str]

    @initialize(
        num_blocks=st.integers(2, 10),
        page_size=st.integers(1, 3),
        num_slots=st.sampled_from([4, 0, 1, 2, 8, 16]),
        use_disk=st.sampled_from([True, True, False]),
        window=st.sampled_from([None, None, 3, 5, 9]),
        prefix_caching=st.sampled_from([True, True, True, True, False]),
    )
    def start(
        self, num_blocks: int, page_size: int, num_slots: int, use_disk: bool, window: int | None, prefix_caching: bool
    ) -> None:
        sizes = Sizes(num_blocks, page_size, num_slots, use_disk and num_slots > 0, window, prefix_caching)
        self.machine = PageMachine(sizes)
        self.operations: list[Callable[[int, int], None]] = []
        for operation, weight in (
            (self.fork, 5),
            (self.share, 5),
            (self.allocate, 7),
            (self.append, 5),
            (self.swap, 3),
            (self.recompute, 2),
            (self.free, 4),
            (self.step, 7),
            (self.fail, 1),
            (self.hear_of_loads_and_stores, 5),
            (self.evict_from_disk, 1),
            (self.forget, 1),
            (self.pin_slots, 1),
            (self.restart, 1),
        ):
            self.operations += [operation] * weight

    @rule(program=st.binary(min_size=90, max_size=300))
    def work(self, program: bytes) -> None:
        for at in range(0, len(program) - 2, 3):
            which, on, amount = program[at : at + 3]
            self.operations[which % len(self.operations)](on, amount)
            self.machine.check()
            self.happened["operations"] += 1

    def teardown(self) -> None:
        self.machine.finish()
        self.happened.update(self.machine.counts)

    def running(self, on: int) -> Request | None:
        return self.machine.running[on % len(self.machine.running)] if self.machine.running else None

    def waiting(self, on: int) -> Request | None:
        return self.machine.waiting[on % len(self.machine.waiting)] if self.machine.waiting else None

    def fork(self, on: int, amount: int) -> None:
        """A prompt arrives that goes on where some sequence was cut, so that many begin alike."""
        machine = self.machine
        if len(machine.waiting) >= 4:
            return
        others = [request.token_ids for request in machine.running + machine.waiting] + machine.past
        other = others[on % len(others)] if others else []
        prompt = other[: len(other) if on % 2 else amount % (len(other) + 1)]
        prompt += [(amount >> bit) & 1 for bit in range(1 + on % 8)]
        most = machine.sizes.page_size * (machine.sizes.num_blocks - 1)
        machine.arrive(prompt[:most], SALTS[amount % 4], shared=on % 16 != 2, whole=on % 16 == 4)

    def share(self, on: int, amount: int) -> None:
        if (request := self.waiting(on)) is not None:
            self.machine.admit(request, 1 + amount % 12)

    def allocate(self, on: int, amount: int) -> None:
        if (request := self.running(on)) is not None:
            self.machine.grow(request, 1 + amount % 6)

    def append(self, on: int, amount: int) -> None:
        if (request := self.running(on)) is not None:
            self.machine.generate(request, amount % 2)

    def swap(self, on: int, _amount: int) -> None:
        if (request := self.running(on)) is not None:
            self.machine.preempt(request, swap=True)

    def recompute(self, on: int, _amount: int) -> None:
        if (request := self.running(on)) is not None:
            self.machine.preempt(request, swap=False)

    def free(self, on: int, amount: int) -> None:
        if (request := (self.waiting if amount % 3 == 0 else self.running)(on)) is not None:
            self.machine.end(request)

    def step(self, _on: int, amount: int) -> None:
        for _ in range(1 + amount % 4):
            self.machine.run_step()

    def fail(self, on: int, amount: int) -> None:
        if on % 4 == 0:
            self.machine.fail(behind=amount % 2 == 0)

    def hear_of_loads_and_stores(self, _on: int, amount: int) -> None:
        self.machine.deliver(1 + amount % 8)

    def evict_from_disk(self, _on: int, amount: int) -> None:
        self.machine.shrink_disk(amount % 3)

    def forget(self, on: int, _amount: int) -> None:
        if on % 8 == 0:
            drop_cached(self.machine.cache)

    def pin_slots(self, _on: int, amount: int) -> None:
        if self.machine.host.num_slots < 16:
            self.machine.pin_slots(amount % 3)

    def restart(self, on: int, _amount: int) -> None:
        """All but the files is gone; in an orderly one what is cached is written to files before."""
        if self.machine.sizes.use_disk:
            if on % 2:
                self.machine.flush()
            self.happened.update(self.machine.counts)
            self.machine = PageMachine(self.machine.sizes, self.machine.on_disk, self.machine.past)


def run(at_least: int) -> Counter[str]:
    """At least so many operations, and what happened in them."""
    Pages.happened = Counter()
    while Pages.happened["operations"] < at_least:
        run_state_machine_as_test(Pages, settings=settings(max_examples=50, stateful_step_count=8, deadline=None))
    return Pages.happened


def test_pages_hold_what_their_requests_computed_whatever_happens_in_whatever_order() -> None:
    happened = run(100_000)
    for event in ("admitted", "hit", "swapped", "resumed", "out", "back", "stored", "loaded", "missed", "failed"):
        assert happened[event] > 0, f"{event} never happened: {happened}"


@pytest.mark.parametrize("names", [1, 3])
def test_pages_whose_names_collide_are_never_taken_for_each_other(names: int, monkeypatch: pytest.MonkeyPatch) -> None:
    extend = page_hash.extend
    monkeypatch.setattr(page_hash, "extend", lambda parent, tokens: bytes([extend(parent, tokens)[0] % names]) * 16)
    assert run(15_000)["hit"] > 0
