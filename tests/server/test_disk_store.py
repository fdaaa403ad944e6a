"""The disk tier: pages survive a restart, and whatever is wrong with a file is a miss."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from octavo_server.step import PageEvent, PageKey
from octavo_server.worker import disk_store, page_file
from octavo_server.worker.disk_store import DiskStore

PAGE_BYTES = 256
MODEL, OTHER_MODEL = "a" * 32, "b" * 32
Open = Callable[..., DiskStore]


def key_of(number: int) -> PageKey:
    return PageKey(number.to_bytes(16, "big"), (number + 1000).to_bytes(16, "big"), number.to_bytes(4, "big") * 4)


def payload_of(number: int) -> memoryview:
    return memoryview(bytes((number * 31 + i) % 256 for i in range(PAGE_BYTES)))


FILE_BYTES = page_file.file_bytes(key_of(0), PAGE_BYTES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "pages"


@pytest.fixture
def open_store(folder: Path) -> Iterator[Open]:
    opened: list[DiskStore] = []

    def make(pages: int = 100, model: str = MODEL, directory: Path = folder) -> DiskStore:
        opened.append(DiskStore(directory, pages * FILE_BYTES, model, PAGE_BYTES))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


def events_of(store: DiskStore, count: int) -> list[PageEvent]:
    """The next events, at least so many."""
    events: list[PageEvent] = []
    deadline = time.monotonic() + 30
    while len(events) < count:
        if time.monotonic() > deadline:
            raise TimeoutError(str(events))
        time.sleep(0.001)
        events += store.poll()
    return events


def load(store: DiskStore, key: PageKey) -> bytes | None:
    into = bytearray(PAGE_BYTES)
    store.load(key, memoryview(into))
    event = next(e for e in iter(lambda: events_of(store, 1).pop(), None) if e.kind in ("loaded", "missed"))
    assert event.page_hash == key.page_hash
    return bytes(into) if event.kind == "loaded" else None


def file_of(folder: Path, number: int, model: str = MODEL) -> Path:
    name = key_of(number).page_hash.hex()
    return folder / model / name[:2] / f"{name}.page"


def numbers(store: DiskStore) -> list[int]:
    return [int.from_bytes(name, "big") for name in store.pages()]


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_a_stored_page_is_read_again_after_a_restart(open_store: Open) -> None:
    store = open_store()
    for number in range(5):
        assert store.store(key_of(number), payload_of(number))
        assert events_of(store, 1) == [PageEvent("stored", key_of(number).page_hash)]
    store.close()
    again = open_store()
    assert numbers(again) == [0, 1, 2, 3, 4]
    assert [load(again, key_of(number)) for number in range(5)] == [bytes(payload_of(number)) for number in range(5)]
    assert load(again, key_of(5)) is None


def test_the_files_are_the_owners_alone(open_store: Open, folder: Path) -> None:
    before = os.umask(0)
    try:
        open_store().write(key_of(1), payload_of(1))
    finally:
        os.umask(before)
    path = file_of(folder, 1)
    assert path.stat().st_mode & 0o777 == 0o600
    assert {parent.stat().st_mode & 0o777 for parent in (path.parent, path.parent.parent, folder)} == {0o700}


def test_another_model_finds_none_of_these_pages(open_store: Open) -> None:
    open_store().write(key_of(1), payload_of(1))
    other = open_store(model=OTHER_MODEL)
    assert other.pages() == []
    assert load(other, key_of(1)) is None
    assert open_store().pages() == [key_of(1).page_hash]


def test_a_flipped_bit_anywhere_is_a_miss_and_the_file_is_removed(open_store: Open, folder: Path) -> None:
    store, path = open_store(), file_of(folder, 1)
    store.write(key_of(1), payload_of(1))
    whole = path.read_bytes()
    assert len(whole) == FILE_BYTES
    for position in range(FILE_BYTES):
        broken = bytearray(whole)
        broken[position] ^= 1 << position % 8
        path.write_bytes(broken)
        assert load(store, key_of(1)) is None, f"byte {position}"
        assert not path.exists()
    path.write_bytes(whole)
    assert load(store, key_of(1)) == payload_of(1)


@pytest.mark.parametrize("length", [0, 1, 55, 56, 75, 76, FILE_BYTES - PAGE_BYTES, FILE_BYTES - 1])
def test_a_short_file_is_a_miss(open_store: Open, folder: Path, length: int) -> None:
    store, path = open_store(), file_of(folder, 1)
    store.write(key_of(1), payload_of(1))
    os.truncate(path, length)
    assert load(store, key_of(1)) is None
    assert not path.exists()


def test_a_file_that_is_too_long_is_a_miss(open_store: Open, folder: Path) -> None:
    store = open_store()
    store.write(key_of(1), payload_of(1))
    with file_of(folder, 1).open("ab") as file:
        file.write(b"x")
    assert load(store, key_of(1)) is None


@pytest.mark.parametrize(
    "key",
    [
        PageKey(key_of(1).page_hash, key_of(2).parent, key_of(1).tokens),
        PageKey(key_of(1).page_hash, key_of(1).parent, key_of(2).tokens),
        PageKey(key_of(1).page_hash, key_of(1).parent, key_of(1).tokens[:-4]),
    ],
    ids=["parent", "tokens", "fewer tokens"],
)
def test_a_page_of_the_same_name_with_another_content_is_a_miss(open_store: Open, key: PageKey) -> None:
    store = open_store()
    store.write(key_of(1), payload_of(1))
    assert load(store, key) is None
    assert store.pages() == []


def test_a_file_under_another_pages_name_is_a_miss(open_store: Open, folder: Path) -> None:
    store = open_store()
    store.write(key_of(1), payload_of(1))
    file_of(folder, 1).rename(file_of(folder, 2))
    assert load(open_store(), key_of(2)) is None


def test_a_link_in_the_place_of_a_page_is_not_followed(open_store: Open, folder: Path, tmp_path: Path) -> None:
    store, elsewhere = open_store(), tmp_path / "elsewhere"
    store.write(key_of(1), payload_of(1))
    file_of(folder, 1).rename(elsewhere)
    file_of(folder, 1).symlink_to(elsewhere)
    assert load(store, key_of(1)) is None
    assert elsewhere.exists()


def test_the_least_recently_used_pages_go_when_the_bound_is_reached(open_store: Open, folder: Path) -> None:
    store = open_store(pages=3)
    for number in range(3):
        store.write(key_of(number), payload_of(number))
    assert load(store, key_of(0)) is not None
    store.write(key_of(3), payload_of(3))
    assert store.poll() == [PageEvent("evicted", key_of(1).page_hash)]
    assert numbers(store) == [2, 0, 3]
    assert files(folder) == {file_of(folder, number) for number in (2, 0, 3)}


def test_use_counts_between_two_looks_at_the_directory(open_store: Open) -> None:
    store = open_store(pages=24)
    for number in range(24):
        store.write(key_of(number), payload_of(number))
    store.rescan()
    assert load(store, key_of(0)) is not None
    store.write(key_of(24), payload_of(24))
    assert numbers(store) == [*range(2, 24), 0, 24]


def test_use_is_remembered_over_a_restart(open_store: Open) -> None:
    store = open_store()
    for number in range(3):
        store.write(key_of(number), payload_of(number), modified=1000.0 + number)
    assert load(store, key_of(0)) is not None
    assert numbers(open_store()) == [1, 2, 0]


def test_a_smaller_bound_holds_from_the_start_and_over_all_models(open_store: Open, folder: Path) -> None:
    for number in range(4):
        model = (MODEL, OTHER_MODEL)[number % 2]
        open_store(model=model).write(key_of(number), payload_of(number), modified=1000.0 + number)
    store = open_store(pages=2)
    assert numbers(store) == [2]
    assert files(folder) == {file_of(folder, 2), file_of(folder, 3, OTHER_MODEL)}
    assert store.poll() == []


def test_files_of_strangers_are_left_alone(open_store: Open, folder: Path) -> None:
    strangers = [
        folder / "notes.page",
        folder / MODEL / "00" / "notes.page",
        folder / "photos" / "00" / f"{0:032x}.page",
        folder / MODEL / "readme",
    ]
    for path in strangers:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(10 * FILE_BYTES))
    store = open_store(pages=1)
    for number in range(3):
        assert store.write(key_of(number), payload_of(number))
    assert files(folder) == {*strangers, file_of(folder, 2)}


def test_a_page_larger_than_the_bound_is_not_stored(open_store: Open) -> None:
    store = open_store(pages=0)
    assert store.store(key_of(1), payload_of(1))
    assert events_of(store, 1) == [PageEvent("dropped", key_of(1).page_hash)]


def test_the_newest_write_goes_first_and_one_that_waits_can_be_withdrawn(open_store: Open) -> None:
    store, gate, begun = open_store(), threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        gate.wait()

    jobs = [store.store(key_of(0), payload_of(0), wait)]
    assert begun.wait(30)
    jobs += [store.store(key_of(number), payload_of(number)) for number in range(1, 6)]
    assert not store.withdraw(key_of(0).page_hash), "it has begun"
    assert store.withdraw(key_of(3).page_hash) and not store.withdraw(key_of(3).page_hash)
    assert [job is not None and job.pending for job in jobs] == [True, True, True, False, True, True]
    assert [store.is_storing(key_of(number).page_hash) for number in (0, 2, 3, 6)] == [True, True, False, False]
    assert store.poll() == []
    gate.set()
    assert events_of(store, 5) == [PageEvent("stored", key_of(number).page_hash) for number in (0, 5, 4, 2, 1)]
    store.close()
    assert not any(job is not None and job.pending for job in jobs)


def chain(length: int) -> list[PageKey]:
    """Pages one behind the other."""
    names = [bytes(16), *(key_of(number).page_hash for number in range(length))]
    keys = [key_of(number) for number in range(length)]
    return [PageKey(key.page_hash, key.parent, key.tokens, names[number]) for number, key in enumerate(keys)]


@pytest.mark.parametrize("way", ["written", "read", "known from its files"])
def test_of_a_sequence_that_is_longer_than_the_bound_the_beginning_stays(open_store: Open, way: str) -> None:
    keys = chain(8)
    if way == "written":
        store = open_store(pages=5)
        for number, key in enumerate(keys):
            store.write(key, payload_of(number))
        assert sorted(numbers(store)) == [0, 1, 2, 3, 7], "what is written last is there in any case"
        return
    store = open_store(pages=8)
    for number, key in enumerate(keys):
        store.write(key, payload_of(number), modified=1000.0)
    for key in keys:
        assert load(store, key) is not None
    if way == "known from its files":
        store = open_store(pages=8)
    for number in range(100, 103):
        store.write(key_of(number), payload_of(number))
    assert sorted(numbers(store)) == [0, 1, 2, 3, 4, 100, 101, 102]


def test_a_load_waits_for_the_store_of_the_same_page(open_store: Open) -> None:
    store, gate, into = open_store(), threading.Event(), bytearray(PAGE_BYTES)
    store.store(key_of(1), payload_of(1), gate.wait)
    store.load(key_of(1), memoryview(into))
    assert store.poll() == []
    gate.set()
    assert [event.kind for event in events_of(store, 2)] == ["stored", "loaded"]
    assert into == payload_of(1)


def test_a_load_touches_its_memory_only_when_it_may(open_store: Open) -> None:
    store, gate, into = open_store(), threading.Event(), bytearray(PAGE_BYTES)
    store.write(key_of(1), payload_of(1))
    asked = threading.Event()

    def ask() -> None:
        asked.set()
        gate.wait()

    store.load(key_of(1), memoryview(into), ask)
    assert asked.wait(30)
    assert into == bytes(PAGE_BYTES)
    gate.set()
    assert events_of(store, 1)[0].kind == "loaded"
    assert into == payload_of(1)


def test_a_directory_that_cannot_be_used_stores_nothing_and_says_so_once(
    open_store: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = open_store(directory=tmp_path / "file" / "pages")
    assert store.pages() == []
    assert not store.write(key_of(1), payload_of(1))
    assert load(store, key_of(1)) is None
    assert not store.store(key_of(2), payload_of(2)), "it is silent for a while after a failure"
    assert not store.write(key_of(3), payload_of(3))
    assert sorted(record.getMessage().split("(")[0] for record in caplog.records) == [
        f"the disk cache in {tmp_path / 'file' / 'pages'} cannot be {what} " for what in ("used", "written")
    ]


def test_a_disk_that_is_full_ends_in_an_event_and_leaves_no_half_page(
    open_store: Open, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store()
    store.write(key_of(1), payload_of(1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES // 2, before[1]))
    try:
        assert store.store(key_of(2), payload_of(2))
        assert events_of(store, 1) == [PageEvent("dropped", key_of(2).page_hash)]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert files(folder) == {file_of(folder, 1)}
    assert "cannot be written (File too large)" in caplog.text
    assert load(store, key_of(1)) == payload_of(1), "what was there before is still served"


def test_two_processes_on_one_directory_see_each_others_pages_and_losses(open_store: Open) -> None:
    one, other = open_store(), open_store()
    one.write(key_of(1), payload_of(1))
    one.write(key_of(2), payload_of(2))
    assert load(other, key_of(1)) == payload_of(1), "the file is there, whether known or not"
    other.rescan()
    assert sorted(numbers(other)) == [1, 2]
    assert {event.page_hash for event in other.poll() if event.kind == "stored"} >= {key_of(2).page_hash}
    small = open_store(pages=1)
    assert numbers(small) == numbers(other)[-1:]
    gone = numbers(other)[0]
    assert load(other, key_of(gone)) is None
    assert one.write(key_of(gone), payload_of(gone)), "a page that another process removed is written again"
    one.rescan()
    assert sorted(numbers(one)) == [1, 2]


def test_the_bound_is_kept_over_what_another_process_writes(open_store: Open, folder: Path) -> None:
    one, other = open_store(pages=16), open_store(pages=16)
    for number in range(0, 200, 2):
        one.write(key_of(number), payload_of(number))
        other.write(key_of(number + 1), payload_of(number + 1))
        assert len(files(folder)) <= 16 + 2 * 2
    one.rescan()
    assert len(files(folder)) <= 16 + 2


def test_processes_that_write_and_evict_at_once_never_read_a_wrong_page(open_store: Open) -> None:
    stores, failures = [open_store(pages=8) for _ in range(3)], []

    def work(store: DiskStore, seed: int) -> None:
        into = bytearray(PAGE_BYTES)
        for step in range(300):
            number = (step * 7 + seed * 3) % 20
            store.write(key_of(number), payload_of(number))
            other = (step * 5 + seed) % 20
            store.load(key_of(other), memoryview(into))
            kinds = [event.kind for event in events_of(store, 1) if event.page_hash == key_of(other).page_hash]
            while not {"loaded", "missed"} & set(kinds):
                kinds += [event.kind for event in events_of(store, 1) if event.page_hash == key_of(other).page_hash]
            if "loaded" in kinds and into != payload_of(other):
                failures.append(other)

    threads = [threading.Thread(target=work, args=(store, seed)) for seed, store in enumerate(stores)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


WRITER = """
import sys
from pathlib import Path
from octavo_server.step import PageKey
from octavo_server.worker.disk_store import DiskStore
store = DiskStore(Path(sys.argv[1]), 2**30, "a" * 32, 2**21)
for number in range(10**6):
    key = PageKey(number.to_bytes(16, "big"), bytes(16), bytes(64))
    store.write(key, memoryview(number.to_bytes(8, "big") * 2**18))
    print(number, flush=True)
