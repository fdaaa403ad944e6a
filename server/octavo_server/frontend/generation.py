"""The choices of one HTTP request, from its prompts to the last token."""

import contextlib
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol, Self

import msgspec

from octavo_common.access.rates import UNLIMITED, Ticket
from octavo_server import ipc
from octavo_server.errors import EngineError, RequestError
from octavo_server.frontend.admission import Place
from octavo_server.frontend.answer import Answer, Delta
from octavo_server.frontend.generation_fields import GenerationRequest
from octavo_server.frontend.ids import new_id
from octavo_server.frontend.model import ServedModel
from octavo_server.frontend.outlet import Outlet
from octavo_server.frontend.output_stream import Choice
from octavo_server.frontend.request_record import RequestRecord
from octavo_server.frontend.responses import PromptTokensDetails, Usage
from octavo_server.frontend.resume import check_resume, replay, replayed_tokens
from octavo_server.frontend.sampling import (
    Asked,
    BadWords,
    answer_length,
    check_parameters,
    check_token_ids,
    encode_bad_words,
    sampling_params,
    text_options,
)
from octavo_server.frontend.state import ServerState
from octavo_server.metrics import PromptMetrics, RequestMetrics
from octavo_server.page_hash import hash_pages

PREPARE_TOKENS: Final = 4096  # of prompts, and choices, that are prepared in the event loop: a millisecond
PREPARE_CHOICES: Final = 16


@dataclass(frozen=True, slots=True)
class Wanted:
    """What answers may be. How long: `asked`, else `default`, else whatever fits.

    `param` names the field of the prompt. `grammar`: as in `ipc.SamplingParams`. `kept`: as in `TextOptions`.
    """

    asked: int | None
    default: int | None
    param: str
    grammar: str = ""
    kept: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose request it is. `arrival`: seconds of CLOCK_MONOTONIC; `salt`: of the API key, empty if there is none.

    `key` is the API key's name, for logs; `ticket` counts the tokens that its limits allow; `outlet` writes what a
    stream gets to its connection at once. `is_gateway`: by its key.
    """

    arrival: float
    salt: bytes
    place: Place
    key: str | None = None
    ticket: Ticket = UNLIMITED
    outlet: Outlet | None = None
    is_gateway: bool = False
    record: RequestRecord | None = None

    def cache_salt(self, own: str | None) -> bytes:
        """Requests share cached pages where this is equal: the request's own word, else what its API key stands for."""
        return self.salt if own is None else b"salt:" + own.encode()

    def deadline(self, *limits: float | None) -> float | None:
        """When it is given up: after the least of some seconds from its arrival on; never if there are none."""
        seconds = min((limit for limit in limits if limit is not None), default=None)
        return None if seconds is None else self.arrival + seconds


class Events(Protocol):
    """How the events of a stream look. Each method gives the bytes of as many as it takes."""

    def frames(self, changes: Sequence[tuple[Answer, Delta]], begun: set[int]) -> bytes:
        """What steps brought. `begun`: choices that have had an event, to which it adds."""
        ...

    def ending(self, answer: Answer, delta: Delta) -> bytes:
        """How a choice ended, of which all else has been sent."""
        ...

    def closing(self) -> bytes:
        """What follows the last choice's end."""
        ...


