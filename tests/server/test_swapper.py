"""Pages that move between cache, host slots and disk, held against a dictionary of arrays."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from octavo_common.memory import slots_within, spare_slots
from octavo_server.step import PageEvent, PageKey, SchedulerOutput
from octavo_server.worker import host_memory
from octavo_server.worker.disk_store import DiskStore
from octavo_server.worker.host_memory import HostMemory
from octavo_server.worker.models.interface import KVCacheSpec
from octavo_server.worker.page_copies import Moves, split
from octavo_server.worker.page_views import PageViews
from octavo_server.worker.swapper import Swapper

Views = list[tuple[torch.Tensor, torch.Tensor]]
LAYERS, PAGES, BLOCK, HEADS, DIM = 3, 10, 4, 2, 8


def spec(dtype: torch.dtype = torch.float32) -> KVCacheSpec:
    return KVCacheSpec(LAYERS, PAGES, BLOCK, HEADS, DIM, dtype, torch.device("cpu"))


def layer_first(dtype: torch.dtype) -> Views:
    layers = [torch.zeros(2, PAGES, HEADS, BLOCK, DIM, dtype=dtype) for _ in range(LAYERS)]
    return [(layer[0].transpose(1, 2), layer[1].transpose(1, 2)) for layer in layers]


def page_first(dtype: torch.dtype) -> Views:
    return spec(dtype).allocate()


def one_tensor_layer_first(dtype: torch.dtype) -> Views:
    cache = torch.zeros(LAYERS, 2, PAGES, BLOCK, HEADS, DIM, dtype=dtype)
    return [(layer[0], layer[1]) for layer in cache]


def values_before_keys(dtype: torch.dtype) -> Views:
    cache = torch.zeros(2, LAYERS, PAGES, BLOCK, HEADS, DIM, dtype=dtype)
    return [(cache[1, i], cache[0, i]) for i in range(LAYERS)]


def tokens_innermost_and_odd_gaps(dtype: torch.dtype) -> Views:
    """Nothing that a wide copy could use: the last dimension has gaps, and each array begins at an odd place."""
    return [
        tuple(torch.zeros(PAGES, HEADS, DIM, BLOCK + 1, dtype=dtype)[..., 1:].permute(0, 3, 1, 2) for _ in range(2))  # type: ignore[misc]
        for _ in range(LAYERS)
    ]


def at_unequal_distances(dtype: torch.dtype) -> Views:
    cache = torch.zeros(2 * LAYERS + 4, PAGES, BLOCK, HEADS, DIM, dtype=dtype)
    return [(cache[0], cache[1]), (cache[3], cache[4]), (cache[6], cache[9])]


def at_odd_places(dtype: torch.dtype) -> Views:
    """Contiguous in the last dimension, but no wider word fits."""
    cache = torch.zeros(2 * LAYERS, PAGES, BLOCK, HEADS, DIM + 1, dtype=dtype)[..., 1:]
    return [(cache[2 * i], cache[2 * i + 1]) for i in range(LAYERS)]


def every_second_value(dtype: torch.dtype) -> Views:
    cache = torch.zeros(2 * LAYERS, PAGES, BLOCK, HEADS, 2 * DIM, dtype=dtype)[..., ::2]
    return [(cache[2 * i], cache[2 * i + 1]) for i in range(LAYERS)]


LAYOUTS = [
    layer_first,
    page_first,
    one_tensor_layer_first,
    values_before_keys,
    tokens_innermost_and_odd_gaps,
    at_unequal_distances,
    at_odd_places,
    every_second_value,
]


def page_of(cache: Views, page: int) -> torch.Tensor:
    """[2 * layers, block, heads, dim]: K0, V0, K1, …"""
    return torch.stack([array[page] for layer in cache for array in layer])


def fill(cache: Views, page: int, seed: int) -> torch.Tensor:
    """Random content, which is returned."""
    generator = torch.Generator().manual_seed(seed)
    for layer in cache:
        for array in layer:
            array[page] = torch.randn(BLOCK, HEADS, DIM, generator=generator).to(array.dtype)
    return page_of(cache, page)


def all_slots(swapper: Swapper) -> Swapper:
    while swapper.grow():
        continue
    return swapper


def key_of(number: int) -> PageKey:
    return PageKey(number.to_bytes(16, "little"), b"p" * 16, bytes(4 * BLOCK))


def wait_for(swapper: Swapper, done: Callable[[list[PageEvent]], bool]) -> list[PageEvent]:
    events: list[PageEvent] = []
    deadline = time.monotonic() + 30
    while not done(events):
        if time.monotonic() > deadline:
            raise TimeoutError(str(events))
        time.sleep(0.001)
        events += swapper.poll()
    return events


@pytest.fixture
def open_disk(tmp_path: Path) -> Iterator[Callable[..., DiskStore]]:
    opened: list[DiskStore] = []

    def make(page_bytes: int) -> DiskStore:
        opened.append(DiskStore(tmp_path / "pages", 2**24, "0" * 32, page_bytes))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_page_comes_back_as_it_was_into_any_other_page(
    layout: Callable[[torch.dtype], Views], dtype: torch.dtype
) -> None:
    cache = layout(dtype)
    contents = [fill(cache, page, page) for page in range(PAGES)]
    swapper = all_slots(Swapper(cache, spec(dtype), num_slots=8, disk=None))
    swapper.launch(SchedulerOutput(0, swap_out=[(7, 1), (2, 0), (4, 5), (0, 6)]), set())
    for page in (7, 2, 4, 0, 9):
        fill(cache, page, 100 + page)
    swapper.launch(SchedulerOutput(1, swap_in=[(0, 9), (5, 0), (1, 7)]), set())
    assert torch.equal(page_of(cache, 9), contents[2])
    assert torch.equal(page_of(cache, 0), contents[4])
    assert torch.equal(page_of(cache, 7), contents[7])
    for page in (1, 3, 5, 6, 8):
        assert torch.equal(page_of(cache, page), contents[page]), "a page that no move names changed"


def test_caches_of_other_orders_have_the_same_bytes_in_their_slots() -> None:
    slots = []
    for layout in LAYOUTS:
        cache = layout(torch.bfloat16)
        fill(cache, 3, 1)
        views = PageViews(cache)
        out = torch.empty(1, views.page_words, dtype=views.word)
        views.gather(torch.tensor([3]), out)
        slots.append(out.view(torch.uint8))
    assert slots[0].numel() == spec(torch.bfloat16).bytes_per_block
    assert all(torch.equal(slot, slots[0]) for slot in slots)


@pytest.mark.parametrize(
    ("layout", "kernels"),
    [(page_first, 1), (one_tensor_layer_first, 1), (layer_first, LAYERS), (tokens_innermost_and_odd_gaps, 2 * LAYERS)],
)
def test_a_copy_takes_one_kernel_for_arrays_at_equal_distances(
    layout: Callable[[torch.dtype], Views], kernels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, calls = layout(torch.bfloat16), []
    views = PageViews(cache)
    select = torch.index_select
    monkeypatch.setattr(torch, "index_select", lambda *a, **k: calls.append(a) or select(*a, **k))  # type: ignore[func-returns-value]
    views.gather(torch.tensor([3, 1]), torch.empty(2, views.page_words, dtype=views.word))
    assert len(calls) == kernels


def test_a_page_goes_out_before_another_comes_into_it() -> None:
    cache = layer_first(torch.float32)
    first, second = fill(cache, 0, 1), fill(cache, 1, 2)
    swapper = all_slots(Swapper(cache, spec(), num_slots=4, disk=None))
    swapper.launch(SchedulerOutput(0, swap_out=[(1, 2)]), set())
    swapper.launch(SchedulerOutput(1, swap_out=[(0, 3)], swap_in=[(2, 0)]), set())
    assert torch.equal(page_of(cache, 0), second)
    swapper.launch(SchedulerOutput(2, swap_in=[(3, 5)]), set())
    assert torch.equal(page_of(cache, 5), first)


def test_a_page_goes_out_and_in_within_one_step() -> None:
    cache = layer_first(torch.float32)
    content = fill(cache, 0, 1)
    swapper = all_slots(Swapper(cache, spec(), num_slots=4, disk=None))
    swapper.launch(SchedulerOutput(0, swap_out=[(0, 3)], swap_in=[(3, 6)]), set())
    assert torch.equal(page_of(cache, 6), content)


def test_slots_come_in_chunks_and_are_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    page_bytes = spec().bytes_per_block
    monkeypatch.setattr(host_memory, "CHUNK_BYTES", 4 * page_bytes + 1)
    cache = layer_first(torch.float32)
    swapper = Swapper(cache, spec(), num_slots=10, disk=None)
    assert swapper.poll() == []
    assert [swapper.grow() for _ in range(4)] == [True, True, False, False]
    assert [event.count for event in swapper.poll()] == [4, 4, 2]
    assert swapper.host_bytes == 10 * page_bytes
    contents = [fill(cache, page, page) for page in range(PAGES)]
    swapper.launch(SchedulerOutput(0, swap_out=[(page, page) for page in range(PAGES)]), set())  # across the chunks
    swapper.launch(SchedulerOutput(1, swap_in=[(slot, PAGES - 1 - slot) for slot in range(PAGES)]), set())
    assert all(torch.equal(page_of(cache, PAGES - 1 - page), contents[page]) for page in range(PAGES))


def test_neighbouring_slots_are_one_stretch_but_not_across_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "CHUNK_BYTES", 4 * 64)
    host = HostMemory(12, 64, torch.int64, torch.device("cpu"))
    assert host.stretches([0, 1, 2, 6, 7, 8, 9, 11]) == [(0, 0, 3), (3, 6, 2), (5, 8, 2), (7, 11, 1)]


def test_a_system_without_memory_left_gives_the_slots_that_it_has(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    page_bytes = spec().bytes_per_block
    monkeypatch.setattr(host_memory, "CHUNK_BYTES", 4 * page_bytes)
    swapper = Swapper(layer_first(torch.float32), spec(), num_slots=10, disk=None)
    assert swapper.grow()

    def refuse(_num_bytes: int) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(host_memory, "map_memory", refuse)
    assert not swapper.grow()
    assert [event.count for event in swapper.poll()] == [4]
    assert "4 of 10 slots" in caplog.text
    assert swapper.host_bytes == 4 * page_bytes


def test_bandwidth_is_measured_from_real_copies() -> None:
    swapper = all_slots(Swapper(layer_first(torch.float32), spec(), num_slots=4, disk=None))
    guess = swapper.copy_bytes_per_second
    swapper.launch(SchedulerOutput(0, swap_out=[(0, 0), (1, 1)]), set())
    assert guess == 8e9
    assert 0 < swapper.copy_bytes_per_second != guess
    assert swapper.bytes_per_page == spec().bytes_per_block
    assert swapper.workspace_bytes == 0


def test_spare_slots_are_within_the_memory_that_was_given() -> None:
    for total in (0, 1, 2, 3, 10, 100, 10_000):
        for page_bytes in (1024, 2**21, 2**28):
            slots = slots_within(total * page_bytes, page_bytes, disk=True)
            assert slots == 0 or slots + spare_slots(page_bytes, slots) <= total
            assert slots_within(total * page_bytes + page_bytes - 1, page_bytes, disk=False) == total


def moves_of(seed: int) -> tuple[Moves, Moves, set[int]]:
    """Of a step in which slots are taken and left as the scheduler may: outs, ins, pages in flight."""
    draw = random.Random(seed)
    pages, slots = range(6), range(8)
    outs = list(zip(draw.sample(pages, 3), draw.sample(slots[:5], 3), strict=True))
    sources = draw.sample([slot for _, slot in outs] + list(slots[5:]), 4)
    ins = list(zip(sources, draw.sample(pages, 4), strict=True))
    return outs, ins, set(draw.sample(pages, draw.randrange(6)))


def test_moves_that_do_not_wait_for_the_running_step_change_nothing_in_the_result() -> None:
    for seed in range(500):
        check_split(*moves_of(seed))


def check_split(outs: Moves, ins: Moves, in_flight: set[int]) -> None:
    def run(*moves: Callable[[], None]) -> dict[str, str]:
        for move in moves:
            move()
        return dict(memory)

    def copy(outs: Moves, ins: Moves) -> Callable[[], None]:
        def move() -> None:
            for page, slot in outs:
                memory[f"slot {slot}"] = memory[f"page {page}"]
            for slot, page in ins:
                memory[f"page {page}"] = memory[f"slot {slot}"]

        return move

    def finish_step() -> None:
        for page in in_flight:
            memory[f"page {page}"] += " after the step"

    start = {f"{kind} {number}": f"{kind} {number}" for kind in ("page", "slot") for number in range(8)}
    memory = dict(start)
    expected = run(finish_step, copy(outs, ins))
    early, late = split(outs, ins, in_flight)
    memory = dict(start)
    assert run(copy(*early), finish_step, copy(*late)) == expected
    assert {page for page, _ in early[0]} | {page for _, page in early[1]} <= set(range(6)) - in_flight


class Model:
    """What pages, slots and disk must hold; draws steps that keep the scheduler's rules."""

    def __init__(self, seed: int, num_slots: int) -> None:
        self.draw = random.Random(seed)
        self.pages = {page: torch.zeros(0) for page in range(PAGES)}
        self.slots: dict[int, torch.Tensor] = {}
        self.named: set[int] = set()  # slots that were stored, or loaded
        self.loading: dict[int, tuple[int, int]] = {}  # number of the key → slot, and 1 if it must be found
        self.free = set(range(num_slots))
        self.on_disk: dict[int, torch.Tensor] = {}
        self.next_key = 0
        self.counts = {"stored": 0, "dropped": 0, "loaded": 0, "missed": 0}

    def some(self, values: list[int], at_most: int) -> list[int]:
        return self.draw.sample(values, self.draw.randint(0, min(at_most, len(values))))

    def step(self, number: int) -> SchedulerOutput:
        stores, outs, ins, loads = [], [], [], []
        for slot in self.some(sorted(self.slots), 2):
            self.slots.pop(slot)
            self.free.add(slot)
        for page in self.some(list(range(PAGES)), 3):
            if self.free:
                slot = self.draw.choice(sorted(self.free))
                self.free.remove(slot)
                self.slots[slot] = self.pages[page]
                self.named.discard(slot)
                outs.append((page, slot))
        targets, left = self.some(list(range(PAGES)), 3), []
        for page, slot in zip(targets, self.draw.sample(sorted(self.slots), min(3, len(self.slots))), strict=False):
            self.pages[page] = self.slots.pop(slot)
            left.append(slot)
            ins.append((slot, page))
        for slot in self.some(sorted(self.slots.keys() - self.named), 4):
            self.named.add(slot)  # what a slot holds has one name
            stores.append((slot, key_of(self.next_key)))
            self.on_disk[self.next_key] = self.slots[slot]
            self.next_key += 1
        for name in self.some(sorted(self.on_disk.keys() - self.loading.keys()), 2):
            if self.free:
                slot = self.draw.choice(sorted(self.free))
                self.free.remove(slot)
                self.loading[name] = (slot, 1)
                loads.append((key_of(name), slot))
        self.free.update(left)
        return SchedulerOutput(number, swap_out=outs, swap_in=ins, disk_stores=stores, disk_loads=loads)

    def handle(self, event: PageEvent) -> None:
        name = int.from_bytes(event.page_hash, "little")
        self.counts[event.kind] += 1
        if event.kind == "dropped":
            content = self.on_disk.pop(name)
            if name in self.loading:  # its load is under way, and must miss
                self.on_disk[name] = content
                self.loading[name] = (self.loading[name][0], 0)
        if event.kind in ("loaded", "missed"):
            slot, to_be_found = self.loading.pop(name)
            assert (event.kind == "loaded") == bool(to_be_found)
            if event.kind == "loaded":
                self.slots[slot] = self.on_disk[name]
                self.named.add(slot)
            else:
                del self.on_disk[name]
                self.free.add(slot)


