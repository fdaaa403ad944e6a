"""POST /v1/completions: prompts as text or token ids, each of which becomes a choice."""

from collections.abc import AsyncGenerator, Sequence

from msgspec import UNSET

from octavo_server.frontend.answer import Answer, Delta
from octavo_server.frontend.generation import Generation, Lengths
from octavo_server.frontend.logprobs import completion_logprobs, described_prompt, extend, first, prompt_logprobs
from octavo_server.frontend.model import ServedModel
from octavo_server.frontend.openai import CompletionRequest
from octavo_server.frontend.responses import Completion, CompletionChoice, CompletionLogprobs
from octavo_server.frontend.sampling import encode_bad_words
from octavo_server.frontend.sse import DONE, frame
from octavo_server.frontend.state import ServerState

DEFAULT_MAX_TOKENS = 16  # OpenAI's


class Completions:
    """One completions request that has been checked and tokenized."""

    def __init__(
        self, state: ServerState, request: CompletionRequest, generation: Generation, echoes: Sequence[str]
    ) -> None:
        self._request = request
        self._generation = generation
        self._echoes = echoes
        self._id = f"cmpl-{generation.id}"
        self._created = state.now()
        self._name = state.names[0]

    @classmethod
    async def prepare(cls, state: ServerState, request: CompletionRequest) -> "Completions":
        """Tokenize the prompts, beside the event loop.

        Raises:
            RequestError: a prompt is empty or does not fit.
        """
        arrival = state.metrics.clock()
        model, _ = state.serving(request.model)
        ids = await state.in_thread(_tokenize, model, request.prompts)
        lengths = Lengths(request.token_limit, default=DEFAULT_MAX_TOKENS, param="prompt")
        bad_words = await state.in_thread(encode_bad_words, model, request) if request.bad_words else ()
        generation = Generation(state, request, ids, lengths, arrival, bad_words)
        echoes = await state.in_thread(_texts, model, request.prompts) if request.echo else [""] * len(ids)
        return cls(state, request, generation, echoes)

    async def answer(self) -> Completion:
        """All choices, whole.

        Raises:
            EngineError: the engine could not finish one of them.
        """
        choices = [CompletionChoice(index, "") for index in range(len(self._echoes))]
        begun = [False] * len(choices)
        async for changes in self._generation.deltas():
            for answer, delta in changes:
                part = self._choice(answer, delta, opening=not begun[answer.index])
                begun[answer.index] = True
                _join(choices[answer.index], part)
        return self._completion(choices, usage=True)

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The stream: an event for what a step adds to a choice, maybe one with the usage.

        Raises:
            EngineError: the engine could not finish one of the choices.
        """
        begun = [False] * len(self._echoes)
        async for changes in self._generation.deltas():
            frames = []
            for answer, delta in changes:
                part = self._choice(answer, delta, opening=not begun[answer.index])
                begun[answer.index] = True
                if (
                    part.text
                    or part.finish_reason
                    or (delta.token_ids and (self._request.return_token_ids or part.logprobs))
                ):
                    frames.append(frame(self._completion([part])))
            if frames:
                yield b"".join(frames)
        if self._request.include_usage:
            yield frame(self._completion([], usage=True))
        yield DONE

    def _choice(self, answer: Answer, delta: Delta, *, opening: bool) -> CompletionChoice:
        """What a step adds to a choice; the opening carries the prompt, where it is echoed."""
        echo = self._echoes[answer.index]
        text = echo + delta.text if opening else delta.text
        part = CompletionChoice(answer.index, text, delta.finish_reason, stop_reason=delta.stop_reason)
        part.logprobs = self._logprobs(answer, delta, opening, len(echo))
        if opening:
            tokenizer = self._generation.model.tokenizer
            part.prompt_logprobs = described_prompt(tokenizer, self._request, delta.prompt_logprobs)
        if self._request.return_token_ids:
            part.token_ids = delta.token_ids
            if opening:
                part.prompt_token_ids = answer.prompt_token_ids
        return part

    def _logprobs(self, answer: Answer, delta: Delta, opening: bool, shift: int) -> CompletionLogprobs | None:
        if self._request.logprobs is None:
            return None
        tokenizer = self._generation.model.tokenizer
        result = CompletionLogprobs([], [], [], [])
        if opening and self._request.echo and delta.prompt_logprobs is not None:
            count = self._request.logprobs
            entries = [None if entry is None else first(entry, count) for entry in delta.prompt_logprobs]
            extend(result, prompt_logprobs(tokenizer, answer.prompt_token_ids, entries))
        extend(result, completion_logprobs(tokenizer, delta.logprobs, delta.offsets), shift)
        return result

    def _completion(self, choices: list[CompletionChoice], *, usage: bool = False) -> Completion:
        completion = Completion(self._id, self._created, self._name, choices)
        if usage:
            completion.usage = self._generation.usage()
        elif self._request.include_usage:
            completion.usage = None
        return completion


def _tokenize(model: ServedModel, prompts: list[str] | list[list[int]]) -> list[list[int]]:
    return [
        model.tokenizer.encode(prompt, add_special_tokens=True) if isinstance(prompt, str) else prompt
        for prompt in prompts
    ]


def _texts(model: ServedModel, prompts: list[str] | list[list[int]]) -> list[str]:
    return [prompt if isinstance(prompt, str) else model.tokenizer.decode(prompt) for prompt in prompts]


def _join(choice: CompletionChoice, part: CompletionChoice) -> None:
    """Add a step's part to a whole choice."""
    choice.text += part.text
    choice.finish_reason, choice.stop_reason = part.finish_reason, part.stop_reason
    if part.logprobs is not None:
        choice.logprobs = choice.logprobs or CompletionLogprobs([], [], [], [])
        extend(choice.logprobs, part.logprobs)
    if part.token_ids is not UNSET:
        choice.token_ids = [*(choice.token_ids or []), *part.token_ids]
    if part.prompt_token_ids is not UNSET:
        choice.prompt_token_ids = part.prompt_token_ids
    if part.prompt_logprobs is not UNSET:
        choice.prompt_logprobs = part.prompt_logprobs
