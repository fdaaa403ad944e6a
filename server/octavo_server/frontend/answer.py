"""One choice while it grows: tokens become text, stop strings end it, and what each step adds is a delta."""

from dataclasses import dataclass, field

from octavo_server.frontend.text.detokenizer import Detokenizer
from octavo_server.frontend.text.stop_strings import StopStrings
from octavo_server.frontend.text.tokenizer import TextTokenizer
from octavo_server.ipc import RequestOutput, TokenLogprobs
from octavo_server.metrics import RequestMetrics


@dataclass(slots=True)
class Delta:
    """What one step adds to a choice.

    `offsets` are the positions in the answer's text (in characters) where the tokens begin, before any stop string is
    cut off. `logprobs` has an entry for each token, where they were asked for.
    """

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None


class Answer:
    """A choice of an answer. It may be `finished` before the engine knows: stop strings are found here."""

    def __init__(
        self,
        index: int,
        prompt_token_ids: list[int],
        tokenizer: TextTokenizer,
        stops: tuple[str, ...],
        metrics: RequestMetrics,
    ) -> None:
        self.index = index
        self.prompt_token_ids = prompt_token_ids
        self.metrics = metrics
        self.num_tokens = 0
        self.num_cached_tokens = 0
        self.finished = False
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = StopStrings(stops)
        self._length = 0  # characters so far, with what is held back

    def take(self, output: RequestOutput) -> Delta:
        """Add a result of the engine. Tokens after the one that completes a stop string are dropped."""
        delta = Delta(
            prompt_logprobs=output.prompt_logprobs, finish_reason=output.finish_reason, stop_reason=output.stop_reason
        )
        self.num_cached_tokens = max(self.num_cached_tokens, output.num_cached_tokens)
        last = len(output.token_ids) - 1
        for position, token_id in enumerate(output.token_ids):
            delta.token_ids.append(token_id)
            delta.offsets.append(self._length)
            # The token that ends a sequence is no part of its text, whether the tokenizer calls it special or not.
            if not (position == last and output.finish_reason == "stop"):
                piece = self._detokenizer.add(token_id)
                self._length += len(piece)
                delta.text += self._stops.add(piece)
            if self._stops.found is not None:
                delta.finish_reason, delta.stop_reason = "stop", self._stops.found
                break
        if output.logprobs is not None:
            delta.logprobs = output.logprobs[: len(delta.token_ids)]
        self.num_tokens += len(delta.token_ids)
        self.metrics.output(output, len(delta.token_ids))
        if delta.finish_reason is not None:
            delta.text += self._stops.end()
            self.finished = True
            self.metrics.end(delta.finish_reason)
        return delta
