"""POST /v1/responses: a chat, told in the objects and events of responses."""

import contextlib
import logging
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Final

import msgspec

from octavo_server.errors import EngineError, RequestError
from octavo_server.frontend.answer import Answer, Delta
from octavo_server.frontend.chat_prompt import PreparedChat, prepare_chat
from octavo_server.frontend.generation import Caller
from octavo_server.frontend.logprobs import chat_logprobs
from octavo_server.frontend.openai import ChatCompletionRequest
from octavo_server.frontend.parsing import Piece
from octavo_server.frontend.refusal import engine_error
from octavo_server.frontend.responses import TokenLogprob, encode
from octavo_server.frontend.responses_api import events
from octavo_server.frontend.responses_api.conversation import Conversation, check_length
from octavo_server.frontend.responses_api.fields import ResponsesRequest
from octavo_server.frontend.responses_api.head import Head
from octavo_server.frontend.responses_api.objects import Response, ResponseError
from octavo_server.frontend.responses_api.output import Output
from octavo_server.frontend.responses_api.store import ResponseStore, Turn
from octavo_server.frontend.responses_api.to_chat import chat_request, renamed
from octavo_server.frontend.state import ServerState
from octavo_server.frontend.text_threads import SHORT_TEXT
from octavo_server.ipc import TokenLogprobs

log = logging.getLogger(__name__)

_SHORT_INPUT: Final = 64  # items


class Responding:
    """One request that has been checked and tokenized."""

    def __init__(
        self, state: ServerState, store: ResponseStore, head: Head, prepared: PreparedChat, key: str | None
    ) -> None:
        self._state = state
        self._store = store
        self._head = head
        self._key = key
        self._generation = prepared.generation
        with_logprobs = head.request.num_logprobs is not None
        self._parser = None if prepared.parsing is None else prepared.parsing.choice(with_logprobs=with_logprobs)
        self._output = Output(head.id, self._generation.model.format.call_id, self._spell)
        self._finish_reason: str | None = None
        self._only_text = prepared.parsing is None and not with_logprobs

    @classmethod
    async def prepare(
        cls, state: ServerState, store: ResponseStore, request: ResponsesRequest, caller: Caller
    ) -> "Responding":
        """Make the prompt, beside the event loop.

        Raises:
            RequestError: there is no such previous response; or as `prepare_chat` does, in the words of responses.
        """
        state.serving(request.model)
        before = _before(store, request, caller.key)
        conversation, chat = await _translated(state, request, before)
        try:
            prepared = await prepare_chat(state, chat, caller)
        except RequestError as error:
            raise renamed(error) from error
        return cls(state, store, await Head.prepare(state, request, prepared, conversation), prepared, caller.key)

    async def answer(self) -> bytes:
        """The whole response, as JSON.

        Raises:
            EngineError: the engine could not finish it.
        """
        (whole,) = await self._generation.whole()

        def render() -> tuple[Response, bytes]:
            self._take(whole)
            self._output.end(complete=self._is_complete)
            response = self._ended()
            return response, encode(response)

        response, body = await self._state.render(whole.weight, render)
        self._keep(response, body)
        return body

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The stream. The first events come with the first token: what goes wrong before has a status of its own.

        Raises:
            EngineError: the engine gave nothing. Later it becomes the last event.
        """
        begun = False
        source = self._generation.events(self._frames, self._closing, only_text=self._only_text)
        try:
            async with contextlib.aclosing(source):
                async for data in source:
                    begun = True
                    yield data
        except EngineError as error:
            if not begun:
                raise
            yield self._failed(error)

    def _frames(self, changes: Sequence[tuple[Answer, Delta]], begun: set[int]) -> bytes:
        """The events for what steps brought. `begun`: empty before the first ones."""
        found: list[msgspec.Struct] = []
        if not begun:
            begun.add(0)
            number, response = self._output.numbers, self._head.response("in_progress", [])
            found += [events.Created(number(), response), events.InProgress(number(), response)]
        for _, delta in changes:
            found += self._take(delta)
        return b"".join(map(events.frame, found))

    def _closing(self) -> bytes:
        """What follows the answer's end. It is stored before the client can know it."""
        found = self._output.end(complete=self._is_complete)
        response, number = self._ended(), self._output.numbers
        self._keep(response, encode(response))
        kind = events.Completed if self._is_complete else events.Incomplete
        return b"".join(map(events.frame, [*found, kind(number(), response)]))

    def _failed(self, error: EngineError) -> bytes:
        found = self._output.end(complete=False)
        response = self._head.response("failed", self._output.items)
        said = engine_error(error)
        response.error = ResponseError(code="server_error", message=said.message)
        event = events.Failed(self._output.numbers(), response)
        return b"".join(map(events.frame, [*found, event]))

    def _take(self, delta: Delta) -> list[msgspec.Struct]:
        """The events of what a delta adds."""
        self._finish_reason = delta.finish_reason or self._finish_reason
        piece = Piece(delta.text, logprobs=delta.logprobs) if self._parser is None else self._parser.add(delta)
        return self._output.add(piece)

    @property
    def _is_complete(self) -> bool:
        return self._finish_reason == "stop"

    def _ended(self) -> Response:
        thoughts = 0 if self._parser is None else self._parser.reasoning_tokens
        return self._head.ended(self._output.items, self._generation.usage(), thoughts, complete=self._is_complete)

    def _keep(self, response: Response, body: bytes) -> None:
        if self._head.request.is_stored:
            turn = self._head.conversation.turn(response.output, response.id)
            self._store.put(self._key, response.id, body, turn)

    def _spell(self, entries: Sequence[TokenLogprobs]) -> list[TokenLogprob]:
        if self._head.request.num_logprobs is None:
            return []
        return chat_logprobs(self._generation.model.tokenizer, entries).content


def _before(store: ResponseStore, request: ResponsesRequest, key: str | None) -> Turn | None:
    previous = request.previous_response_id
    if previous is None:
        return None
    stored = store.get(key, previous)
    if stored is None:
        raise RequestError(
            f"previous_response_id: there is no response {previous!r}: it was never kept, has been deleted or is too "
            "old; send its items as input",
            param="previous_response_id",
            code="previous_response_not_found",
        )
    check_length(stored.turn)
    return stored.turn


async def _translated(
    state: ServerState, request: ResponsesRequest, before: Turn | None
) -> tuple[Conversation, ChatCompletionRequest]:
    """The conversation and the chat that it is, made beside the event loop if that is much work."""

    def translate() -> tuple[Conversation, ChatCompletionRequest]:
        conversation = Conversation.of(request, before)
        return conversation, chat_request(request, conversation.items)

    items: Any = request.input
    short = isinstance(items, str) or len(items) <= _SHORT_INPUT
    if short and (before is None or before.size <= SHORT_TEXT):
        return translate()
    return await state.in_thread(translate)
