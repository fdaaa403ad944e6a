"""What clients may send: the OpenAI API's request bodies, with vLLM's extensions, every field bounded.

A field that is not here is refused by name. A field whose effect does not exist yet is accepted with the value that
asks for nothing (`best_of: 1`, `tool_choice: "none"`), because clients send those, and refused by name with any other.

pydantic collects an error for each entry that is wrong, and a body has room for a million. So lists and objects stop at
the first one, and what has more fields than are known is refused before it is looked at.

Longer than usual because it is one list: each line is a field and its bounds.
"""

import json
from abc import abstractmethod
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Tag,
    ValidatorFunctionWrapHandler,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, PydanticKnownError, core_schema

MAX_TEXT: Final = 16 * 2**20  # characters; the body's limit is lower where characters take several bytes
MAX_TOKENS: Final = 2**31 - 1
MAX_TOKEN_ID: Final = 2**31 - 1
MAX_PROMPT_TOKENS: Final = 8 * 2**20
MAX_PROMPTS: Final = 256
MAX_N: Final = 128
MAX_CHOICES: Final = 256  # prompts × n
MAX_MESSAGES: Final = 16_384
MAX_STOPS: Final = 4
MAX_LOGPROBS: Final = 20
MAX_BIASES: Final = 1024
MAX_METADATA: Final = 16
MAX_BAD_WORDS: Final = 128
MIN_REPETITION_PENALTY: Final = 0.01  # logits multiplied or divided by it stay far from what float32 holds
MAX_REPETITION_PENALTY: Final = 100.0
_HIDDEN: Final = "x-not-supported"


class Only:
    """Annotates a field that may be absent, null, or one of the given values, and nothing else yet."""

    def __init__(self, *neutral: Any) -> None:
        """The values that ask for nothing."""
        self._neutral = neutral

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {_HIDDEN: True}

    def _check(self, value: Any) -> Any:
        if value is None or any(value == neutral and type(value) is type(neutral) for neutral in self._neutral):
            return value
        allowed = " or ".join(json.dumps(neutral) for neutral in self._neutral)
        hint = f"leave it out or give {allowed}" if allowed else "leave it out"
        raise PydanticCustomError("not_supported", "this is not supported yet; {hint}", {"hint": hint})


class Entries:
    """Annotates an object of at most so many entries, which stops at the first wrong one.

    pydantic checks all entries before it counts them, and has `fail_fast` for lists alone.
    """

    def __init__(self, most: int) -> None:
        """Of entries."""
        self._most = most

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        inner = handler(source)
        if inner["type"] != "dict":
            raise TypeError(f"only objects have entries, not {source}")
        described = cast(CoreSchema, {**inner, "max_length": self._most})
        return core_schema.no_info_wrap_validator_function(self._check, described)

    def _check(self, value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        if not isinstance(value, dict):
            return handler(value)
        if len(value) > self._most:
            sizes = {"field_type": "Dictionary", "max_length": self._most, "actual_length": len(value)}
            raise PydanticKnownError("too_long", sizes)
        checked: dict[Any, Any] = {}
        for key, entry in value.items():
            checked |= handler({key: entry})
        return checked


def _kind(
    *, strings: str | None = None, lists: Callable[[list[Any]], str | None] | None = None
) -> Callable[[Any], str | None]:
    """Tells the members of a union apart, so that the message of a wrong one concerns the one that was meant."""

    def tell(value: Any) -> str | None:
        if isinstance(value, str):
            return strings
        return lists(value) if isinstance(value, list) and lists is not None else None

    return tell


NotYet = Annotated[Any, Only()]
# pydantic refuses halves of surrogate pairs in a bounded string: JSON can spell them, but they have no UTF-8.
Text = Annotated[str, Field(max_length=MAX_TEXT)]
ShortText = Annotated[str, Field(max_length=512)]
TokenId = Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]
TokenIds = Annotated[list[TokenId], Field(fail_fast=True, min_length=1, max_length=MAX_PROMPT_TOKENS)]
StopString = Annotated[str, Field(min_length=1, max_length=1024)]
BadWord = Annotated[str, Field(min_length=1, max_length=256)]
TokenIdKey = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,9})$")]  # an object's keys are strings
Bias = Annotated[float, Field(ge=-100.0, le=100.0, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2.0, le=2.0, allow_inf_nan=False)]
RepetitionPenalty = Annotated[
    float, Field(ge=MIN_REPETITION_PENALTY, le=MAX_REPETITION_PENALTY, allow_inf_nan=False, description="1: off")
]
Probability = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]


