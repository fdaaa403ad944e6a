"""The discipline of streams and events, on simulated streams that run in any order that the events allow.

Each copy that `StreamCopies` makes is held back in the queue of the stream it was made on; a drawn order then runs the
queues, so that whatever is not ordered by an event does go wrong. A GPU would hide most of that.
"""

import contextlib
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from octavo_server.worker.host_memory import HostMemory
from octavo_server.worker.page_copies import Moves, StreamCopies
from octavo_server.worker.page_views import PageViews

PAGES, SLOTS = 8, 6
HELD_BACK = {torch.ops.aten.copy_.default, torch.ops.aten.index_select.out, torch.ops.aten.index_copy_.default}


class Event:
    """Counts its records as they are enqueued and as they are reached."""

    def __init__(self, device: "Device") -> None:
        self.device, self.enqueued, self.reached = device, 0, 0

    def record(self, stream: "Stream") -> None:
        self.enqueued += 1
        stream.queue.append((lambda: True, self._reach))

    def _reach(self) -> None:
        self.reached += 1

    def query(self) -> bool:
        return self.reached == self.enqueued

    def synchronize(self) -> None:
        while not self.query():
            self.device.run_one()

    def elapsed_time(self, _end: "Event") -> float:
        return 1.0


class Stream:
    """What waits to run: (whether it may, what it does)."""

    def __init__(self) -> None:
        self.queue: deque[tuple[Callable[[], bool], Callable[[], Any]]] = deque()

    def wait_event(self, event: Event) -> None:
        number = event.enqueued
        self.queue.append((lambda: event.reached >= number, lambda: None))

    def wait_stream(self, other: "Stream") -> None:
        del other  # called at the start alone, when nothing is enqueued


