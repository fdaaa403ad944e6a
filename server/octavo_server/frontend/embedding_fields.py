"""The body of POST /v1/embeddings: OpenAI's, with vLLM's extensions, every field bounded."""

from typing import Annotated, Any, Final, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from octavo_server.frontend.fields import Body, Only, ShortText, field_error, kind
from octavo_server.frontend.generation_fields import MAX_TEXT, MAX_TOKENS, RequestId, TokenIds
from octavo_server.frontend.message_fields import MAX_MESSAGES, Message
from octavo_server.frontend.openai import MEDIA, PROGRAM, TEMPLATE_VARIABLES, ChatCompletionRequest, prompt_kind

MAX_INPUTS: Final = 2048  # OpenAI's
MAX_DIMENSIONS: Final = 1_048_576
_ENCODING: Final = "base64 is of little-endian float32"
InputText = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]

Input = Annotated[
    Annotated[InputText, Tag("text")]
    | Annotated[list[InputText], Field(fail_fast=True, max_length=MAX_INPUTS), Tag("texts")]
    | Annotated[TokenIds, Tag("tokens")]
    | Annotated[list[TokenIds], Field(fail_fast=True, max_length=MAX_INPUTS), Tag("token lists")],
    Discriminator(
        kind(strings="text", lists=prompt_kind),
        custom_error_type="input_type",
        custom_error_message=(
            "Input should be a string, a list of strings, a list of token ids or several such lists, and not empty"
        ),
    ),
]


class EmbeddingRequest(Body):
    """Body of POST /v1/embeddings: either `input`, or a chat's `messages`, which make one embedding."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    input: Input | None = None
    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES)] | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=MAX_DIMENSIONS)] | None = None
    use_activation: Annotated[bool, Field(description="whether to normalize")] | None = None
    normalize: Annotated[bool, Field(description="the same")] | None = None
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: (
        Annotated[int, Field(ge=-1, le=MAX_TOKENS, description="tokens of an input to keep; -1: as many as fit")] | None
    ) = None
    truncation_side: Annotated[Literal["left", "right"], Field(description="where tokens are left out")] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: Annotated[dict[str, Any], TEMPLATE_VARIABLES] | None = None
    priority: Annotated[int, Field(ge=-1000, le=1000, description="lower ones go first")] | None = None
    timeout: (
        Annotated[
            float, Field(ge=0.001, le=86_400.0, allow_inf_nan=False, description="seconds until it ends with an error")
        ]
        | None
    ) = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    request_id: RequestId | None = None
    user: ShortText | None = None  # taken and of no effect
    # Not supported: only the value that asks for nothing.
    embed_dtype: Annotated[Any, Only("float32", why=_ENCODING)] = None
    endianness: Annotated[Any, Only("native", "little", why=_ENCODING)] = None
    padding: Annotated[Any, Only("do_not_pad", why="a shorter text needs none")] = None
    chat_template: Annotated[Any, Only(why=PROGRAM)] = None
    media_io_kwargs: Annotated[Any, Only({}, why=MEDIA)] = None
    mm_processor_kwargs: Annotated[Any, Only({}, why=MEDIA)] = None

    @model_validator(mode="after")
    def _one_kind_of_input(self) -> "EmbeddingRequest":
        if self.input is None and self.messages is None:
            raise field_error("input", "this field is required, or messages")
        if self.input is not None and self.messages is not None:
            raise field_error("input", "either input or messages is needed, and not both")
        for name in ("add_generation_prompt", "continue_final_message", "chat_template_kwargs"):
            if self.messages is None and getattr(self, name) is not None:
                raise field_error(name, "is only allowed together with messages")
        return self

    @model_validator(mode="after")
    def _truncation_and_normalization_are_told_once(self) -> "EmbeddingRequest":
        if self.truncate_prompt_tokens == 0:
            raise field_error("truncate_prompt_tokens", "must be 1 or more, or -1 for as many as fit")
        if self.truncation_side is not None and self.truncate_prompt_tokens is None:
            raise field_error("truncation_side", "is only allowed together with truncate_prompt_tokens")
        if None not in (self.normalize, self.use_activation) and self.normalize != self.use_activation:
            raise field_error("normalize", "says something else than use_activation")
        return self

    @property
    def inputs(self) -> list[str] | list[list[int]]:
        """What becomes an embedding each; of a chat none, as it has to be rendered first."""
        given: Any = self.input
        if given is None:
            return []
        return [given] if isinstance(given, str) or isinstance(given[0], int) else given

    @property
    def chat(self) -> ChatCompletionRequest | None:
        """The messages as a chat, whose answer does not begin unless that is asked for."""
        if self.messages is None:
            return None
        return ChatCompletionRequest.model_construct(
            model=self.model,
            messages=self.messages,
            add_generation_prompt=bool(self.add_generation_prompt),
            continue_final_message=self.continue_final_message,
            chat_template_kwargs=self.chat_template_kwargs,
        )
