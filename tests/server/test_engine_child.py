"""The engine as a child of the API process, started before there is an event loop."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from octavo_server.frontend.engine_child import ENGINE_COMMAND, EngineChild, bytecode_environment

ECHO = (sys.executable, "-c", "import sys; line = sys.stdin.readline(); sys.exit(len(line)) if line else None")


@pytest.fixture(autouse=True)
def _real_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", sys.__stderr__)  # what pytest puts there is no file that a child could have


def exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_what_it_is_told_later_reaches_it_and_how_it_ends_is_known() -> None:
    child = EngineChild(ECHO)
    assert not child.has_ended

    async def tell_and_wait() -> int:
        await child.tell(b"four\n")
        return await child.wait()

    assert asyncio.run(tell_and_wait()) == 5
    assert child.has_ended
    child.discard()


def test_a_signal_is_told_as_a_negative_number() -> None:
    child = EngineChild(ECHO)
    child.terminate()
    assert asyncio.run(child.wait()) == -15
    child.discard()


def test_one_that_nobody_took_over_is_ended_and_leaves_nothing() -> None:
    child = EngineChild(ECHO)
    assert os.getpgid(child.pid) == child.pid  # Ctrl-C passes it by
    child.discard()
    assert child.has_ended and not exists(child.pid)
    child.discard()  # a second time there is nothing to do


def test_to_tell_one_that_has_ended_is_an_error() -> None:
    child = EngineChild((sys.executable, "-c", ""))
    assert asyncio.run(child.wait()) == 0
    with pytest.raises(OSError, match="pipe"):
        asyncio.run(child.tell(b"x\n"))
    child.discard()


def test_bytecode_is_kept_with_the_kernels_where_it_is_kept_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "library_of_sources.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    library, cache = "library_of_sources", tmp_path / "cache"
    assert bytecode_environment(None, library) == {}
    kept = bytecode_environment(cache, library)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(cache))
    assert bytecode_environment(None, library) == kept
    child = EngineChild((sys.executable, "-c", "import library_of_sources"), {**kept, "PYTHONPATH": str(tmp_path)})
    assert asyncio.run(child.wait()) == 0
    child.discard()
    assert [path.name.partition(".")[0] for path in (cache / "bytecode").rglob("library*")] == [library]
    subprocess.run(
        [sys.executable, "-c", f"import {library}"],
        env={**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""},
        check=True,
    )
    assert bytecode_environment(cache, library) == {}  # now it is beside the source
    assert bytecode_environment(cache, "no_such_library") == {}


def test_an_engine_to_which_nobody_speaks_ends_without_a_word() -> None:
    done = subprocess.run(ENGINE_COMMAND, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"")


def test_an_engine_imports_torch_while_it_waits(tmp_path: Path) -> None:
    watch = tmp_path / "sitecustomize.py"
    watch.write_text(
        "import sys\n"
        "class Watch:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'torch':\n"
        "            print('torch', file=sys.stderr, flush=True)\n"
        "sys.meta_path.insert(0, Watch())\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    with subprocess.Popen(ENGINE_COMMAND, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as engine:
        assert engine.stdin is not None and engine.stderr is not None
        assert engine.stderr.readline() == b"torch\n"  # and it has been told nothing
        engine.stdin.close()
        assert engine.wait(60) == 1
