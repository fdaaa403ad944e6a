"""What an answer says that has no parts to be told apart."""

from collections import deque

from octavo_server.frontend.answer import Delta
from octavo_server.frontend.parsing import Piece
from octavo_server.frontend.text.text_options import TextOptions
from octavo_server.ipc import TokenLogprobs


class TextAnswer:
    """An answer that is all text. Log-probabilities come with the text in which their tokens begin.

    Those of a token that only begins a character wait for its end, and those of tokens behind the text are none of it.
    """

    def __init__(self) -> None:
        self._length = 0
        self._waiting: deque[tuple[int, TokenLogprobs]] = deque()  # with their offsets

    def add(self, delta: Delta) -> Piece:
        """What a delta says."""
        self._take(delta)
        return Piece(delta.text, logprobs=self._told(everything=False))

    @property
    def num_waiting(self) -> int:
        """Tokens whose log-probabilities wait."""
        return len(self._waiting)

    def _take(self, delta: Delta) -> None:
        self._length += len(delta.text)
        if delta.logprobs:
            self._waiting.extend(zip(delta.offsets, delta.logprobs, strict=False))

    def _told(self, *, everything: bool) -> list[TokenLogprobs]:
        found = []
        while self._waiting and (everything or self._waiting[0][0] < self._length):
            found.append(self._waiting.popleft()[1])
        return found


class PlainAnswer(TextAnswer):
    """The same where log-probabilities need no text to come with.

    They are of all tokens but those behind the text: the one that ends it, and those of a stop string, for which they
    wait where there may be one. So a stream adds up to the whole, and one that another server goes on with has lost
    none.
    """

    def __init__(self, text: TextOptions) -> None:
        """text: what becomes of the answer's tokens."""
        super().__init__()
        self._text = text

    def add(self, delta: Delta) -> Piece:
        """What a delta says."""
        self._take(delta)
        if delta.finish_reason == "stop" and not self._text.include_stop and self._waiting:
            self._drop_what_ended_it(delta.stop_reason)
        everything = delta.finish_reason is not None or not self._text.stops
        return Piece(delta.text, logprobs=self._told(everything=everything))

    def _drop_what_ended_it(self, reason: str | int | None) -> None:
        if not isinstance(reason, str):
            self._waiting.pop()
            return
        while self._waiting and self._waiting[-1][0] >= self._length:
            self._waiting.pop()
