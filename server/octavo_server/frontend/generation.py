"""The choices of one HTTP request, from its prompts to the last token."""

import contextlib
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from octavo_server.errors import EngineError, RequestError
from octavo_server.frontend.answer import Answer, Delta
from octavo_server.frontend.client import Prompt
from octavo_server.frontend.model import ServedModel
from octavo_server.frontend.openai import GenerationRequest
from octavo_server.frontend.responses import PromptTokensDetails, Usage
from octavo_server.frontend.sampling import answer_length, check_token_ids, sampling_params
from octavo_server.frontend.state import ServerState
from octavo_server.metrics import RequestMetrics


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long answers may be: `asked`, else `default`, else whatever fits. `param` names the field of the prompt."""

    asked: int | None
    default: int | None
    param: str


class Generation:
    """One HTTP request to the engine. Each prompt becomes a choice."""

    def __init__(
        self,
        state: ServerState,
        request: GenerationRequest,
        prompts: Sequence[list[int]],
        lengths: Lengths,
        arrival: float,
    ) -> None:
        """Check the prompts and prepare the choices; nothing is sent before `deltas` is iterated over.

        Raises:
            RequestError: a prompt is empty, too long, or has a token id that does not exist; no requests are taken.
        """
        model, max_model_len = state.serving(request.model)
        self._client = state.client
        self.model = model
        self.id = uuid.uuid4().hex
        self.answers: list[Answer] = []
        self._prompts: list[Prompt] = []
        check_token_ids(request.stop_token_ids or [], model.vocab_size, "stop_token_ids")
        echo = bool(getattr(request, "echo", False))
        for index, ids in enumerate(prompts):
            max_tokens = _check_prompt(ids, model, lengths, max_model_len)
            sampling = sampling_params(
                request, model.defaults, max_tokens=max_tokens, drawn_seed=state.draw_seed(), echo=echo
            )
            metrics = RequestMetrics(state.metrics, arrival, len(ids), max_tokens=max_tokens)
            self._prompts.append(Prompt(f"{self.id}-{index}", ids, sampling))
            self.answers.append(Answer(index, ids, model.tokenizer, request.stop_strings, metrics))

    async def deltas(self) -> AsyncGenerator[list[tuple[Answer, Delta]], None]:
        """What each step adds, until all choices have ended.

        Raises:
            EngineError: the engine is not there, died, or could not finish one of them.
        """
        answers = {prompt.request_id: answer for prompt, answer in zip(self._prompts, self.answers, strict=True)}
        reason = "abort"
        try:
            with self._client.submit(self._prompts) as stream:
                async with contextlib.aclosing(stream.batches()) as batches:
                    async for batch in batches:
                        changes = []
                        for output in batch:
                            answer = answers[output.request_id]
                            if answer.finished:
                                continue  # ended by a stop string; this was on its way already
                            changes.append((answer, answer.take(output)))
                            if answer.finished:
                                stream.abort([output.request_id])
                        if changes:
                            yield changes
        except EngineError:
            reason = "error"
            raise
        finally:
            for answer in self.answers:
                answer.metrics.end(reason)  # those that have ended otherwise do not count again

    def usage(self) -> Usage:
        """Tokens so far."""
        prompt = sum(len(answer.prompt_token_ids) for answer in self.answers)
        completion = sum(answer.num_tokens for answer in self.answers)
        cached = sum(answer.num_cached_tokens for answer in self.answers)
        usage = Usage(prompt, completion, prompt + completion)
        if cached:
            usage.prompt_tokens_details = PromptTokensDetails(cached)
        return usage


def _check_prompt(ids: list[int], model: ServedModel, lengths: Lengths, max_model_len: int) -> int:
    """The most tokens that the answer may have."""
    if not ids:
        raise RequestError(f"{lengths.param}: it is empty; it needs at least one token", param=lengths.param)
    check_token_ids(ids, model.vocab_size, lengths.param)
    room = answer_length(lengths.asked, prompt_tokens=len(ids), max_model_len=max_model_len, param=lengths.param)
    return room if lengths.asked is not None or lengths.default is None else min(room, lengths.default)
