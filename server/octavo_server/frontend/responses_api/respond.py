"""POST /v1/responses: a chat, told in the objects and events of responses."""

import contextlib
from collections.abc import AsyncGenerator, Callable
from functools import partial

from octavo_server.errors import EngineError
from octavo_server.frontend.chat_prompt import PreparedChat
from octavo_server.frontend.generation import Caller
from octavo_server.frontend.responses_api.asked import asked_chat, prepared_chat
from octavo_server.frontend.responses_api.fields import ResponsesRequest
from octavo_server.frontend.responses_api.head import Head
from octavo_server.frontend.responses_api.store import ResponseStore, Turn
from octavo_server.frontend.responses_api.telling import Ended, ResponseEvents, Telling
from octavo_server.frontend.state import ServerState

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
        conversation, chat = await asked_chat(state, store, request, caller.salt)
        request, prepared = await prepared_chat(state, request, chat, caller)
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