class Body(BaseModel):
    """Strict: a number is a number and not a string of digits. Closed: what is not known is refused."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _no_more_fields_than_are_known(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > len(cls.model_fields):
            unknown = next(name for name in value if name not in cls.model_fields)
            raise field_error(unknown, "this field is not known")
        return value

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The schema without the fields that are not supported."""
        described = handler.resolve_ref_schema(handler(schema))
        fields = described.get("properties", {})
        described["properties"] = {name: field for name, field in fields.items() if _HIDDEN not in field}
        return described


class TextPart(Body):
    """A piece of a message. Other kinds than text are refused by name."""

    type: Literal["text"]
    text: Text


Content = Annotated[
    Annotated[Text, Tag("text")]
    | Annotated[list[TextPart], Field(fail_fast=True, min_length=1, max_length=1024), Tag("parts")],
    Discriminator(
        _kind(strings="text", lists=lambda _: "parts"),
        custom_error_type="content_type",
        custom_error_message="Input should be a string or a list of text parts",
    ),
]


class FunctionCall(Body):
    """The function that an earlier answer called; `arguments` is JSON in a string, as the model wrote it."""

    name: ShortText
    arguments: Text


class ToolCall(Body):
    """A tool call in an earlier answer."""

    id: ShortText
    type: Literal["function"] = "function"
    function: FunctionCall


class SystemMessage(Body):
    """Instructions, and their newer name."""

    role: Literal["system", "developer"]
    content: Content
    name: ShortText | None = None


class UserMessage(Body):
    """What the person says."""

    role: Literal["user"]
    content: Content
    name: ShortText | None = None


class AssistantMessage(Body):
    """An earlier answer. Clients send back what they got, so the null fields of an answer are accepted."""

    role: Literal["assistant"]
    content: Content | None = None
    name: ShortText | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True, max_length=256)] | None = None
    refusal: NotYet = None
    annotations: Annotated[Any, Only([])] = None
    audio: NotYet = None
    function_call: NotYet = None


class ToolMessage(Body):
    """What a tool returned."""

    role: Literal["tool"]
    content: Content
    tool_call_id: ShortText
    name: ShortText | None = None


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class StreamOptions(Body):
    """Only with `stream`."""

    include_usage: bool | None = None
    include_obfuscation: Annotated[Any, Only(False)] = None
    continuous_usage_stats: Annotated[Any, Only(False)] = None


class Resume(Body):
    """An answer that began elsewhere: its tokens so far, and what it is called. See `resume.py`."""

    output_token_ids: Annotated[list[TokenId], Field(fail_fast=True, max_length=MAX_PROMPT_TOKENS)]
    response_id: Annotated[str, Field(pattern=r"^[!-~]{1,128}$")]
    created: Annotated[int, Field(ge=0, le=2**53)]


