"""What a request for a response asks: the conversation that it goes on with, as a chat that has been prepared."""

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

    OpenAI's responses take a tool that does not say whether it is strict for one that is. Where its schema cannot be
    held, it was not meant so.

    Raises:
        RequestError: as `prepare_chat` does, in the words of responses.
    """
    strict = request.with_strict(True)
    try:
        try:
            return strict, await prepare_chat(state, chat.model_copy(update={"tools": tools(strict)}), caller)
        except RequestError as error:
            if strict is request or error.param != "tools":
                raise
        caller.place.leave()
        loose = request.with_strict(False)
        return loose, await prepare_chat(state, chat.model_copy(update={"tools": tools(loose)}), caller)
    except RequestError as error:
        raise renamed(error) from error


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
