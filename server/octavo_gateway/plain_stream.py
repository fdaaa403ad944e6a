"""Streams that are passed on as they are, and the usage that an answer tells."""

from dataclasses import dataclass
from typing import Final, NamedTuple

import msgspec

_ENDS: Final = (b"response.completed", b"response.incomplete", b"response.failed", b"error")
_MAX_EVENT_BYTES: Final = 64 * 2**20


class Usage(NamedTuple):
    """Tokens of prompts, of answers, and of prompts in the cache; as far as it was told."""

    prompt: int = 0
    completion: int = 0
    cached: int | None = None


NO_USAGE: Final = Usage()


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None


class _Answer(msgspec.Struct):
    usage: _Usage | None = None


class _EndEvent(msgspec.Struct):
    response: _Answer | None = None


_answer: Final = msgspec.json.Decoder(_Answer)


def read_usage(body: bytes) -> Usage:
    """What a whole answer, or the last event of a stream, tells; zeros where it does not."""
    try:
        return _counts(_answer.decode(body))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return NO_USAGE


def _counts(answer: _Answer | None) -> Usage:
    usage = answer.usage if answer is not None else None
    if usage is None:
        return NO_USAGE
    details = usage.prompt_tokens_details or usage.input_tokens_details
    prompt, completion = usage.prompt_tokens or usage.input_tokens, usage.completion_tokens or usage.output_tokens
    return Usage(prompt or 0, completion or 0, None if details is None else details.cached_tokens)


@dataclass(slots=True)
class PlainStream:
    """A response's events: whole ones are passed on, and the last one is known by its name. See `AnswerSoFar`."""

    passed: int = 0
    ended: bool = False
    broken: bytes | None = None
    usage: Usage = NO_USAGE
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


def _usage_of(data: bytes) -> Usage:
    try:
        return _counts(msgspec.json.decode(data, type=_EndEvent).response)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return NO_USAGE