class GenerationRequest(Body):
    """What chats and completions share."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    temperature: Annotated[float, Field(ge=0.0, le=2.0, allow_inf_nan=False)] | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Field(ge=-1, le=MAX_TOKEN_ID, description="0 or -1: off")] | None = None
    min_p: Probability | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: RepetitionPenalty | None = None
    logit_bias: Annotated[dict[TokenIdKey, Bias], Entries(MAX_BIASES)] | None = None
    bad_words: Annotated[list[BadWord], Field(fail_fast=True, max_length=MAX_BAD_WORDS)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = None
    max_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    stop: (
        Annotated[
            Annotated[StopString, Tag("one")]
            | Annotated[list[StopString], Field(fail_fast=True, max_length=MAX_STOPS), Tag("several")],
            Discriminator(
                _kind(strings="one", lists=lambda _: "several"),
                custom_error_type="stop_type",
                custom_error_message="Input should be a string or a list of strings",
            ),
        ]
        | None
    ) = None
    stop_token_ids: Annotated[list[TokenId], Field(fail_fast=True, max_length=64)] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None
    n: Annotated[int, Field(ge=1, le=MAX_N, description="answers to each prompt")] | None = None
    priority: Annotated[int, Field(ge=-1000, le=1000, description="lower ones go first")] | None = None
    timeout: (
        Annotated[
            float, Field(ge=0.001, le=86_400.0, allow_inf_nan=False, description="seconds until it ends with an error")
        ]
        | None
    ) = None
    cache_salt: (
        Annotated[
            str, Field(min_length=1, max_length=256, description="cached pages are shared only where it is the same")
        ]
        | None
    ) = None
    octavo_resume: Annotated[Resume, Field(description="for the gateway alone: an answer to go on with")] | None = None
    # Taken and of no effect.
    user: ShortText | None = None
    metadata: Annotated[dict[Annotated[str, Field(max_length=64)], ShortText], Entries(MAX_METADATA)] | None = None
    # Not supported yet: only the value that asks for nothing.
    length_penalty: Annotated[Any, Only(1, 1.0)] = None
    spaces_between_special_tokens: Annotated[Any, Only(True)] = None
    use_beam_search: Annotated[Any, Only(False)] = None
    structured_outputs: NotYet = None

    @model_validator(mode="after")
    def _streams_have_their_own_options(self) -> "GenerationRequest":
        if self.stream_options is not None and not self.stream:
            raise field_error("stream_options", "is only allowed together with stream: true")
        if self.prompt_logprobs is not None and self.stream:
            raise field_error("prompt_logprobs", "is not allowed together with stream: true")
        return self

    @model_validator(mode="after")
    def _the_least_length_is_no_longer_than_the_longest(self) -> "GenerationRequest":
        if self.min_tokens and self.token_limit is not None and self.min_tokens > self.token_limit:
            raise field_error("min_tokens", f"must be at most {self.token_limit}, the most tokens that are asked for")
        return self

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings, however they were given."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def num_choices(self) -> int:
        """Answers to each prompt."""
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    @abstractmethod
    def num_logprobs(self) -> int | None:
        """Alternatives to each token that are wanted; None: no log-probabilities."""

    @property
    def token_limit(self) -> int | None:
        """Most tokens of an answer, where the client says."""
        return self.max_tokens


class ChatCompletionRequest(GenerationRequest):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    # Taken and of no effect: nothing is stored, and there is one tier of service.
    store: Annotated[Any, Only(False)] = None
    safety_identifier: ShortText | None = None
    prompt_cache_key: ShortText | None = None
    # Not supported yet: only the value that asks for nothing.
    tools: NotYet = None
    tool_choice: Annotated[Any, Only("none")] = None
    parallel_tool_calls: Annotated[Any, Only(True)] = None
    functions: NotYet = None
    function_call: Annotated[Any, Only("none")] = None
    response_format: Annotated[Any, Only({"type": "text"})] = None
    reasoning_effort: NotYet = None
    verbosity: NotYet = None
    modalities: Annotated[Any, Only(["text"])] = None
    audio: NotYet = None
    prediction: NotYet = None
    service_tier: Annotated[Any, Only("auto", "default")] = None
    web_search_options: NotYet = None
    chat_template: NotYet = None
    chat_template_kwargs: Annotated[Any, Only({})] = None
    add_generation_prompt: Annotated[Any, Only(True)] = None
    continue_final_message: Annotated[Any, Only(False)] = None
    add_special_tokens: Annotated[Any, Only(False)] = None
    echo: Annotated[Any, Only(False)] = None
    best_of: Annotated[Any, Only(1)] = None

    @model_validator(mode="after")
    def _top_logprobs_need_logprobs(self) -> "ChatCompletionRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise field_error("top_logprobs", "is only allowed together with logprobs: true")
        return self

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives to each token that are wanted; None: no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def token_limit(self) -> int | None:
        """The newer name counts where both are given."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


def _prompt_list(value: list[Any]) -> str | None:
    kinds = {str: "texts", int: "tokens", list: "token lists"}
    return kinds.get(type(value[0])) if value else None


class CompletionRequest(GenerationRequest):
    """Body of POST /v1/completions."""

    prompt: Annotated[
        Annotated[Text, Tag("text")]
        | Annotated[list[Text], Field(fail_fast=True, max_length=MAX_PROMPTS), Tag("texts")]
        | Annotated[TokenIds, Tag("tokens")]
        | Annotated[list[TokenIds], Field(fail_fast=True, max_length=MAX_PROMPTS), Tag("token lists")],
        Discriminator(
            _kind(strings="text", lists=_prompt_list),
            custom_error_type="prompt_type",
            custom_error_message=(
                "Input should be a string, a list of strings, a list of token ids or several such lists, and not empty"
            ),
        ),
    ]
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: bool | None = None
    # Not supported yet: only the value that asks for nothing.
    suffix: Annotated[Any, Only("")] = None
    best_of: Annotated[Any, Only(1)] = None
    add_special_tokens: Annotated[Any, Only(True)] = None
    response_format: Annotated[Any, Only({"type": "text"})] = None

    @model_validator(mode="after")
    def _choices_are_bounded(self) -> "CompletionRequest":
        if len(self.prompts) * self.num_choices > MAX_CHOICES:
            raise field_error("n", f"{len(self.prompts)} prompts times n may be {MAX_CHOICES} at most")
        return self

    @model_validator(mode="after")
    def _no_tokens_only_with_echo(self) -> "CompletionRequest":
        if self.max_tokens == 0 and not self.echo:
            raise field_error("max_tokens", "must be 1 or more, unless echo is true")
        return self

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives to each token that are wanted; None: no log-probabilities."""
        return self.logprobs

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts, each of which becomes a choice."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        if isinstance(prompt[0], int):
            return [prompt]
        return prompt


def field_error(field: str, message: str) -> PydanticCustomError:
    """An error of a check over the whole body that concerns one field."""
    return PydanticCustomError("field", "{message}", {"field": field, "message": message})
