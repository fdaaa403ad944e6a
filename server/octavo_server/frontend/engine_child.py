"""The engine process as its parent holds it: `python -m octavo_server.engine_process`.

It can be started before there is an event loop, and before the API process has imported its own parts: these take a
second, and torch, which the engine imports while it waits for its start message, takes several.
"""

import asyncio
import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from octavo_server.access_config import KEY_VARIABLES

ENGINE_COMMAND: Final = (sys.executable, "-m", "octavo_server.engine_process")


def bytecode_environment(compile_cache: Path | None, library: str = "torch") -> dict[str, str]:
    """Variables that keep Python's bytecode with the compiled kernels, where it is kept nowhere.

    Images often come without it and are told to write none (`PYTHONDONTWRITEBYTECODE`). Then each start compiles the
    sources of torch, for seconds. compile_cache: by default Triton's own variable; with neither nothing is kept.
    """
    directory = compile_cache or os.environ.get("TRITON_CACHE_DIR")
    spec = importlib.util.find_spec(library)
    if not directory or spec is None or spec.origin is None or sys.pycache_prefix is not None:
        return {}
    if Path(importlib.util.cache_from_source(spec.origin)).exists():
        return {}
    return {"PYTHONPYCACHEPREFIX": str(Path(directory) / "bytecode"), "PYTHONDONTWRITEBYTECODE": ""}


class EngineChild:
    """A process in a session of its own, so that Ctrl-C reaches the parent alone, which then ends it in order.

    To be started by a thread that lives as long as the engine is to: its kernel asks for the end of that.
    """

    def __init__(self, command: Sequence[str] = ENGINE_COMMAND, environment: Mapping[str, str] | None = None) -> None:
        """environment: variables that it has besides ours."""
        inherited = {name: value for name, value in os.environ.items() if name not in KEY_VARIABLES}
        # The engine's stdout is our stderr: stdout belongs to the line that says where we listen.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=sys.stderr,
            start_new_session=True,
            bufsize=0,
            env={**inherited, **(environment or {})},
        )

    @property
    def pid(self) -> int:
        """Of the process, or of what it was."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether it has, and `wait` would return at once."""
        return self._process.poll() is not None

    async def tell(self, line: bytes) -> None:
        """Writes to its stdin, which stays open: that it ends tells the engine that we are gone. Raises OSError."""
        if self._process.stdin is not None:
            await asyncio.to_thread(self._process.stdin.write, line)

    async def wait(self) -> int:
        """Its exit status, negative for a signal, once it has ended."""
        return await asyncio.to_thread(self._process.wait)

    def kill(self) -> None:
        """At once, even one that is stopped."""
        self._process.kill()

    def terminate(self) -> None:
        """By SIGTERM."""
        self._process.terminate()

    def discard(self) -> None:
        """Ends it, if it has not ended, and gives back what was held of it."""
        if not self.has_ended:
            self._process.kill()
            self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
