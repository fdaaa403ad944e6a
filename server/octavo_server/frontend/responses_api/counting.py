"""POST /v1/responses/input_tokens: how many tokens the prompt of a response would have."""

from typing import Annotated, Any, Literal

from msgspec import Struct
from pydantic import Field

from octavo_server.errors import RequestError
from octavo_server.frontend.chat_prompt import chat_text, shown_texts
from octavo_server.frontend.fields import Body, Only
from octavo_server.frontend.generation_fields import Text
from octavo_server.frontend.responses import encode
from octavo_server.frontend.responses_api.asked import asked_chat
from octavo_server.frontend.responses_api.fields import (
    Input,
    ReasoningConfig,
    ResponseId,
    ResponsesRequest,
    TextConfig,
)
from octavo_server.frontend.responses_api.hints import PROMPT_HINTS
from octavo_server.frontend.responses_api.store import ResponseStore
from octavo_server.frontend.responses_api.to_chat import renamed
from octavo_server.frontend.responses_api.tool_fields import ToolChoice, Tools
from octavo_server.frontend.state import ServerState
from octavo_server.frontend.tokenization import ModelName, check_characters
from octavo_server.frontend.tool_use import tool_use


class InputTokensRequest(Body):
    """Its body: those fields of POST /v1/responses that make the prompt."""

    hints = PROMPT_HINTS

    model: ModelName | None = None
    input: Input | None = None
    instructions: Text | None = None
    previous_response_id: ResponseId | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    parallel_tool_calls: Annotated[bool | None, Field(description="of no effect")] = None
    truncation: Annotated[Any, Only("disabled", why="what is left out of a conversation is the client's choice")] = None
    conversation: Annotated[Any, Only(why="use previous_response_id")] = None
    personality: Annotated[Any, Only(why="say it in instructions")] = None


class InputTokens(Struct):
    """Its answer."""

    input_tokens: int
    object: Literal["response.input_tokens"] = "response.input_tokens"


async def count_input(state: ServerState, store: ResponseStore, request: InputTokensRequest, key: bytes) -> bytes:
    """The answer's JSON. A prompt may be longer than the context: whoever counts wants to know by how much.

    Raises:
        RequestError: there is no such model or previous response; the prompt cannot be made, or is too long a text.
    """
    fields: dict[str, Any] = {
        name: value for name in InputTokensRequest.model_fields if (value := getattr(request, name)) is not None
    }
    asked = ResponsesRequest.model_construct(**{"model": state.names[0], "input": []} | fields, store=False)
    model, _ = state.serving(asked.model)
    _, chat = await asked_chat(state, store, asked, key)
    try:
        check_characters(sum(map(len, shown_texts(chat.messages))), "messages")
        text = await chat_text(chat, model, key, tool_use(chat, model).shown)
        check_characters(len(text), "messages")
    except RequestError as error:
        raise renamed(error) from error

    def answer() -> bytes:
        return encode(InputTokens(len(model.tokenizer.encode(text, add_special_tokens=False))))

    return await state.text_threads.run_on_text(len(text), answer)
