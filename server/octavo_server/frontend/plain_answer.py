"""What an answer says that has no parts to be told apart."""

from collections import deque

from octavo_server.frontend.answer import Delta
from octavo_server.frontend.parsing import Piece
from octavo_server.frontend.text.text_options import TextOptions
from octavo_server.ipc import TokenLogprobs


class PlainAnswer:
    """An answer that is all text. Log-probabilities are of its tokens but for those behind the text: the one that ends
    it, and those of a stop string, for which they wait where there may be one. So a stream adds up to the whole, and
    one that another server goes on with has lost none.
    """

    def __init__(self, text: TextOptions) -> None:
        """text: what becomes of the answer's tokens."""
        self._text = text
        self._length = 0
        self._waiting: deque[tuple[int, TokenLogprobs]] = deque()  # with their offsets

    def add(self, delta: Delta) -> Piece:
        """What a delta says."""
        self._length += len(delta.text)
        if delta.logprobs:
            self._waiting.extend(zip(delta.offsets, delta.logprobs, strict=False))
        if delta.finish_reason == "stop" and not self._text.include_stop and self._waiting:
            self._drop_what_ended_it(delta.stop_reason)
        all_told = delta.finish_reason is not None or not self._text.stops
        found = []
        while self._waiting and (all_told or self._waiting[0][0] < self._length):
            found.append(self._waiting.popleft()[1])
        return Piece(delta.text, logprobs=found)

    def _drop_what_ended_it(self, reason: str | int | None) -> None:
        if not isinstance(reason, str):
            self._waiting.pop()
            return
        while self._waiting and self._waiting[-1][0] >= self._length:
            self._waiting.pop()


class TextAnswer:
    """The same where log-probabilities come with a text: with that in which their tokens begin.

    Those of a token that only begins a character wait for its end, and those of tokens behind the text are none of it.
    """

    def __init__(self) -> None:
        self._length = 0
        self._waiting: deque[tuple[int, TokenLogprobs]] = deque()  # with their offsets

    def add(self, delta: Delta) -> Piece:
        """What a delta says."""
        self._length += len(delta.text)
        if delta.logprobs:
            self._waiting.extend(zip(delta.offsets, delta.logprobs, strict=False))
        found = []
        while self._waiting and self._waiting[0][0] < self._length:
            found.append(self._waiting.popleft()[1])
        return Piece(delta.text, logprobs=found)
