"""Streams that are passed on as they are, and the usage that an answer tells."""

from dataclasses import dataclass
from typing import Final

import msgspec

_ENDS: Final = (b"response.completed", b"response.incomplete", b"response.failed", b"error")
_MAX_EVENT_BYTES: Final = 64 * 2**20


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None


class _Answer(msgspec.Struct):
    usage: _Usage | None = None


class _EndEvent(msgspec.Struct):
    response: _Answer | None = None


def read_usage(body: bytes) -> tuple[int, int]:
    """Tokens of prompt and answer, as a whole answer tells them; 0 where it does not."""
    try:
        return _counts(msgspec.json.decode(body, type=_Answer))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return 0, 0


def _counts(answer: _Answer | None) -> tuple[int, int]:
    usage = answer.usage if answer is not None else None
    if usage is None:
        return 0, 0
    return usage.prompt_tokens or usage.input_tokens or 0, usage.completion_tokens or usage.output_tokens or 0


@dataclass(slots=True)
class PlainStream:
    """A response's events: whole ones are passed on, and the last one is known by its name. See `AnswerSoFar`."""

    passed: int = 0
    ended: bool = False
    broken: bytes | None = None
    usage: tuple[int, int] | None = None
    _rest: bytes = b""

    def feed(self, data: bytes) -> bytes:
        """What is for the client.

        Raises:
            ValueError: an event has no end.
        """
        data = self._rest + data
        whole, end, self._rest = data.rpartition(b"\n\n")
        if len(self._rest) > _MAX_EVENT_BYTES:
            raise ValueError("an event of a replica has no end")
        if not end:
            return b""
        self.passed += whole.count(b"\n\n") + 1
        last = whole[whole.rfind(b"\n\n") + 2 :] if b"\n\n" in whole else whole
        name, _, rest = last.removeprefix(b"event: ").partition(b"\ndata: ")
        if name in _ENDS:
            self.ended = True
            self.usage = _usage_of(rest)
        return whole + end


def _usage_of(data: bytes) -> tuple[int, int]:
    try:
        return _counts(msgspec.json.decode(data, type=_EndEvent).response)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return 0, 0