"""


@pytest.mark.parametrize("after", [1, 7, 20])
def test_a_process_killed_while_it_writes_leaves_nothing_broken(folder: Path, after: int) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE) as process:
        if process.stdout is None:
            raise RuntimeError("no pipe")
        for _ in range(after):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    store = DiskStore(folder, 2**30, MODEL, 2**21)
    try:
        assert not list(folder.rglob("*.tmp"))
        found = numbers(store)
        assert len(found) >= after
        into = bytearray(2**21)
        for number in found:
            assert page_file.read(
                file_of(folder, number), PageKey(number.to_bytes(16, "big"), bytes(16), bytes(64)), memoryview(into)
            )
            assert into == number.to_bytes(8, "big") * 2**18
    finally:
        store.close()


def test_what_a_dead_process_left_half_done_is_removed_and_what_a_live_one_writes_is_not(
    open_store: Open, folder: Path
) -> None:
    path = file_of(folder, 1)
    path.parent.mkdir(parents=True)
    leftover = path.with_suffix(".dead.tmp")
    leftover.write_bytes(b"half")
    with page_file._temporary(path) as (_, temporary):
        store = open_store()
        assert not leftover.exists()
        assert temporary.exists()
        temporary.unlink()
    assert store.pages() == []


def test_a_thread_survives_what_goes_wrong_in_a_job(open_store: Open, caplog: pytest.LogCaptureFixture) -> None:
    store = open_store()

    def fail() -> None:
        raise RuntimeError("the device is gone")

    store.store(key_of(1), payload_of(1), fail)
    store.load(key_of(2), memoryview(bytearray(PAGE_BYTES)), fail)
    assert {event.kind for event in events_of(store, 2)} == {"dropped", "missed"}
    assert "the device is gone" in caplog.text
    store.store(key_of(1), payload_of(1))
    assert events_of(store, 1)[0].kind == "stored"


def test_a_fingerprint_must_be_one() -> None:
    with pytest.raises(ValueError, match="32 hex digits"):
        DiskStore(Path("unused"), 1, "../../etc", 1)


def test_reads_that_do_not_come_back_are_told_of_and_their_end_too(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, now, gate = open_store(), 0.0, threading.Event()
    monkeypatch.setattr(disk_store.time, "monotonic", lambda: now)
    store.load(key_of(1), memoryview(bytearray(PAGE_BYTES)), ready=lambda: gate.wait())
    now = disk_store.STUCK_SECONDS
    assert store.poll() == []
    now += 0.1
    assert store.poll() == [PageEvent("stuck")]
    assert store.poll() == []
    gate.set()
    found: list[PageEvent] = []
    while len(found) < 2:
        found += store.poll()
    assert found == [PageEvent("missed", key_of(1).page_hash), PageEvent("back")]
    now += 1000
    assert store.poll() == []
