"""The command `octavo pull`: exit codes, last lines, kills, two at once, full disks, locks that are left."""

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from model_hosts import Fault, Hub
from octavo_common.pulled_model import MARKER, PARTIAL
from octavo_pull.errors import LONGEST_MESSAGE, UnfinishedError
from octavo_pull.lock import Lock
from octavo_pull.partial import Partial
from octavo_pull.pull import pull
from octavo_pull.source import parse_source
from octavo_pull.tally import Tally
from pulled import command, contents, fetch, model_files, nothing_shows, options
from serving import until

REPO = "team/tiny"
SOURCE = f"hf://{REPO}"
LARGE = model_files(size=24 * 2**20)


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    with Hub(REPO, LARGE) as hub:
        yield hub


@pytest.fixture
def hub(server: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    server.reset()
    server.token = None
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return server


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_done_is_a_line_and_done_again_asks_nobody(hub: Hub, tmp_path: Path) -> None:
    code, out, err = ended(command(SOURCE, tmp_path / "m", "--result-file", tmp_path / "result"))
    commit = hub.branches["main"]
    assert (code, out) == (
        0,
        f"{tmp_path}/m is complete: {SOURCE}@main, revision {commit}, 3 files, 24.0 MiB\n",
    ), err
    size = sum(map(len, LARGE.values()))
    result = {"source": f"{SOURCE}@main", "revision": commit, "files": 3, "bytes": size}
    assert json.loads((tmp_path / "result").read_text()) == result
    hub.asked.clear()
    code, out, _ = ended(command(SOURCE, tmp_path / "m", "--json"))
    last = json.loads(out.splitlines()[-1])
    assert (code, last["event"], last["wasThere"], hub.asked) == (0, "done", True, [])


def test_a_branch_is_resolved_and_nothing_fetched(hub: Hub, tmp_path: Path) -> None:
    commit = hub.branches["main"]
    code, out, err = ended(command(SOURCE, "--resolve", "--result-file", tmp_path / "result"))
    assert (code, out) == (0, f"{commit}\n"), err
    assert json.loads((tmp_path / "result").read_text()) == {"source": f"{SOURCE}@main", "revision": commit}
    assert {path.name for path in tmp_path.iterdir()} == {"result"} and not any(
        "/resolve/" in str(a) for a in hub.asked
    )
    hub.token = "hf_secret"
    code, out, _ = ended(command(SOURCE, "--resolve", "--result-file", tmp_path / "result"))
    assert (code, out) == (2, "") and "401" in (tmp_path / "result").read_text()


@pytest.mark.parametrize("arguments", [[], ["DIR", "--resolve"]])
def test_a_pull_is_into_a_directory_or_only_resolves(hub: Hub, arguments: list[str]) -> None:
    code, _, err = ended(command(SOURCE, *arguments))
    assert code == 2 and "give a DIR to fetch the model into, or --resolve, and not both" in err and hub.asked == []


def test_what_cannot_succeed_exits_with_2_and_a_short_last_line(hub: Hub, tmp_path: Path) -> None:
    hub.token = "hf_secret"
    code, out, err = ended(command(SOURCE, tmp_path / "m", "--json", "--result-file", tmp_path / "result"))
    last = err.splitlines()[-1]
    assert code == 2
    assert last.startswith(f"octavo: pull: {SOURCE}@main: the hub answers 401: Access to model {REPO} is restricted")
    assert len(last) <= LONGEST_MESSAGE + 20
    event = json.loads(out.splitlines()[-1])
    assert (event["event"], event["retryable"]) == ("error", False)
    assert (tmp_path / "result").read_text().strip() == event["message"] == last.removeprefix("octavo: pull: ")


def test_a_pull_that_waits_for_a_busy_hub_can_be_interrupted(hub: Hub, tmp_path: Path) -> None:
    hub.faults = [Fault("/api/", times=1000, status=503, headers={"Retry-After": "0"})]
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        hub.asked.clear()
        process = command(SOURCE, tmp_path / "m")
        until(lambda: hub.count("/api/") >= 2, process)  # it goes on trying
        process.send_signal(number)
        assert ended(process)[0] == code
        assert nothing_shows(tmp_path / "m")
        assert not list((tmp_path / PARTIAL / "m").glob("lock.*"))  # the next one need not wait


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ftp://x/y"], "SOURCE 'ftp://x/y' is none of hf://ORG/NAME"),
        (["https://h/m.tar"], "needs --sha256 HEX, that of the archive"),
        (["https://h/m.tar", "--sha256", "12"], "--sha256 12: a digest is 64 hexadecimal digits"),
        (["https://u:p@h/m.tar", "--sha256", "0" * 64], "a password in an address is seen by all; none is taken"),
        (["https://h/m.tar?key=1", "--sha256", "0" * 64], "an address with ? or # is not taken"),
        (["https://h/model.bin", "--sha256", "0" * 64], "ends neither in .tar"),
        (["hf://a/b/c"], "a repository is ORG/NAME"),
        (["hf://a/b", "--sha256", "0" * 64], "--sha256 is for https:// alone"),
        (["s3://bucket/p", "--endpoint", "nowhere"], "--endpoint 'nowhere' is no http or https address"),
        (["oci://r.test/Name:x"], "a reference is REGISTRY/REPOSITORY:TAG"),
    ],
)
def test_a_source_that_is_none_exits_with_2(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from octavo_cli.main import main

    with pytest.raises(SystemExit) as exited:
        main(["pull", arguments[0], str(tmp_path / "m"), *arguments[1:]])
    assert exited.value.code == 2
    assert message in capsys.readouterr().err


def test_a_pull_that_is_killed_goes_on_where_it_was(hub: Hub, tmp_path: Path) -> None:
    """Of each connection at most what had come since the journal's last line is asked for again."""
    hub.pause_seconds = 0.005
    killed = command(SOURCE, tmp_path / "m", "--connections", "1")
    until(lambda: hub.bodies("/cdn/") > 14 * 2**20, killed)
    killed.kill()
    ended(killed)
    assert nothing_shows(tmp_path / "m")
    until(lambda: all(task.sent for task in hub.asked if "/cdn/" in task.path))
    hub.reset()
    code, _, err = ended(command(SOURCE, tmp_path / "m"))
    assert code == 0, err
    assert contents(tmp_path / "m") == LARGE
    assert hub.count("/api/") == 0  # the plan is the first run's
    assert 8 * 2**20 < hub.bodies("/cdn/") <= (24 - 14 + 4 + 3) * 2**20  # 4 MiB unrecorded, the rest in sockets


def test_two_at_once_fetch_once(hub: Hub, tmp_path: Path) -> None:
    both = [command(SOURCE, tmp_path / "m", "--json") for _ in range(2)]
    ends = [ended(process) for process in both]
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert contents(tmp_path / "m") == LARGE
    assert hub.bodies("/cdn/") == 24 * 2**20
    there = sorted(json.loads(out.splitlines()[-1])["wasThere"] for _, out, _ in ends)
    assert there == [False, True]
    assert {path.name for path in tmp_path.iterdir()} == {"m"}


def test_a_model_never_shows_before_it_is_whole(hub: Hub, tmp_path: Path) -> None:
    hub.pause_seconds = 0.001
    process = command(SOURCE, tmp_path / "m")
    while not (tmp_path / "m").exists():
        assert process.poll() in (None, 0)
    found = contents(tmp_path / "m")  # at the first sight of it
    assert found == LARGE
    assert (tmp_path / "m" / MARKER).is_file()
    assert ended(process)[0] == 0


def test_a_full_disk_is_told_before_it_begins(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("octavo_pull.partial.shutil.disk_usage", lambda _: usage._replace(free=2**20))
    message = r"no room for .*/m: 24\.0 MiB more are needed and 1\.0 MiB are free"
    with pytest.raises(UnfinishedError, match=message):
        fetch(SOURCE, tmp_path / "m")
    assert hub.count("/resolve/") == 0


def test_a_disk_that_fills_up_is_told_and_what_came_is_kept(hub: Hub, tmp_path: Path) -> None:
    """A limit on the size of files acts as a full disk does, if its signal is ignored: EFBIG; a tmpfs gives ENOSPC."""
    mount = tmp_path / "small"
    mount.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", mount], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root mounts a tmpfs")
    try:
        done = threading.Event()

        def fill() -> None:
            """Somebody else writes while the download is under way."""
            until(lambda: hub.bodies("/cdn/") > 4 * 2**20)
            (mount / "other").write_bytes(bytes(14 * 2**20))
            done.set()

        hub.pause_seconds = 0.002
        threading.Thread(target=fill, daemon=True).start()
        with pytest.raises(UnfinishedError, match=r"no room for .*/m: [0-9.]+ MiB more are needed and .* are free"):
            fetch(SOURCE, mount / "m")
        assert done.wait(10)
        assert nothing_shows_but(mount, "other")
        (mount / "other").unlink()
        hub.reset()
        fetch(SOURCE, mount / "m")
        assert contents(mount / "m") == LARGE
        assert hub.bodies("/cdn/") < 22 * 2**20  # some of it was there
    finally:
        subprocess.run(["umount", "--lazy", mount], check=True)


def nothing_shows_but(directory: Path, *names: str) -> bool:
    return {path.name for path in directory.iterdir()} <= {PARTIAL, *names}


def test_a_lock_whose_heart_has_stopped_is_taken_over(hub: Hub, tmp_path: Path) -> None:
    """As of another machine's puller that died: nothing tells but that its file no longer changes."""
    directory = tmp_path / "locks"
    looks: list[str] = []

    def waiting(host: str) -> bool:
        looks.append(host)
        return False

    quick = {"beat_seconds": 0.02, "stale_seconds": 0.4, "poll_seconds": 0.02}
    first = Lock(directory, waiting, **quick)
    first._me["host"] = "another"
    with first:
        second = Lock(directory, waiting, **quick)
        entered = threading.Event()

        def enter() -> None:
            with second:
                entered.set()
                time.sleep(0.2)

        thread = threading.Thread(target=enter)
        thread.start()
        assert not entered.wait(1.0)  # its heart beats
        first._ended.set()  # and stops
        assert entered.wait(10)
        with pytest.raises(UnfinishedError, match=r"another pull .* has taken over"):
            first.check()
        thread.join()
    assert looks[0] == "another"
    assert list(directory.iterdir()) == []


def test_a_holder_that_was_only_slow_stops_when_another_has_taken_over(hub: Hub, tmp_path: Path) -> None:
    partial = Partial(tmp_path / "m")
    hub.pause_seconds = 0.05
    failed: list[Exception] = []

    def slow() -> None:
        try:
            pull(parse_source(SOURCE), tmp_path / "m", options(), Tally())
        except UnfinishedError as error:
            failed.append(error)

    beat = Lock.__init__.__kwdefaults__
    before = dict(beat)
    beat["beat_seconds"] = 0.05
    try:
        thread = threading.Thread(target=slow)
        thread.start()
        until(lambda: hub.bodies("/cdn/") > 2**20)
        (partial.directory / "lock.2").write_text("{}")
        thread.join(30)
    finally:
        beat.update(before)
    assert "has taken over" in str(failed[0])
    assert nothing_shows(tmp_path / "m")
    assert hub.bodies("/cdn/") < 20 * 2**20  # at once, and not when all has come


def test_of_two_that_find_no_lock_one_gets_it(tmp_path: Path) -> None:
    first, second = (Lock(tmp_path, lambda _: False) for _ in range(2))
    assert first._create(1)
    assert not second._create(1)
    assert first.is_mine()
    assert not second.is_mine()


def test_the_lock_of_a_process_of_this_machine_that_died_is_taken_at_once(hub: Hub, tmp_path: Path) -> None:
    hub.pause_seconds = 0.01
    killed = command(SOURCE, tmp_path / "m")
    until(lambda: hub.bodies("/cdn/") > 2**20, killed)
    killed.kill()
    ended(killed)
    assert list((tmp_path / PARTIAL / "m").glob("lock.*"))
    hub.reset()
    begun = time.monotonic()
    assert ended(command(SOURCE, tmp_path / "m"))[0] == 0
    assert time.monotonic() - begun < 30  # and not when the lock is old
    assert os.listdir(tmp_path) == ["m"]  # noqa: PTH208
