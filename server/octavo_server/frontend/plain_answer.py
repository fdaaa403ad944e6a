"""What an answer says that has no parts to be told apart."""

from collections import deque

from octavo_server.frontend.answer import Delta
from octavo_server.frontend.parsing import Piece
from octavo_server.ipc import TokenLogprobs


class PlainAnswer:
    """An answer that is all text. Log-probabilities come with the text in which their tokens begin: those of a token
    that only begins a character wait for its end, and those of tokens behind the text (its end, a stop string) say
    nothing of it. So a stream adds up to the whole.
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