@pytest.mark.parametrize("layout", [layer_first, page_first])
@pytest.mark.parametrize("seed", range(4))
def test_any_legal_sequence_of_moves_leaves_what_the_model_says(
    seed: int, layout: Callable[[torch.dtype], Views], open_disk: Callable[..., DiskStore]
) -> None:
    cache = layout(torch.float32)
    swapper = all_slots(Swapper(cache, spec(), num_slots=7, disk=open_disk(spec().bytes_per_block)))
    swapper.poll()
    model = Model(seed, num_slots=7)
    for page in range(PAGES):
        model.pages[page] = fill(cache, page, page)
    for number in range(150):
        swapper.launch(model.step(number), set())
        for page in range(PAGES):
            assert torch.equal(page_of(cache, page), model.pages[page]), f"page {page} after step {number}"
        for page in model.some(list(range(PAGES)), 3):
            model.pages[page] = fill(cache, page, 1000 * number + page)
        if number % 3 == 0 and model.loading:
            for event in wait_for(swapper, lambda found: any(event.kind in ("loaded", "missed") for event in found)):
                model.handle(event)
    assert model.counts["loaded"] > 10
    assert model.counts["stored"] > 10


def test_a_page_on_its_way_to_disk_can_be_read_and_its_slot_reused_at_once(open_disk: Callable[..., DiskStore]) -> None:
    cache = layer_first(torch.float32)
    first, second = fill(cache, 0, 1), fill(cache, 1, 2)
    swapper = all_slots(Swapper(cache, spec(), num_slots=2, disk=open_disk(spec().bytes_per_block)))
    swapper.poll()
    swapper.launch(SchedulerOutput(0, swap_out=[(0, 0)], disk_stores=[(0, key_of(1))]), set())
    swapper.launch(SchedulerOutput(1, swap_out=[(1, 0)], disk_loads=[(key_of(1), 1)]), set())
    kinds = [event.kind for event in wait_for(swapper, lambda found: len(found) == 2)]
    assert kinds == ["stored", "loaded"]
    swapper.launch(SchedulerOutput(2, swap_in=[(0, 5), (1, 6)]), set())
    assert torch.equal(page_of(cache, 5), second)
    assert torch.equal(page_of(cache, 6), first)


