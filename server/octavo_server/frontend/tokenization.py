"""POST /tokenize and /detokenize, as in vLLM: what the tokenizer makes of a text or a chat, and of token ids."""

from typing import Annotated, Any, Final

import msgspec
from pydantic import Field, model_validator

from octavo_server.errors import RequestError
from octavo_server.frontend.chat_prompt import chat_text, shown_texts
from octavo_server.frontend.fields import Body, Only, field_error
from octavo_server.frontend.generation_fields import TokenId
from octavo_server.frontend.message_fields import MAX_MESSAGES, Message
from octavo_server.frontend.model import ServedModel
from octavo_server.frontend.openai import MEDIA, PROGRAM, TEMPLATE_VARIABLES, ChatCompletionRequest
from octavo_server.frontend.responses import encode
from octavo_server.frontend.sampling import check_token_ids
from octavo_server.frontend.state import ServerState
from octavo_server.frontend.tool_fields import Tools
from octavo_server.frontend.tool_use import shown_tools

# Not bounded by the context: whoever counts tokens wants to know by how much a text is too long.
MAX_CHARACTERS: Final = 4_194_304
MAX_IDS: Final = 1_048_576
_CHARACTERS_OF_TOKEN: Final = 16  # for the bound on texts that are worked on at once; the most is longer, and rare
ModelName = Annotated[str, Field(min_length=1, max_length=256)]


class TokenizeRequest(Body):
    """Body of POST /tokenize: either `prompt`, or the `messages` of a chat."""

    model: ModelName | None = None
    prompt: Annotated[str, Field(max_length=MAX_CHARACTERS)] | None = None
    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES)] | None = None
    add_special_tokens: Annotated[bool, Field(description="default: true for a prompt, false for a chat")] | None = None
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: Annotated[dict[str, Any], TEMPLATE_VARIABLES] | None = None
    tools: Tools | None = None
    # Not supported: only the value that asks for nothing.
    chat_template: Annotated[Any, Only(why=PROGRAM)] = None
    media_io_kwargs: Annotated[Any, Only({}, why=MEDIA)] = None
    mm_processor_kwargs: Annotated[Any, Only({}, why=MEDIA)] = None

    @model_validator(mode="after")
    def _a_prompt_or_a_chat(self) -> "TokenizeRequest":
        if self.prompt is None and self.messages is None:
            raise field_error("prompt", "this field is required, or messages")
        if self.prompt is not None and self.messages is not None:
            raise field_error("prompt", "either prompt or messages is needed, and not both")
        for name in ("add_generation_prompt", "continue_final_message", "chat_template_kwargs", "tools"):
            if self.messages is None and getattr(self, name) is not None:
                raise field_error(name, "is only allowed together with messages")
        if self.continue_final_message and self.add_generation_prompt:
            raise field_error("add_generation_prompt", "is not allowed together with continue_final_message")
        return self


class DetokenizeRequest(Body):
    """Body of POST /detokenize."""

    model: ModelName | None = None
    tokens: Annotated[list[TokenId], Field(fail_fast=True, max_length=MAX_IDS)]


class Tokenized(msgspec.Struct):
    """Answer of POST /tokenize. `token_strs`: the tokens as the tokenizer's vocabulary spells them, if asked for."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Detokenized(msgspec.Struct):
    """Answer of POST /detokenize: the text, special tokens included."""

    prompt: str


async def tokenize(state: ServerState, request: TokenizeRequest, caller: bytes) -> bytes:
    """The answer's JSON, made beside the event loop. caller: who takes turns with others.

    Raises:
        RequestError: the messages cannot be rendered, or make too long a text; no such model; the server is not ready.
    """
    model, ready = state.serving(request.model or state.names[0], text=False)
    text, is_chat = request.prompt or "", request.messages is not None
    if is_chat:
        text = await _rendered(request, model, caller)
    special = not is_chat if request.add_special_tokens is None else request.add_special_tokens

    def answer() -> bytes:
        ids = model.tokenizer.encode(text, add_special_tokens=special)
        strings = model.tokenizer.spelled(ids) if request.return_token_strs else None
        return encode(Tokenized(len(ids), ready.max_model_len, ids, strings))

    return await state.text_threads.run_on_text(len(text), answer)


async def detokenize(state: ServerState, request: DetokenizeRequest) -> bytes:
    """The answer's JSON, made beside the event loop.

    Raises:
        RequestError: there is no such token; no such model; the server is not ready.
    """
    model, _ = state.serving(request.model or state.names[0], text=False)
    ids = request.tokens
    check_token_ids(ids, model.vocab_size, "tokens")
    return await state.text_threads.run_on_text(
        _CHARACTERS_OF_TOKEN * len(ids), lambda: encode(Detokenized(model.tokenizer.decode(ids, skip_special=False)))
    )


async def _rendered(request: TokenizeRequest, model: ServedModel, caller: bytes) -> str:
    chat = ChatCompletionRequest.model_construct(
        model=request.model or "",
        messages=request.messages or [],
        add_generation_prompt=request.add_generation_prompt,
        continue_final_message=request.continue_final_message,
        chat_template_kwargs=request.chat_template_kwargs,
    )
    check_characters(sum(map(len, shown_texts(chat.messages))), "messages")
    text = await chat_text(chat, model, caller, shown_tools(request.tools or [], model))
    check_characters(len(text), "messages")
    return text


def check_characters(found: int, param: str) -> None:
    """Refuse a chat whose tokens are to be counted, and are too many to.

    Raises:
        RequestError: it has too many characters; `param` is the field that holds it.
    """
    if found > MAX_CHARACTERS:
        raise RequestError(f"{param}: it makes {found} characters or more, of {MAX_CHARACTERS} at most", param=param)
