"""Files of API keys: what they may hold, what is said of those that cannot be used, and how a change is found."""

import json
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_common.access import file_watch
from octavo_common.access.file_watch import FileWatch
from octavo_common.access.key_files import MAX_FILE_BYTES, MAX_FILES, read_keys
from octavo_common.access.keys import MAX_KEYS, KeyRing
from octavo_common.access.rates import Limits
from octavo_server.config import ServerConfig
from octavo_server.errors import ConfigError

SECRET = "sk-Open5esame"


def ring(*files: Path, **config: Any) -> KeyRing:
    return KeyRing(ServerConfig(model=Path(), api_key_file=files, **config))


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def taken(path: Path, text: str) -> dict[str, str]:
    return {entry.key: entry.name for entry in read_keys(written(path, text))}


# --- what files hold


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("a-key", {"a-key": "keys"}),
        ("\n# comment\n  a-key  \r\n\n", {"a-key": "keys"}),
        ("\ufeffteam: a-key", {"a-key": "team"}),
        ("one\ntwo\n", {"one": "keys/1", "two": "keys/2"}),
        ("team-a: one\n# x\nteam-b:\ttwo\nteam-a: three", {"one": "team-a", "two": "team-b", "three": "team-a"}),
        ("c2VzYW1l==\nab:cd:ef\nteam: x=y:z#", {"c2VzYW1l==": "keys/1", "ab:cd:ef": "keys/2", "x=y:z#": "team"}),
        ("---\n- {name: team, key: one}\n- name: other\n  key: '123'\n", {"one": "team", "123": "other"}),
        (
            json.dumps([{"name": "team", "key": "one"}, {"name": "b", "key": "two"}], indent="\t"),
            {"one": "team", "two": "b"},
        ),
        (json.dumps([{"name": "team", "key": "one"}, {"name": "b", "key": "two"}]), {"one": "team", "two": "b"}),
    ],
)
def test_a_file_holds_lines_or_a_list(tmp_path: Path, text: str, keys: dict[str, str]) -> None:
    assert taken(tmp_path / "keys", text) == keys


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "there is no API key in it"),
        ("# nothing\n\n", "there is no API key in it"),
        ("[]", "there is no API key in it"),
        (f"ok: fine\n{SECRET} {SECRET}", "line 2: it must be NAME: KEY"),
        (f"ok: fine\n{SECRET}:", "line 2: it must be NAME: KEY"),
        (f"team: #{SECRET}", "line 1: it must be NAME: KEY"),
        (f"ok: fine\nteam: {SECRET}\xe9", "line 2: a key has 1 to 4096 visible ASCII"),
        (f"ok: fine\n\n{SECRET * 400}", "line 3: a key has 1 to 4096 visible ASCII"),
        (f"-team: {SECRET}", "line 1: a name has"),
        (f"name: team-a\nkey: {SECRET}", "line 1: it looks like a part of an entry of a list"),
        (f"team: {SECRET}\n---", "line 2: it must be NAME: KEY"),
        (f'team: "{SECRET}"', "line 1: it must be NAME: KEY, or a KEY, without quotes"),
        (f"team:{SECRET}", "line 1: it must be NAME: KEY"),
        (f"OCTAVO_API_KEY={SECRET}", "line 1: it must be NAME: KEY"),
        (json.dumps({"name": "team", "key": SECRET}, separators=(",", ":")), "line 1: it must be NAME: KEY"),
        (b"ok: fine\n\xff" + SECRET.encode(), "line 2: it is not UTF-8"),
        (json.dumps([{"name": "a", "key": "x"}, SECRET]), "entry 2: it must be an object"),
        (f"- {SECRET}", "line 1: it must be an object"),
        (f"- name: a\n  key: b\n- name: {SECRET}", "line 3: it needs name and key"),
        (f"- name: a\n  key: {SECRET}\n  limit: 3", "line 1: it needs name and key, and may have requests_per_minute"),
        (f"- name: {SECRET}\n  key: 12", "line 1: name and key must be texts"),
        (f"- name: a\n  key: {SECRET}\n  tokens_per_minute: 0", "tokens_per_minute must be a whole number from 1"),
        (f"- name: a\n  key: {SECRET}\n  tokens_per_minute: true", "tokens_per_minute must be a whole number"),
        (f"- name: a\n  key: {SECRET}\n  tokens_per_minute: 1.5", "tokens_per_minute must be a whole number"),
        (f"- name: a\n  key: *{SECRET}", "line 2: it is neither valid YAML nor JSON"),
        (f"- name: a\n  key: &{SECRET} x: &{SECRET} y", "neither valid YAML nor JSON"),
        (f"- !!python/object:{SECRET} x", "neither valid YAML nor JSON"),
        (f"- {{name: {SECRET}, key", "neither valid YAML nor JSON"),
        ("[" * 5000 + SECRET, "neither valid YAML nor JSON"),
        ("x" * (MAX_FILE_BYTES + 1), f"larger than {MAX_FILE_BYTES} bytes"),
        ("x\n" * (MAX_FILE_BYTES // 2), f"more than {MAX_KEYS} API keys"),
        (f"a: {SECRET}\nb: {SECRET}", "line 2: the same key has another name, 'a', at"),
        (
            f"- {{name: a, key: {SECRET}, tokens_per_minute: 5}}\n- {{name: a, key: x}}",
            "line 2: 'a' has other limits at",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_line_and_no_key(
    tmp_path: Path, text: str | bytes, told: str
) -> None:
    path = written(tmp_path / "keys", text)
    with pytest.raises(ConfigError) as caught:
        ring(path)
    message = str(caught.value)
    assert message.startswith(f"--api-key-file {path}")
    assert told in message
    assert SECRET not in message
    assert "\n" not in message
    assert caught.value.__cause__ is None, "its words may hold what stands in the file"


@given(st.binary(max_size=300))
def test_whatever_stands_in_a_file_it_is_keys_or_one_line_of_what_is_wrong(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = written(tmp_path_factory.getbasetemp() / "any", data)
    try:
        entries = read_keys(path)
    except ConfigError as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)
    else:
        assert all(entry.key and entry.name for entry in entries)


@pytest.mark.parametrize("kind", ["missing", "pipe", "directory", "unreadable link"])
def test_what_is_no_file_is_refused_and_nobody_waits_for_it(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "keys"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        (path / "below").mkdir(parents=True)
    elif kind == "unreadable link":
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=str(path)):
        ring(path)


def test_a_list_gives_keys_limits_of_their_own_and_flags_the_others(tmp_path: Path) -> None:
    text = """
- name: free
  key: one
  requests_per_minute: null
- {name: small, key: two, tokens_per_minute: 100, concurrent_requests: 2}
"""
    keys = ring(written(tmp_path / "keys", text), max_requests_per_minute=60, max_concurrent_requests=9)
    limits = {key.name: key.limits for key in keys.keys}
    assert limits == {"free": Limits(None, None, 9), "small": Limits(60, 100, 2)}


def test_flags_and_files_go_together_and_tenants_share_nothing(tmp_path: Path) -> None:
    path = written(tmp_path / "keys", "team: old\nteam: new\nother: third\nnameless\n")
    keys = ring(path, api_key=("flagged", "flagged"))
    found = {given: keys.find(given.encode()) for given in ("flagged", "old", "new", "third", "nameless")}
    names = {given: key.name for given, key in found.items() if key is not None}
    assert names == {
        "flagged": "api-key-1",
        "old": "team",
        "new": "team",
        "third": "other",
        "nameless": "keys/4",
    }
    salts = {given: key.salt for given, key in found.items() if key is not None}
    assert salts["old"] == salts["new"]  # a key that is rotated keeps its cached pages
    assert len(set(salts.values())) == 4
    assert keys.find(b"") is None
    assert keys.find(b"team") is None


def test_no_representation_holds_a_key(tmp_path: Path) -> None:
    path = written(tmp_path / "keys", f"team: {SECRET}")
    assert SECRET not in repr(read_keys(path))
    assert SECRET not in repr(ring(path).keys)


# --- as Kubernetes mounts a Secret


def mount(directory: Path, version: str, files: dict[str, str]) -> None:
    """What the kubelet does: a new hidden directory, then one link that is replaced by renaming."""
    (directory / version).mkdir(parents=True)
    for name, text in files.items():
        (directory / version / name).write_text(text)
    link = directory / "..data_tmp"
    link.symlink_to(version)
    link.rename(directory / "..data")
    for name in files:
        if not (directory / name).is_symlink():
            (directory / name).symlink_to(f"..data/{name}")
    for path in directory.iterdir():
        if path.is_symlink() and not path.exists():
            path.unlink()


def test_a_mounted_secret_is_a_key_a_file_and_its_swap_is_seen(tmp_path: Path) -> None:
    mount(tmp_path, "..2026_1", {"team-a": "one\n", "team-b": "two"})
    keys, watch = ring(tmp_path), FileWatch()
    watch.add(keys.files, keys.reload)
    watch.look()
    assert {key.name for key in keys.keys} == {"team-a", "team-b"}
    mount(tmp_path, "..2026_2", {"team-a": "three\n", "team-c": "four"})
    (tmp_path / "team-b").unlink(missing_ok=True)
    watch.look()
    assert {key.name for key in keys.keys} == {"team-a", "team-c"}
    assert [keys.find(given) is None for given in (b"one", b"two", b"three", b"four")] == [True, True, False, False]


def test_the_gateways_key_may_come_later_and_go_again(tmp_path: Path) -> None:
    """Its Secret is optional in a pod: the directory is there, and empty until somebody makes it."""
    keys, watch = KeyRing(ServerConfig(model=Path()), tmp_path), FileWatch()
    watch.add(keys.files, keys.reload)
    watch.look()
    assert keys.keys == ()
    mount(tmp_path, "..2026_1", {"key": "one"})
    watch.look()
    assert [key.gateway for key in keys.keys] == [True]
    assert keys.find(b"one") is not None
    mount(tmp_path, "..2026_2", {})
    watch.look()
    assert keys.keys == ()


def test_a_gateways_key_file_that_is_not_there_is_a_mistake_and_so_are_no_keys_of_clients(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--gateway-api-key-file"):
        KeyRing(ServerConfig(model=Path()), tmp_path / "missing")
    with pytest.raises(ConfigError, match="there is no API key"):
        ring(tmp_path)


def test_a_directory_may_hold_lists_with_limits(tmp_path: Path) -> None:
    mount(tmp_path, "..1", {"keys": "- {name: a, key: one, tokens_per_minute: 7}", "plain": "two"})
    assert {key.name: key.limits.tokens_per_minute for key in ring(tmp_path).keys} == {"a": 7, "plain": None}


def test_a_directory_of_too_many_files_is_refused(tmp_path: Path) -> None:
    for number in range(MAX_FILES + 1):
        (tmp_path / f"k{number}").touch()
    with pytest.raises(ConfigError, match=f"more than {MAX_FILES} files"):
        ring(tmp_path)


# --- changes


@pytest.fixture
def watched(tmp_path: Path) -> tuple[Path, KeyRing, FileWatch]:
    path = written(tmp_path / "keys", f"team: {SECRET}")
    keys, watch = ring(path), FileWatch()
    watch.add(keys.files, keys.reload)
    watch.look()
    return path, keys, watch


def test_a_broken_file_keeps_the_keys_and_says_so_once(
    watched: tuple[Path, KeyRing, FileWatch], caplog: pytest.LogCaptureFixture
) -> None:
    path, keys, watch = watched
    for text in (f"team: {SECRET}\nother: {SECRET}", "", "team:"):
        caplog.clear()
        path.write_text(text)
        for _ in range(3):
            watch.look()
        assert keys.find(SECRET.encode()) is not None
        (record,) = caplog.records
        assert record.levelno == logging.ERROR
        assert str(path) in record.message
        assert "what was read before stays" in record.message
        assert SECRET not in record.message
    path.unlink()
    watch.look()
    assert keys.find(SECRET.encode()) is not None
    caplog.clear()
    caplog.set_level(logging.INFO)
    path.write_text("team: new-one")
    watch.look()
    watch.look()
    assert [record.message for record in caplog.records] == [
        "API keys were read again: 1 new, 0 changed, 1 gone; 1 in all"
    ]
    assert keys.find(SECRET.encode()) is None
    assert keys.find(b"new-one") is not None


@pytest.mark.parametrize("broken", ["::::", "x" * (MAX_FILE_BYTES + 1), "stranger: one", "team-a: nine\nother: nine"])
def test_a_broken_file_holds_up_no_change_in_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    def may(*given: str) -> list[bool]:
        return [keys.find(key.encode()) is not None for key in given]

    for name, text in (("a", "team-a: one\nteam-a: stolen"), ("b", "team-b: two"), ("c", "team-c: three")):
        written(tmp_path / name, text)
    alone = written(tmp_path / ".outside", "team-d: four")
    keys, watch = ring(tmp_path, alone), FileWatch()
    watch.add(keys.files, keys.reload)
    written(tmp_path / "b", broken)
    watch.look()
    assert may("one", "stolen", "two", "three", "four") == [True] * 5
    (error,) = caplog.records
    assert str(tmp_path / "b") in error.message
    with caplog.at_level(logging.INFO):
        written(tmp_path / "a", "team-a: one\nteam-a: new")
        (tmp_path / "c").unlink()
        written(alone, "team-d: five")
        watch.look()
    assert may("one", "stolen", "new", "two", "three", "four", "five") == [True, False, True, True, False, False, True]
    assert "2 new, 0 changed, 3 gone" in caplog.text
    written(tmp_path / "a", "other: two")  # which the broken file had: what is told now counts
    watch.look()
    found = keys.find(b"two")
    assert found is not None
    assert found.name == "other"
    (tmp_path / "b").unlink()
    watch.look()
    assert may("two", "one", "five") == [True, False, True]
    written(tmp_path / "0", "stranger: two")  # it is the last change that is wrong
    watch.look()
    assert keys.find(b"two") == found
    alone.unlink()
    watch.look()
    assert may("two", "five") == [True, True]


def test_limits_that_change_are_seen(watched: tuple[Path, KeyRing, FileWatch]) -> None:
    path, keys, watch = watched
    path.write_text(f"- {{name: team, key: {SECRET}, tokens_per_minute: 5}}")
    watch.look()
    assert [key.limits.tokens_per_minute for key in keys.keys] == [5]


def test_a_change_that_leaves_size_and_time_alone_is_seen_while_the_file_is_young(
    watched: tuple[Path, KeyRing, FileWatch],
) -> None:
    path, keys, watch = watched
    before = path.stat()
    path.write_text(f"team: {SECRET[:-1]}X")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    watch.look()
    assert keys.find(f"{SECRET[:-1]}X".encode()) is not None


def test_a_file_that_has_not_changed_is_not_read(tmp_path: Path) -> None:
    path = written(tmp_path / "keys", "a")
    reads, watch = list[None](), FileWatch(clock=lambda: time.time() + 10)
    watch.add([path], lambda: reads.append(None))
    for _ in range(5):
        watch.look()
    assert len(reads) == 1
    path.write_text("other")
    watch.look()
    watch.look()
    assert len(reads) == 2


def test_the_watch_outlives_what_goes_wrong_and_ends_when_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(file_watch, "POLL_SECONDS", 0.001)
    again, calls = threading.Event(), list[None]()

    def reload() -> None:
        calls.append(None)
        if len(calls) == 1:
            raise RuntimeError("odd")
        again.set()

    watch = FileWatch()
    watch.add([written(tmp_path / "keys", "a")], reload)
    watch.start()
    assert again.wait(60)
    watch.stop()
    assert "files could not be looked at" in caplog.text
