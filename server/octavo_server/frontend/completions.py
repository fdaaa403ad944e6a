"""POST /v1/completions: prompts as text or token ids, each of which becomes a choice."""

from collections.abc import AsyncGenerator, Sequence

from octavo_server.frontend.answer import Answer, Delta
from octavo_server.frontend.answer_grammar import completion_grammar
from octavo_server.frontend.generation import Caller, Generation, Wanted
from octavo_server.frontend.logprobs import (
    completion_logprobs,
    described_prompt,
    extend,
    first_alternatives,
    prompt_logprobs,
)
from octavo_server.frontend.model import ServedModel
from octavo_server.frontend.openai import CompletionRequest
from octavo_server.frontend.responses import Completion, CompletionChoice, CompletionLogprobs, encode
from octavo_server.frontend.sse import DONE, TextFrames, frame
from octavo_server.frontend.state import ServerState
from octavo_server.frontend.truncation import prompt_ids, truncated

DEFAULT_MAX_TOKENS = 16  # OpenAI's


class Completions:
    """One completions request that has been checked and tokenized."""

    def __init__(
        self, state: ServerState, request: CompletionRequest, generation: Generation, echoes: Sequence[str]
    ) -> None:
        self._state = state
        self._request = request
        self._generation = generation
        self._echoes = echoes
        self._id = generation.response_id("cmpl")
        self._created = generation.created
        self._name = state.names[0]
        self._text_frames: dict[int, TextFrames] = {}
        detailed = request.return_token_ids or request.continuous_usage
        self._only_text = request.logprobs is None and not detailed

    @classmethod
    async def prepare(cls, state: ServerState, request: CompletionRequest, caller: Caller) -> "Completions":
        """Tokenize the prompts, where they are text, beside the event loop.

        Raises:
            RequestError: a prompt is empty or does not fit; the server is full.
        """
        model, ready = state.serving(request.model)
        caller.place.take(len(request.prompts) * request.num_choices)
        texts = [prompt for prompt in request.prompts if isinstance(prompt, str)]  # all of them, or none
        alone = request.add_special_tokens is not False
        given = [truncated(ids, request, ready.max_model_len) for ids in request.prompts if not isinstance(ids, str)]
        ids = given or await prompt_ids(state, request, texts, "prompt", alone=alone)
        grammar = await completion_grammar(state, request, caller)
        wanted = Wanted(request.token_limit, default=DEFAULT_MAX_TOKENS, param="prompt", grammar=grammar)
        generation = await Generation.prepare(state, request, ids, wanted, caller)
        shown = request.prompts if request.truncate_prompt_tokens is None else ids
        echoes = await state.in_thread(_texts, model, shown) if request.echo else [""] * len(ids)
        return cls(state, request, generation, echoes)

    async def answer(self) -> bytes:
        """All choices, whole, as JSON.

        Raises:
            EngineError: the engine could not finish one of them.
        """
        wholes = list(zip(self._generation.answers, await self._generation.whole(), strict=True))
        weight = sum(whole.num_logprobs for _, whole in wholes)
        return await self._state.render(weight, lambda: encode(self._whole(wholes)))

    def events(self) -> AsyncGenerator[bytes, None]:
        """The stream: an event for what steps add to a choice, maybe one with the usage.

        Raises:
            EngineError: the engine could not finish one of the choices.
        """
        return self._generation.events(self, only_text=self._only_text)

    def _whole(self, wholes: Sequence[tuple[Answer, Delta]]) -> Completion:
        choices = [self._choice(answer, whole, opening=True) for answer, whole in wholes]
        return self._completion(choices, usage=True)

    def frames(self, changes: Sequence[tuple[Answer, Delta]], begun: set[int]) -> bytes:
        """The events for what steps brought. `begun`: choices that have had some, to which it adds."""
        frames = []
        for answer, delta in changes:
            if self._only_text and answer.index in begun and delta.finish_reason is None:
                frames.append(self._text_frame(answer.index, delta.text))
                continue
            part = self._choice(answer, delta, opening=answer.index not in begun)
            begun.add(answer.index)
            asked_for = self._request.return_token_ids or part.logprobs
            if part.text or part.finish_reason or (delta.token_ids and asked_for):
                frames.append(frame(self._completion([part])))
        return b"".join(frames)

    def ending(self, answer: Answer, delta: Delta) -> bytes:
        """The event with the finish reason of a choice, of which all else has been sent."""
        choice = CompletionChoice(answer.index, "", delta.finish_reason, stop_reason=delta.stop_reason)
        return frame(self._completion([choice]))

    def closing(self) -> bytes:
        """What follows the last choice's end."""
        return frame(self._completion([], usage=True)) + DONE if self._request.include_usage else DONE

    def _text_frame(self, index: int, text: str) -> bytes:
        """The event of a choice that only goes on; the same bytes as by the long way."""
        if not text:
            return b""
        if (frames := self._text_frames.get(index)) is None:
            frames = TextFrames(lambda text: self._completion([CompletionChoice(index, text)]))
            self._text_frames[index] = frames
        return frames(text)

    def _choice(self, answer: Answer, delta: Delta, *, opening: bool) -> CompletionChoice:
        """What steps add to a choice; the opening carries the prompt, where it is echoed."""
        echo = self._echoes[answer.index // self._request.num_choices]
        text = echo + delta.text if opening else delta.text
        part = CompletionChoice(answer.index, text, delta.finish_reason, stop_reason=delta.stop_reason)
        part.logprobs = self._logprobs(answer, delta, opening, echo)
        if opening:
            tokenizer = self._generation.model.tokenizer
            part.prompt_logprobs = described_prompt(tokenizer, delta.prompt_logprobs, self._request.prompt_logprobs)
        if self._request.return_token_ids:
            part.token_ids = delta.token_ids
            if opening:
                part.prompt_token_ids = answer.prompt_token_ids
        return part

    def _logprobs(self, answer: Answer, delta: Delta, opening: bool, echo: str) -> CompletionLogprobs | None:
        if self._request.logprobs is None:
            return None
        tokenizer, as_ids = self._generation.model.tokenizer, bool(self._request.return_tokens_as_token_ids)
        result = CompletionLogprobs([], [], [], [])
        if opening and self._request.echo and delta.prompt_logprobs is not None:
            entries = first_alternatives(delta.prompt_logprobs, self._request.logprobs)
            extend(result, prompt_logprobs(tokenizer, answer.prompt_token_ids, entries, echo, as_ids=as_ids))
        offsets = delta.offsets if delta.logprobs else []  # tokens that are replayed have none
        extend(result, completion_logprobs(tokenizer, delta.logprobs, offsets, as_ids=as_ids), len(echo))
        return result

    def _completion(self, choices: list[CompletionChoice], *, usage: bool = False) -> Completion:
        completion = Completion(self._id, self._created, self._name, choices)
        if usage or self._request.continuous_usage:
            completion.usage = self._generation.usage()
        elif self._request.include_usage:
            completion.usage = None
        return completion


def _texts(model: ServedModel, prompts: list[str] | list[list[int]]) -> list[str]:
    return [prompt if isinstance(prompt, str) else model.tokenizer.decode(prompt) for prompt in prompts]
