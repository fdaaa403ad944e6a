"""One choice while it grows: tokens become text, stop strings end it, and what steps add is a delta."""

from array import array
from io import StringIO
from typing import Final

from octavo_server.frontend.text.detokenizer import Detokenizer
from octavo_server.frontend.text.stop_strings import StopStrings
from octavo_server.frontend.text.text_options import TextOptions
from octavo_server.frontend.text.tokenizer import TextTokenizer
from octavo_server.ipc import RequestOutput, TokenLogprobs
from octavo_server.metrics import RequestMetrics

LONG_TOKENS: Final = 4096


class Delta:
    """What one or several steps add to a choice; what a slow reader missed is one of them.

    It grows at a cost that does not depend on its length, and holds a token in a few bytes: who reads slowly should
    cost no more than the answer. `logprobs` has an entry for each token, where they were asked for. One is made for
    every token, and most hold no second: what only longer ones need is made with their second token.
    """

    __slots__ = ("_first", "_more", "_text", "_texts", "finish_reason", "logprobs", "prompt_logprobs", "stop_reason")

    def __init__(self) -> None:
        self._text = ""
        self._texts: StringIO | None = None  # all of the text, once there is a second piece
        self._first: tuple[int, int] | None = None  # a token and its offset
        self._more: tuple[array[int], array[int]] | None = None  # the tokens behind it, and their offsets
        self.logprobs: list[TokenLogprobs] = []
        self.prompt_logprobs: list[TokenLogprobs | None] | None = None
        self.finish_reason: str | None = None
        self.stop_reason: str | int | None = None

    @property
    def text(self) -> str:
        """Characters that are complete and belong to no stop string."""
        return self._text if self._texts is None else self._texts.getvalue()

    @property
    def token_ids(self) -> list[int]:
        """The tokens, those without a text too."""
        return self._column(0)

    @property
    def offsets(self) -> list[int]:
        """Where in the answer's text (in characters) each token begins, before any stop string is cut off."""
        return self._column(1)

    @property
    def num_logprobs(self) -> int:
        """Log-probabilities in it, alternatives included: what it costs to spell them."""
        entries = [*self.logprobs[:1], *(self.prompt_logprobs or ())[1:2]]
        width = max((len(entry.token_ids) for entry in entries if entry is not None), default=0)
        return width * (len(self.logprobs) + len(self.prompt_logprobs or ()))

    @property
    def is_long(self) -> bool:
        """Whether there is more in it than is read in a moment."""
        return self._more is not None and len(self._more[0]) > LONG_TOKENS

    @property
    def weight(self) -> int:
        """What it costs to spell and to read, in log-probabilities: a token of text is much less than one."""
        return self.num_logprobs + (0 if self._more is None else len(self._more[0]) // 4)

    def add_token(self, token_id: int, offset: int) -> None:
        """Add to the tokens."""
        if self._first is None:
            self._first = token_id, offset
            return
        if self._more is None:
            self._more = array("i"), array("i")
        ids, offsets = self._more
        ids.append(token_id)
        offsets.append(offset)

    def add_text(self, text: str) -> None:
        """Add to the text."""
        if self._texts is not None:
            self._texts.write(text)
        elif not self._text:
            self._text = text
        elif text:
            self._texts = StringIO()
            self._texts.write(self._text)
            self._texts.write(text)
            self._text = ""

    def _column(self, number: int) -> list[int]:
        first = [] if self._first is None else [self._first[number]]
        return first if self._more is None else first + self._more[number].tolist()


class Answer:
    """A choice of an answer. It may be `finished` before the engine knows: stop strings are found here."""

    def __init__(
        self,
        index: int,
        prompt_token_ids: list[int],
        tokenizer: TextTokenizer,
        text: TextOptions,
        metrics: RequestMetrics,
    ) -> None:
        self.index = index
        self.prompt_token_ids = prompt_token_ids
        self.metrics = metrics
        self.num_tokens = 0
        self.num_cached_tokens = 0
        self.finished = False
        self._text = text
        self._detokenizer = Detokenizer(tokenizer, skip_special=text.skip_special_tokens, kept=text.kept)
        self._stops = StopStrings(text.stops, included=text.include_stop)
        self._length = 0  # characters so far, with what is held back

    def take(self, output: RequestOutput, delta: Delta) -> None:
        """Add a result of the engine to `delta`. Tokens after the one that completes a stop string are dropped."""
        self.metrics.output(output, self._take(output, delta))
        if delta.finish_reason is not None:
            self.metrics.end(delta.finish_reason)

    def replay(self, output: RequestOutput, delta: Delta) -> None:
        """As `take`, for what another engine made of this answer: it is measured nowhere."""
        self._take(output, delta)

    def _take(self, output: RequestOutput, delta: Delta) -> int:
        """The number of tokens that belong to the answer."""
        delta.finish_reason, delta.stop_reason = output.finish_reason, output.stop_reason
        if output.prompt_logprobs is not None:
            delta.prompt_logprobs = output.prompt_logprobs
        if output.num_cached_tokens > self.num_cached_tokens:
            self.num_cached_tokens = output.num_cached_tokens
        taken = self._take_tokens(output, delta)
        if output.logprobs is not None:
            delta.logprobs += output.logprobs[:taken]
        self.num_tokens += taken
        if delta.finish_reason is not None:
            delta.add_text(self._stops.end())
            self.finished = True
        return taken

    def _take_tokens(self, output: RequestOutput, delta: Delta) -> int:
        """The number of tokens that belong to the answer."""
        last = len(output.token_ids) - 1
        for position, token_id in enumerate(output.token_ids):
            delta.add_token(token_id, self._length)
            # The token that ends a sequence is no part of its text, whether the tokenizer calls it special or not.
            if self._text.include_stop or not (position == last and output.finish_reason == "stop"):
                piece = self._detokenizer.add(token_id)
                self._length += len(piece)
                if not self._text.stops:
                    delta.add_text(piece)
                    continue
                may_end = self.num_tokens + position >= self._text.min_tokens
                delta.add_text(self._stops.add(piece, may_end=may_end))
            if self._stops.found is not None:
                delta.finish_reason, delta.stop_reason = "stop", self._stops.found
                return position + 1
        return last + 1
