"""A stream as its client has it so far, read from the bytes of its events. Pure.

Of an event nothing is parsed but what is looked for: in JSON a quote within a string has a backslash before it, so
`,"token_ids":[` can only be a field. The replica writes JSON without spaces.
"""

from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from octavo_gateway.plain_stream import NO_USAGE, Usage, read_usage

DONE: Final = b"data: [DONE]"
END: Final = b"\n\n"
_FAILED: Final = b'data: {"error":'
_TOKENS: Final = b',"token_ids":['
_PROMPT_TOKENS: Final = b',"prompt_token_ids":['
_FINISHED: Final = b'"finish_reason":"'
_USAGE: Final = b'"usage":{'
_NO_USAGE: Final = b',"usage":null'
_NO_CHOICES: Final = b'"choices":[]'
_SILENT: Final = (
    b'"delta":{"content":""},"finish_reason":null,"logprobs":null}]',
    b'"text":"","finish_reason":null,"logprobs":null',
)
MAX_EVENT_BYTES: Final = 64 * 2**20


class _Head(msgspec.Struct):
    id: str
    created: int


class _Error(msgspec.Struct):
    type: str | None = None
    code: str | None = None


class _ErrorEvent(msgspec.Struct):
    error: _Error


@dataclass(slots=True)
class AnswerSoFar:
    """Takes a replica's bytes and gives those for the client.

    strips, strips_usage: the token ids, and the usage, are not for the client, who did not ask for them. tokens: of all
    choices; only of a single answer are they what it can go on from. opening: events before the first token. broken:
    the event by which the replica said that it cannot go on; it is not passed on.
    """

    strips: bool
    strips_usage: bool = False
    tokens: list[int] = field(default_factory=list)
    usage: Usage = NO_USAGE
    opening: int = 0
    finished: bool = False
    failed: bool = False
    ended: bool = False
    broken: bytes | None = None
    passed: int = 0
    _head: _Head | None = None
    _told_usage: bool = False
    _rest: bytes = b""
    _skip: int = 0
    _resumed: bool = False

    def feed(self, data: bytes) -> bytes:
        """What is for the client of the events that are now complete.

        Raises:
            ValueError: an event has no end.
        """
        if not self._rest and data.endswith(END) and data.count(END) == 1:
            return self._event(data[:-2])
        *events, self._rest = (self._rest + data).split(END)
        if len(self._rest) > MAX_EVENT_BYTES:
            raise ValueError("an event of a replica has no end")
        return b"".join(map(self._event, events))

    def resume(self) -> dict[str, Any] | None:
        """The field that lets it go on elsewhere; None where nothing has been passed on yet, and it begins anew."""
        self._rest, self._resumed, self.broken = b"", True, None
        self._skip = 0 if self.tokens else self.opening
        if self._head is None:
            return None
        return {"output_token_ids": self.tokens, "response_id": self._head.id, "created": self._head.created}

    def _event(self, event: bytes) -> bytes:
        if event.startswith(DONE):
            self.ended = True
        elif event.startswith(_FAILED):
            if _is_the_replicas_fault(event):
                self.broken, event = event, b""
            else:
                self.ended = self.failed = True
        elif event.startswith(b"data: "):
            event = self._chunk(event)
        if not event:
            return b""
        self.passed += 1
        return event + END

    def _chunk(self, event: bytes) -> bytes:
        if self._head is None:
            self._head = msgspec.json.decode(event[6:], type=_Head)
        finishes, tells_usage = _FINISHED in event, _USAGE in event and _NO_CHOICES in event
        if self._resumed and ((finishes and self.finished) or (tells_usage and self._told_usage)):
            return b""
        self.finished |= finishes
        if tells_usage:
            self._told_usage = True
            self.usage = read_usage(event[6:])
            return b"" if self.strips_usage else event
        if self.strips_usage:
            event = event.replace(_NO_USAGE, b"")
        at = event.find(_TOKENS)
        if at < 0 and not self.tokens and not finishes:
            if self._skip:
                self._skip -= 1
                return b""
            self.opening += 1
        if self.strips and _PROMPT_TOKENS in event:
            event = _without_prompt(event)
            at = event.find(_TOKENS)
        return event if at < 0 else self._take_tokens(event, at)

    def _take_tokens(self, event: bytes, at: int) -> bytes:
        silent = True
        while at >= 0:
            begin, end = at + len(_TOKENS), event.index(b"]", at)
            ids = event[begin:end]
            if ids:
                self.tokens += map(int, ids.split(b","))
            if not self.strips:
                at = event.find(_TOKENS, end)
                silent = False
                continue
            event = event[:at] + event[end + 1 :]
            at = event.find(_TOKENS, at)
        # Tokens that say nothing yet: without the ids there would have been no event.
        return b"" if silent and any(mark in event for mark in _SILENT) else event


def _without_prompt(event: bytes) -> bytes:
    at = event.find(_PROMPT_TOKENS)
    return event[:at] + event[event.index(b"]", at) + 1 :]


def _is_the_replicas_fault(event: bytes) -> bool:
    """Whether another one may do better: not where the request is wrong, or its time is over."""
    try:
        error = msgspec.json.decode(event[6:], type=_ErrorEvent).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return error.type == "server_error" and error.code != "timeout"
