"""POST /v1/responses: a chat, told in the objects and events of responses."""

import contextlib
from collections.abc import AsyncGenerator, Callable
from functools import partial

from octavo_server.errors import EngineError, RequestError
from octavo_server.frontend.chat_prompt import PreparedChat, prepare_chat
from octavo_server.frontend.generation import Caller
from octavo_server.frontend.openai import ChatCompletionRequest
from octavo_server.frontend.responses_api.conversation import Conversation, check_length, is_short
from octavo_server.frontend.responses_api.fields import ResponsesRequest
from octavo_server.frontend.responses_api.head import Head
from octavo_server.frontend.responses_api.store import ResponseStore, Turn
from octavo_server.frontend.responses_api.telling import Ended, ResponseEvents, Telling
from octavo_server.frontend.responses_api.to_chat import chat_request, renamed
from octavo_server.frontend.state import ServerState
from octavo_server.frontend.text_threads import SHORT_TEXT

Keep = Callable[[bytes, Turn], None]


class Responding:
    """One request that has been checked and tokenized."""

    def __init__(self, state: ServerState, head: Head, prepared: PreparedChat, keep: Keep) -> None:
        """keep: puts it where it can be asked for."""
        self._state = state
        self._generation = prepared.generation
        self._telling = Telling(head, prepared)
        self._keep = keep

    @classmethod
    async def prepare(
        cls, state: ServerState, store: ResponseStore, request: ResponsesRequest, caller: Caller
    ) -> "Responding":
        """Make the prompt, beside the event loop.

        Raises:
            RequestError: there is no such previous response; or as `prepare_chat` does, in the words of responses.
        """
        state.serving(request.model)
        before = _before(store, request, caller.salt)
        conversation, chat = await _translated(state, request, before)
        try:
            prepared = await prepare_chat(state, chat, caller)
        except RequestError as error:
            raise renamed(error) from error
        head = await Head.prepare(state, request, prepared, conversation)
        if caller.record is not None:
            caller.record.response_id = head.id
        return cls(state, head, prepared, partial(store.put, caller.salt, head.id))

    async def answer(self) -> bytes:
        """The whole response, as JSON.

        Raises:
            EngineError: the engine could not finish it.
        """
        (whole,) = await self._generation.whole()

        def render() -> Ended:
            self._telling.take(whole)
            return self._telling.end()

        return self._kept(await self._state.render(whole.weight, render)).json

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The stream. The first events come with the first token: what goes wrong before has a status of its own.

        Raises:
            EngineError: the engine gave nothing. Later it becomes the last event.
        """
        form, begun = ResponseEvents(self._telling), False
        source = self._generation.events(form, only_text=self._telling.only_text)
        try:
            async with contextlib.aclosing(source):
                async for data in source:
                    begun = True
                    yield data
        except EngineError as error:
            if not begun:
                raise
            yield form.failed(error)
            return

        def render() -> tuple[Ended, bytes]:
            ended = self._telling.end()
            return ended, form.end(ended)

        ended, data = await self._state.render(self._telling.weight, render)
        self._kept(ended)  # before the client can know its end
        yield data

    def _kept(self, ended: Ended) -> Ended:
        if ended.turn is not None:
            self._keep(ended.json, ended.turn)
        return ended


def _before(store: ResponseStore, request: ResponsesRequest, key: bytes) -> Turn | None:
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

    earlier = 0 if before is None else before.size
    if is_short(request.input) and earlier <= SHORT_TEXT:
        return translate()
    return await state.in_thread(translate)
