"""A model's chat template, rendered by a process that can be killed: see `template_worker.py`.

The processes live on from render to render. There is one from the start on, and a second while the first is busy, so
that messages that make a template slow hold back one other chat at a time. One that is killed is replaced when it is
needed.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

from octavo_server.errors import ModelError, RequestError

P = ParamSpec("P")
R = TypeVar("R")

RENDER_SECONDS: Final = 5.0
RENDERERS: Final = 2
_GRACE_SECONDS: Final = 1.0  # beyond the time after which the process ends itself
PIPE_BYTES: Final = 2**20  # what Linux allows everybody
_COMMAND: Final = (sys.executable, "-m", "octavo_server.frontend.text.template_worker")
# No keys and no paths of the server's: the little that Python and the clock need.
_ENVIRONMENT: Final = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "TZ", "LANG")


class ChatTemplate:
    """Renders messages to the prompt of a chat. Safe to use from several threads."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], seconds: float = RENDER_SECONDS) -> None:
        """Compile a template; `special_tokens` are the variables `bos_token`, `eos_token` and so on.

        Raises:
            ModelError: the template has a syntax error, or cannot be compiled within `seconds`.
        """
        start = {"source": source, "special_tokens": dict(special_tokens), "seconds": seconds}
        self._start, self._patience = _line(start), seconds + _GRACE_SECONDS
        self._lock = threading.Lock()
        self._idle: list[_Renderer] = []
        self._all: set[_Renderer] = set()
        self._threads = ThreadPoolExecutor(RENDERERS, thread_name_prefix="chat template")
        self.knows_developer_role = "developer" in source
        weakref.finalize(self, _end_all, self._all)
        self._give_back(self._new_renderer())

    async def in_thread(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run what renders with this template beside the event loop, in threads that nothing else waits for."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: function(*args, **kwargs))

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The prompt up to where the assistant's answer begins.

        Raises:
            RequestError: the template refuses these messages, takes too long, or needs too much memory.
        """
        try:
            renderer = self._take()
            reply = renderer.ask(_line(messages), self._patience)
            self._give_back(renderer)
        except (_Stopped, ModelError) as error:
            reply = {"refused": str(error)}
        if "text" in reply:
            return reply["text"]
        reason = reply["refused"]
        raise RequestError(f"the model's chat template refuses these messages: {reason}", param="messages")

    def close(self) -> None:
        """End the processes, also those that are busy."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            idle, self._idle = self._idle, []
            busy = self._all.difference(idle)
        _end_all(idle)
        for renderer in busy:
            renderer.kill()  # whoever waits for its answer ends it

    def _take(self) -> "_Renderer":
        with self._lock:
            while self._idle:
                renderer = self._idle.pop()
                if renderer.alive:
                    return renderer
                renderer.end()
        return self._new_renderer()

    def _give_back(self, renderer: "_Renderer") -> None:
        with self._lock:
            self._idle.append(renderer)

    def _new_renderer(self) -> "_Renderer":
        renderer = _Renderer()
        with self._lock:
            self._all.difference_update([other for other in self._all if not other.alive])
            self._all.add(renderer)
        try:
            reply = renderer.ask(self._start, self._patience)
        except _Stopped as error:
            raise ModelError(f"the model's chat template cannot be compiled: {error}") from error
        if "invalid" in reply:
            renderer.end()
            raise ModelError(f"the model's chat template is not valid Jinja: {reply['invalid']}")
        return renderer


class _Stopped(Exception):
    """A renderer gave no answer; the message says why."""


class _Renderer:
    """One process, asked one thing at a time."""

    def __init__(self) -> None:
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        # A session of its own: Ctrl-C in a terminal is for the server, which ends its processes in order.
        self._process = subprocess.Popen(
            _COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
        )
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("a process was started without its pipes")
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        os.set_blocking(self._stdin.fileno(), False)
        for pipe in (self._stdin, self._stdout):  # long chats in few pieces
            with contextlib.suppress(OSError):
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    def ask(self, line: bytes, seconds: float) -> dict[str, str]:
        """Its answer to a line. Without one it is ended.

        Raises:
            _Stopped: there was none within `seconds`, or the process ended.
        """
        deadline = time.monotonic() + seconds
        answer = self._exchange(line, deadline)
        if answer:
            reply: dict[str, str] = json.loads(answer)
            return reply
        self.end()
        if self._process.returncode == -signal.SIGALRM or time.monotonic() >= deadline:
            raise _Stopped("it came to no end in the time that it has, and was stopped")
        raise _Stopped("the process that renders it broke down")

    def kill(self) -> None:
        """Whatever it does; of no effect if it has ended."""
        self._process.kill()

    def end(self) -> None:
        """Kill it and give back what it used."""
        self.kill()
        self._process.wait()
        for pipe in (self._stdin, self._stdout):
            with contextlib.suppress(OSError):
                pipe.close()

    def _exchange(self, line: bytes, deadline: float) -> bytes:
        """Writes a line and reads one; empty if the other side is gone or the deadline has passed."""
        poll, pending, received = select.poll(), memoryview(line), bytearray()
        poll.register(self._stdin, select.POLLOUT)
        poll.register(self._stdout, select.POLLIN)
        while not received.endswith(b"\n"):
            ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
            if not ready:
                return b""
            for descriptor, _ in ready:
                if descriptor == self._stdout.fileno():
                    piece = os.read(descriptor, PIPE_BYTES)
                    if not piece:
                        return b""
                    received += piece
                    continue
                try:
                    pending = pending[os.write(descriptor, pending[:PIPE_BYTES]) :]
                except BlockingIOError:
                    continue
                except BrokenPipeError:
                    return b""
                if not pending:
                    poll.unregister(descriptor)
        return bytes(received)


def load_chat_template(
    directory: Path, tokenizer_config: Mapping[str, Any], special_tokens: Mapping[str, str]
) -> ChatTemplate | None:
    """The template in `chat_template.jinja`, else the one in `tokenizer_config.json`; None where there is neither.

    Of several named templates the one named "default" counts.

    Raises:
        ModelError: the template cannot be read, has a syntax error, or cannot be compiled in the time it has.
    """
    path = directory / "chat_template.jinja"
    try:
        source = path.read_text(encoding="utf-8") if path.is_file() else tokenizer_config.get("chat_template")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if isinstance(source, list):
        named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
        source = named.get("default")
    return ChatTemplate(source, special_tokens) if isinstance(source, str) else None


def _line(value: Any) -> bytes:
    """One line of JSON. Numbers that are none (a tool's arguments may hold NaN) are spelt as Python spells them."""
    return json.dumps(value).encode() + b"\n"


def _end_all(renderers: Collection[_Renderer]) -> None:
    for renderer in tuple(renderers):
        renderer.end()