class Device(TorchDispatchMode):
    """Two streams, run in a drawn order; copies are held back while it is entered."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.draw, self.compute, self.copy = random.Random(seed), Stream(), Stream()
        self.current = self.compute

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        if func not in HELD_BACK:
            return func(*args, **(kwargs or {}))
        self.current.queue.append((lambda: True, lambda: func(*args, **(kwargs or {}))))
        return (kwargs or {}).get("out", args[0])

    @contextlib.contextmanager
    def using(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    def run_one(self) -> None:
        ready = [stream for stream in (self.compute, self.copy) if stream.queue and stream.queue[0][0]()]
        self.draw.choice(ready).queue.popleft()[1]()

    def run_some(self) -> None:
        for _ in range(self.draw.choice([0, 0, 3, 30])):
            if self.compute.queue or self.copy.queue:
                self.run_one()


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Device]:
    def make(seed: int) -> Device:
        device = Device(seed)
        monkeypatch.setattr(torch.cuda, "Stream", lambda _device: device.copy)
        monkeypatch.setattr(torch.cuda, "Event", lambda *_args: Event(device))
        monkeypatch.setattr(torch.cuda, "stream", device.using)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: device.current)
        monkeypatch.setattr(StreamCopies, "_index", lambda _self, pages: torch.tensor(pages))
        return device

    return make


class Engine:
    """Steps that compute on pages and move them, and beside them what each page and slot must hold."""

    def __init__(self, device: Device) -> None:
        self.device, self.draw = device, device.draw
        self.cache = [(torch.zeros(PAGES, 2, 1, 4, dtype=torch.int32), torch.zeros(PAGES, 2, 1, 4, dtype=torch.int32))]
        views = PageViews(self.cache)
        self.host = HostMemory(SLOTS, views.page_bytes, views.word, torch.device("cpu"))
        self.host.grow()
        self.copies = StreamCopies(views, self.host, torch.device("cpu"), 2)
        self.pages, self.slots = [0] * PAGES, dict[int, int]()
        self.in_flight: deque[tuple[Event, set[int]]] = deque()

    def moves(self) -> tuple[Moves, Moves]:
        outs, ins = [], []
        free = [slot for slot in range(SLOTS) if slot not in self.slots]
        for page in self.draw.sample(range(PAGES), self.draw.randint(0, min(4, len(free)))):
            slot = free.pop()
            self.slots[slot] = self.pages[page]
            outs.append((page, slot))
        sources = self.draw.sample(sorted(self.slots), self.draw.randint(0, min(4, len(self.slots))))
        for slot, page in zip(sources, self.draw.sample(range(PAGES), len(sources)), strict=True):
            self.pages[page] = self.slots.pop(slot)
            ins.append((slot, page))
        return outs, ins

    def step(self, number: int) -> None:
        outs, ins = self.moves()
        if outs or ins:
            with self.device:
                self.copies.move(outs, ins, set().union(*(pages for _, pages in self.in_flight)))
        used = self.draw.sample(range(PAGES), 3)
        for page in used:
            self.pages[page] = (self.pages[page] * 3 + number) % 1009
            self.device.compute.queue.append((lambda: True, lambda page=page: self.compute(page, number)))  # type: ignore[misc]
        self.copies.step_launched()
        done = Event(self.device)
        done.record(self.device.compute)
        self.in_flight.append((done, set(used)))

    def compute(self, page: int, number: int) -> None:
        for array in self.cache[0]:
            array[page] = (array[page] * 3 + number) % 1009

    def finish_oldest(self) -> None:
        self.in_flight.popleft()[0].synchronize()

    def check_slots(self) -> None:
        """As a thread of the disk does: it waits only for the copies."""
        self.copies.done()()
        for slot, value in self.slots.items():
            assert set(self.host.rows(slot, 1).view(torch.int32).flatten().tolist()) == {value}

    def check_pages(self) -> None:
        while self.in_flight:
            self.finish_oldest()
        self.copies.done()()
        for page, value in enumerate(self.pages):
            for array in self.cache[0]:
                assert set(array[page].flatten().tolist()) == {value}


@pytest.mark.parametrize("seed", range(25))
def test_in_any_order_that_the_events_allow_pages_and_slots_are_as_if_all_ran_at_once(
    seed: int, devices: Callable[[int], Device]
) -> None:
    engine = Engine(devices(seed))
    for number in range(80):
        engine.step(number)
        engine.device.run_some()
        while len(engine.in_flight) > engine.draw.choice([0, 1, 1, 1, 2]):
            engine.finish_oldest()
        if number % 7 == 0:
            engine.check_slots()
    engine.check_pages()
    engine.copies.poll()
    assert engine.copies.bandwidth.bytes_per_second != 8e9


def test_a_copy_of_pages_at_rest_is_done_beside_the_running_step_and_the_next_one_does_not_wait_for_the_host(
    devices: Callable[[int], Device],
) -> None:
    engine = Engine(devices(0))
    device, reached = engine.device, []
    device.compute.queue.append((lambda: bool(reached), lambda: None))  # a step that takes long
    engine.copies.step_launched()
    with device:
        engine.copies.move([(0, 0), (1, 1)], [], {5})
    engine.copies.done()()
    assert len(device.compute.queue) == 3, "step, its event, and the wait for the copies' own"
    with device:
        engine.copies.move([(5, 2)], [], {5})
    while device.copy.queue and device.copy.queue[0][0]():
        device.copy.queue.popleft()[1]()
    assert device.copy.queue, "the page in flight waits for its step"
    reached.append(True)
    engine.copies.done()()


def test_the_next_step_begins_when_its_pages_were_read_though_they_have_not_reached_the_host(
    devices: Callable[[int], Device],
) -> None:
    engine, begun = Engine(devices(0)), []
    with engine.device:
        engine.copies.move([(0, 0), (1, 3)], [], set())
    engine.device.compute.queue.append((lambda: True, lambda: begun.append(len(engine.device.copy.queue))))
    while not begun:
        queue = engine.device.compute.queue if engine.device.compute.queue[0][0]() else engine.device.copy.queue
        queue.popleft()[1]()
    assert begun == [3], "two copies to the host and their event are still to come"


def test_bandwidth_is_that_of_the_bytes_in_all_and_the_latest_count_most() -> None:
    from octavo_server.worker.page_copies import Bandwidth

    bandwidth = Bandwidth()
    assert bandwidth.bytes_per_second == 8e9
    bandwidth.add(1000, 1.0)
    bandwidth.add(1, 1.0)
    assert 450 < bandwidth.bytes_per_second < 500
    for _ in range(60):
        bandwidth.add(3000, 1.0)
    assert 2990 < bandwidth.bytes_per_second <= 3000