class Generation:
    """One HTTP request to the engine. Each prompt becomes `n` choices, those of a prompt behind each other."""

    @classmethod
    async def prepare(
        cls,
        state: ServerState,
        request: GenerationRequest,
        prompts: Sequence[list[int]],
        wanted: Wanted,
        caller: Caller,
    ) -> Self:
        """Make one, beside the event loop if it is much work: a turn of another thread is some itself.

        Raises:
            RequestError: as making one does; 429 if its tokens are more than its key's limit leaves.
        """
        choices, tokens = len(prompts) * request.num_choices, sum(map(len, prompts))
        work = tokens + len(replayed_tokens(request))
        if choices <= PREPARE_CHOICES and work <= PREPARE_TOKENS and not request.bad_words:
            made = cls(state, request, prompts, wanted, caller)
        else:
            made = await state.in_thread(cls, state, request, prompts, wanted, caller)
        caller.ticket.reserve(tokens, wanted.asked if wanted.asked is not None else wanted.default, choices)
        if (record := caller.record) is not None:  # from here on it is the engine's
            record.model, record.request, record.engine_id = request.model, request, made.id
            record.prompt_tokens = tokens
        return made

    def __init__(
        self,
        state: ServerState,
        request: GenerationRequest,
        prompts: Sequence[list[int]],
        wanted: Wanted,
        caller: Caller,
    ) -> None:
        """Check the prompts and prepare the choices; nothing is sent before `deltas` is iterated over.

        Its work grows with the prompts: the event loop calls `prepare` instead.

        Raises:
            RequestError: a prompt is empty, too long, or has a token id that does not exist; no requests are taken.
        """
        self.model, self._ready = state.serving(request.model)
        self._state = state
        self._request = request
        self._prompts = prompts
        self._caller = caller
        self.text_options = text_options(request, wanted.kept)
        self.id = new_id()
        self.created = state.now() if request.octavo_resume is None else request.octavo_resume.created
        check_parameters(request, self.model, prompts)
        check_resume(request, prompts, self.model.vocab_size, by_gateway=caller.is_gateway)
        bad_words = encode_bad_words(self.model, request)
        self._epoch = state.client.epoch
        self._choices: list[Choice] = []
        for at, ids in enumerate(prompts):
            sampling = self._sampling(ids, wanted, bad_words)
            self._choices += self._choices_of(at, ids, sampling)
        self.answers = [choice.answer for choice in self._choices]
        self._replayed = replay(request, self.answers[0], sampling, self._ready.eos_token_ids)

    def response_id(self, kind: str) -> str:
        """What the answer is called, in the logs too."""
        resume = self._request.octavo_resume
        called = f"{kind}-{self._request.request_id or self.id}" if resume is None else resume.response_id
        if self._caller.record is not None:
            self._caller.record.response_id = called
        return called

    async def deltas(
        self, *, whole: bool = False, at_once: Callable[[list[tuple[Answer, Delta]]], bool] | None = None
    ) -> AsyncGenerator[list[tuple[Answer, Delta]], None]:
        """What the steps add, until all choices have ended; with `whole` everything at the end.

        at_once: what comes while this is waited for goes there, unless it returns False.

        Raises:
            EngineError: the engine is not there, died, or could not finish one of them.
        """
        reason, failure = "abort", None
        try:
            with self._state.client.submit(self._choices, whole=whole) as stream:
                stream.at_once = at_once
                self._caller.place.leave()
                async with contextlib.aclosing(stream.deltas()) as changes:
                    async for change in changes:
                        yield change
        except EngineError as error:
            reason, failure = "error", error.kind
            raise
        finally:
            self._end(reason, failure)

    def _end(self, reason: str, failure: str | None = None) -> None:
        for answer in self.answers:
            answer.metrics.end(reason)  # those that have ended otherwise do not count again
        if self._caller.record is not None:
            self._caller.record.generated(self.answers, self.usage(), failure)
        self._caller.ticket.used(sum(map(len, self._prompts)), (answer.num_tokens for answer in self.answers))

    async def events(self, form: Events, *, only_text: bool) -> AsyncGenerator[bytes, None]:
        """The events of a stream, those of what `deltas` gives at a time together.

        only_text: no event holds more than a text and how it ended, so one is no work.

        Raises:
            EngineError: the engine could not finish one of the choices.
        """
        begun: set[int] = set()
        if self._replayed is not None:
            answer, delta = self.answers[0], self._replayed
            # What comes of it has been sent, by another server; what follows depends on it.
            await self._state.render(answer.num_tokens, partial(form.frames, [(answer, delta)], begun))
            if delta.finish_reason is not None:
                self._end(delta.finish_reason)
                yield form.ending(answer, delta) + form.closing()
                return
        outlet = self._caller.outlet if only_text else None

        def write(changes: Sequence[tuple[Answer, Delta]]) -> bool:
            if outlet is None or not outlet.is_open:
                return False
            if found := form.frames(changes, begun):
                outlet.write(found)
            return True

        # Who stops here has ended the request, too.
        async with contextlib.aclosing(self.deltas(at_once=None if outlet is None else write)) as deltas:
            async for changes in deltas:
                complete = self.is_complete  # before anything waits, and more may come
                if only_text and len(changes) == 1 and not changes[0][1].is_long:
                    found = form.frames(changes, begun)
                else:
                    weight = sum(delta.weight for _, delta in changes)
                    found = await self._state.render(weight, partial(form.frames, changes, begun))
                if complete:
                    found += form.closing()
                if found:
                    yield found

    @property
    def is_complete(self) -> bool:
        """Whether all choices have ended: right behind what `deltas` gave out, whether that was the last of it."""
        return all(answer.finished for answer in self.answers)

    async def whole(self) -> list[Delta]:
        """The choices in their order, once all have ended.

        Raises:
            EngineError: the engine is not there, died, or could not finish one of them.
        """
        found = {answer.index: delta async for change in self.deltas(whole=True) for answer, delta in change}
        wholes = [found[answer.index] for answer in self.answers]
        for index, whole in enumerate(wholes):
            whole.prompt_logprobs = wholes[index - index % self._request.num_choices].prompt_logprobs
        return wholes

    def usage(self) -> Usage:
        """Tokens so far. The choices of a prompt share it: it counts once, and cached is what each of them found."""
        n = self._request.num_choices
        prompt = sum(len(ids) for ids in self._prompts)
        completion = sum(answer.num_tokens for answer in self.answers)
        groups = [self.answers[at : at + n] for at in range(0, len(self.answers), n)]
        cached = sum(min(answer.num_cached_tokens for answer in group) for group in groups)
        return Usage(prompt, completion, prompt + completion, PromptTokensDetails(cached))

    def _sampling(self, ids: list[int], wanted: Wanted, bad_words: BadWords) -> ipc.SamplingParams:
        max_tokens = _check_prompt(ids, self.model, wanted, self._ready.max_model_len)
        asked = Asked(max_tokens, self._state.draw_seed(), bad_words, wanted.grammar)
        made = sampling_params(self._request, self.model.defaults, asked)
        allowed = self._request.allowed_token_ids
        if allowed is None or not set(allowed).isdisjoint((*self._ready.eos_token_ids, *made.stop_token_ids)):
            return made
        return msgspec.structs.replace(made, min_tokens=max_tokens)  # its end is not among what the answer may have

    def _choices_of(self, prompt: int, ids: list[int], sampling: ipc.SamplingParams) -> Iterator[Choice]:
        """The choices of one prompt: the same but for their number, which changes the noise.

        The prompt's log-probabilities are computed once, where no choice is sent before all have ended.
        """
        request, n = self._request, self._request.num_choices
        salt = self._caller.cache_salt(request.cache_salt)
        asked = ipc.AddRequest(
            epoch=self._epoch,
            request_id="",
            prompt_token_ids=ids,
            sampling=sampling,
            arrival=self._caller.arrival,
            page_hashes=hash_pages(ids, self._ready.block_size, salt) if self._ready.prefix_caching else b"",
            salt=salt,
            priority=request.priority or 0,
            deadline=self._caller.deadline(request.timeout, self._state.config.request_timeout),
            output_token_ids=replayed_tokens(request),
        )
        numbered = [
            msgspec.structs.replace(
                sampling,
                choice=number,
                prompt_logprobs=sampling.prompt_logprobs if number == 0 or request.stream else None,
            )
            for number in range(n)
        ]
        ids_of = [f"{self.id}-{prompt * n + number}" for number in range(n)]
        frame = _frame(asked, list(zip(ids_of, numbered, strict=True)))
        shared = PromptMetrics(self._state.metrics, n)
        for number, request_id in enumerate(ids_of):
            metrics = RequestMetrics(
                self._state.metrics,
                self._caller.arrival,
                len(ids),
                max_tokens=sampling.max_tokens,
                prompt=shared,
            )
            answer = Answer(prompt * n + number, ids, self.model.tokenizer, self.text_options, metrics)
            yield Choice(request_id, self._epoch, frame if number == 0 else None, answer)


def _frame(asked: ipc.AddRequest, choices: list[tuple[str, ipc.SamplingParams]]) -> bytes:
    """The message that asks for a prompt's choices, encoded."""
    (request_id, sampling), *others = choices
    first = msgspec.structs.replace(asked, request_id=request_id, sampling=sampling)
    if not others:
        return ipc.encoder.encode(first)
    if sampling.grammar:  # once is enough
        others = [(name, msgspec.structs.replace(each, grammar="")) for name, each in others]
    return ipc.encoder.encode(ipc.AddChoices(asked.epoch, first, others))


def _check_prompt(ids: list[int], model: ServedModel, wanted: Wanted, max_model_len: int) -> int:
    """The most tokens that the answer may have."""
    if not ids:
        raise RequestError(f"{wanted.param}: it is empty; it needs at least one token", param=wanted.param)
    check_token_ids(ids, model.vocab_size, wanted.param)
    room = answer_length(wanted.asked, prompt_tokens=len(ids), max_model_len=max_model_len, param=wanted.param)
    return room if wanted.asked is not None or wanted.default is None else min(room, wanted.default)