class SlowDisk:
    """Holds every write back until it is told to go on."""

    def __init__(self, disk: DiskStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate, self.begun = threading.Event(), threading.Event()
        write = disk.write

        def wait(key: PageKey, payload: memoryview) -> bool:
            self.begun.set()
            self.gate.wait(30)
            return write(key, payload)

        monkeypatch.setattr(disk, "write", wait)


def test_no_step_waits_for_a_slow_disk_and_what_it_does_without_is_what_waited_longest(
    open_disk: Callable[..., DiskStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, disk = layer_first(torch.float32), open_disk(spec().bytes_per_block)
    slow = SlowDisk(disk, monkeypatch)
    swapper = all_slots(Swapper(cache, spec(), num_slots=4, disk=disk))
    assert swapper.host_bytes == (4 + 2) * spec().bytes_per_block
    swapper.poll()
    contents = {}
    for number in range(12):  # the slots are used in turns, as the scheduler does
        contents[number] = fill(cache, number % PAGES, number)
        moves = SchedulerOutput(
            number, swap_out=[(number % PAGES, number % 4)], disk_stores=[(number % 4, key_of(number))]
        )
        swapper.launch(moves, set())
        assert slow.begun.wait(30)
    assert [event.kind for event in swapper.poll()] == ["dropped"] * 6
    slow.gate.set()
    events = wait_for(swapper, lambda found: len(found) == 6)
    order = [int.from_bytes(event.page_hash, "little") for event in events if event.kind == "stored"]
    assert order == [0, 11, 10, 9, 8, 7], "the one under way, four slots, and a spare place"
    swapper.launch(SchedulerOutput(12, disk_loads=[(key_of(7), 0), (key_of(0), 1)]), set())
    wait_for(swapper, lambda found: len(found) == 2)
    swapper.launch(SchedulerOutput(13, swap_in=[(0, 0), (1, 1), (2, 2), (3, 3)]), set())
    for page, number in ((0, 7), (1, 0), (2, 10), (3, 11)):
        assert torch.equal(page_of(cache, page), contents[number])


def test_a_page_that_comes_and_goes_while_the_disk_is_slow_is_written_once_and_takes_one_place(
    open_disk: Callable[..., DiskStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, disk = layer_first(torch.float32), open_disk(spec().bytes_per_block)
    slow = SlowDisk(disk, monkeypatch)
    swapper = all_slots(Swapper(cache, spec(), num_slots=4, disk=disk))
    swapper.poll()
    swapper.launch(SchedulerOutput(0, swap_out=[(0, 0)], disk_stores=[(0, key_of(0))]), set())
    assert slow.begun.wait(30)
    content = fill(cache, 5, 5)
    for step in range(1, 9):
        slot = step % 4
        moves = SchedulerOutput(step, swap_out=[(5, slot)], disk_stores=[(slot, key_of(5))])
        swapper.launch(moves, set())
        swapper.launch(SchedulerOutput(step, swap_in=[(slot, 5)]), set())
    slow.gate.set()
    events = wait_for(swapper, lambda found: len(found) == 2)
    assert {event.page_hash: event.kind for event in events} == {
        key_of(0).page_hash: "stored",
        key_of(5).page_hash: "stored",
    }
    swapper.launch(SchedulerOutput(9, disk_loads=[(key_of(5), 2)]), set())
    wait_for(swapper, lambda found: len(found) == 1)
    swapper.launch(SchedulerOutput(10, swap_in=[(2, 7)]), set())
    assert torch.equal(page_of(cache, 7), content)


def test_a_flush_writes_the_most_wanted_first_and_the_next_start_keeps_those(
    open_disk: Callable[..., DiskStore],
) -> None:
    cache, page_bytes = layer_first(torch.float32), spec().bytes_per_block
    contents = [fill(cache, page, page) for page in range(PAGES)]
    swapper = all_slots(Swapper(cache, spec(), num_slots=4, disk=open_disk(page_bytes)))
    swapper.launch(SchedulerOutput(0, swap_out=[(0, 2)]), set())
    fill(cache, 0, 99)
    wanted = [("device", 5, key_of(5)), ("host", 2, key_of(0)), ("device", 1, key_of(1))]
    assert swapper.flush(wanted, 0.0) == 0  # type: ignore[arg-type]
    assert swapper.flush(wanted, 30.0) == 3  # type: ignore[arg-type]
    again = open_disk(page_bytes)
    assert again.pages() == [key_of(number).page_hash for number in (1, 0, 5)], "least recently used first"
    other = layer_first(torch.float32)
    successor = all_slots(Swapper(other, spec(), num_slots=4, disk=again))
    successor.poll()
    successor.launch(SchedulerOutput(0, disk_loads=[(key_of(number), number % 4) for number in (5, 0, 2)]), set())
    events = wait_for(successor, lambda found: len(found) == 3)
    assert {event.page_hash: event.kind for event in events} == {
        key_of(5).page_hash: "loaded",
        key_of(0).page_hash: "loaded",
        key_of(2).page_hash: "missed",
    }
    successor.launch(SchedulerOutput(1, swap_in=[(1, 7), (0, 8)]), set())
    assert torch.equal(page_of(other, 7), contents[5])
    assert torch.equal(page_of(other, 8), contents[0])


def test_a_flush_stops_at_the_bound_of_the_disk(tmp_path: Path) -> None:
    cache, page_bytes = layer_first(torch.float32), spec().bytes_per_block
    disk = DiskStore(tmp_path, 3 * (page_bytes + 200), "0" * 32, page_bytes)
    swapper = Swapper(cache, spec(), num_slots=4, disk=disk)
    assert swapper.flush([("device", page, key_of(page)) for page in range(6)], 30.0) == 3
    assert sorted(disk.pages()) == [key_of(page).page_hash for page in range(3)]
    swapper.close()


def test_pages_of_another_size_are_refused(open_disk: Callable[..., DiskStore]) -> None:
    with pytest.raises(ValueError, match=r"disk store's pages have 64 bytes, the cache's \d+"):
        Swapper(layer_first(torch.float32), spec(), num_slots=4, disk=open_disk(64))


def test_moves_to_a_disk_that_is_not_there_are_an_error() -> None:
    swapper = all_slots(Swapper(layer_first(torch.float32), spec(), num_slots=2, disk=None))
    with pytest.raises(RuntimeError, match="no disk tier"):
        swapper.launch(SchedulerOutput(0, disk_loads=[(key_of(1), 0)]), set())
