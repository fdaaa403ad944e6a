"""The logs of both processes: a line a record on stderr, as text or as a JSON object, in the same form.

No prompt, answer or key is ever put into a log. So an exception that stops a request is told without its message, which
may quote either: its type and where it was raised are enough to find it.
"""

import json
import logging
import os
import re
import select
import threading
import traceback
import warnings
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Final, Literal

from octavo_common.errors import OctavoError

LogFormat = Literal["text", "json"]

request_id: Final[ContextVar[str | None]] = ContextVar("request_id", default=None)  # of the request that is worked on
_WORD: Final = re.compile(r"[!#-<>-~]*")  # printable ASCII but for space, quote and equals sign
_PIECE: Final = select.PIPE_BUF  # bytes that a pipe which is ready takes without waiting


def configure(level: str, form: LogFormat, descriptor: int = 2) -> None:
    """Let all loggers of this process write to a file descriptor."""
    handler = LineHandler(descriptor)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    warnings.showwarning = _warn  # type: ignore[assignment]  # where to is decided here


def fields(**values: object) -> dict[str, Any]:
    """What a record says besides its message, for the `extra` of a call; what is None is left out."""
    return {"fields": {name: value for name, value in values.items() if value is not None}}


class TextLines(logging.Formatter):
    """`TIME LEVEL LOGGER: MESSAGE NAME=VALUE …`; a traceback, or the rest of a long message, on lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        told = "".join(f" {name}={_plain(value)}" for name, value in _fields(record).items())
        trace = _traceback(record)
        first, *more = record.getMessage().split("\n")
        lines = [f"{_time(record)} {record.levelname} {record.name}: {first}{told}", *more]
        lines += [] if trace is None else trace.split("\n")
        # Nothing in a record looks like the beginning of another one, or moves a terminal's cursor.
        return "\n  ".join(map(_printable, lines))


class JsonLines(logging.Formatter):
    """An object a line: time, level, logger, message, what else is told, and `exception` for a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        told = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if (trace := _traceback(record)) is not None:
            told["exception"] = trace
        return json.dumps(told, ensure_ascii=False, separators=(",", ":"))


class LineHandler(logging.Handler):
    """Writes lines, and never waits for whoever reads them: all requests would wait, too.

    What a full pipe does not take is dropped, and counted in a line of its own once there is room.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        self._dropped = 0
        self._cut = False  # in the middle of a line

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        try:
            line = self.format(record)
            if self._dropped:
                told = logging.LogRecord(
                    __name__, logging.WARNING, "", 0, "%d lines were dropped", (self._dropped,), None
                )
                if not self._write(self.format(told)):
                    self._dropped += 1
                    return
                self._dropped = 0
            if not self._write(line):
                self._dropped += 1
        except Exception:
            self.handleError(record)

    def _write(self, line: str) -> bool:
        data = b"\n" * self._cut + line.encode("utf-8", "backslashreplace") + b"\n"
        for start in range(0, len(data), _PIECE):
            if not self._poll.poll(0):
                self._cut = self._cut or start > 0
                return False
            os.write(self._descriptor, data[start : start + _PIECE])
            self._cut = False
        return True


def _warn(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object) -> None:
    """A library's warning, as a line like others. Where requests are worked on it may quote one."""
    at_work = request_id.get() is not None or threading.current_thread() is not threading.main_thread()
    told = "" if at_work else f": {message}"
    logging.getLogger("py.warnings").warning("%s in %s, line %d%s", category.__name__, filename, lineno, told)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{int(record.msecs):03d}Z"


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    told: dict[str, Any] = getattr(record, "fields", {})
    known = request_id.get()
    return told if known is None else {"request_id": known, **told}


def _printable(line: str) -> str:
    return line if line.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


def _plain(value: object) -> str:
    """As it is if that is one word of printable characters, else quoted."""
    if isinstance(value, bool):
        return json.dumps(value)  # the word that the other form has
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if _WORD.fullmatch(text) else json.dumps(text)


def _traceback(record: logging.LogRecord) -> str | None:
    error = record.exc_info[1] if record.exc_info else None
    if error is None:
        return None
    if request_id.get() is None:
        return "".join(traceback.format_exception(error)).rstrip("\n")
    told = []
    while error is not None:
        message = f": {error}" if isinstance(error, OctavoError) else ""
        told.append("".join(traceback.format_tb(error.__traceback__)) + type(error).__name__ + message)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\nwhile this was handled:\n".join(reversed(told))
