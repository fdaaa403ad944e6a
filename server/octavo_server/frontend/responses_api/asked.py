"""What a request for a response asks: the conversation that it goes on with, as a chat that has been prepared."""

import re
from typing import Final

from octavo_server.errors import RequestError
from octavo_server.frontend.chat_prompt import PreparedChat, prepare_chat
from octavo_server.frontend.generation import Caller
from octavo_server.frontend.openai import ChatCompletionRequest
from octavo_server.frontend.responses_api.conversation import Conversation, check_length, is_short
from octavo_server.frontend.responses_api.fields import ResponsesRequest
from octavo_server.frontend.responses_api.store import ResponseStore, Turn
from octavo_server.frontend.responses_api.to_chat import chat_request, renamed, tools
from octavo_server.frontend.state import ServerState
from octavo_server.frontend.text_threads import SHORT_TEXT

_PARAMETERS: Final = re.compile(r"tools\[(\d+)\]\.function\.parameters")
_MOST_TRIED: Final = 8


async def asked_chat(
    state: ServerState, store: ResponseStore, request: ResponsesRequest, key: bytes
) -> tuple[Conversation, ChatCompletionRequest]:
    """The conversation and the chat that it is, made beside the event loop if that is much work.

    Raises:
        RequestError: this key has no such previous response; the conversation is too long, or no chat.
    """
    before = _before(store, request, key)

    def translate() -> tuple[Conversation, ChatCompletionRequest]:
        conversation = Conversation.of(request, before)
        return conversation, chat_request(request, conversation.items)

    earlier = 0 if before is None else before.size
    if is_short(request.input) and earlier <= SHORT_TEXT:
        return translate()
    return await state.in_thread(translate)


async def prepared_chat(
    state: ServerState, request: ResponsesRequest, chat: ChatCompletionRequest, caller: Caller
) -> tuple[ResponsesRequest, PreparedChat]:
    """The chat with its prompt, and the request with what was decided for it.

    OpenAI's responses take a tool that does not say whether it is strict for one that is. One whose schema cannot be
    held was not meant so; those behind the first few of them are not looked at.

    Raises:
        RequestError: as `prepare_chat` does, in the words of responses.
    """
    decided = request.with_strict(True)
    for tried in range(_MOST_TRIED + 1):
        try:
            return decided, await prepare_chat(state, chat.model_copy(update={"tools": tools(decided)}), caller)
        except RequestError as error:
            index = _unheld(error)
            if index is None or (request.tools or ())[index].strict is not None:
                raise renamed(error) from error
            caller.place.leave()
            decided = decided.without_strict(index) if tried < _MOST_TRIED - 1 else request.with_strict(False)
    raise RequestError("tools: their schemas cannot be held together", param="tools")


def _unheld(error: RequestError) -> int | None:
    """The tool whose schema cannot be held, if that is it."""
    found = _PARAMETERS.fullmatch(error.param or "")
    return None if found is None else int(found[1])


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
