"""The body of POST /v1/responses: OpenAI's, with vLLM's extensions, every field bounded.

What is not done is refused by name, as in `openai.py`. What only tells a hosted service how to work (`store` apart) is
of no effect.
"""

from typing import Annotated, Any, Final, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from octavo_server.frontend.fields import Body, Entries, Only, ShortText, field_error, kind
from octavo_server.frontend.generation_fields import (
    MAX_BIASES,
    MAX_LOGPROBS,
    MAX_METADATA,
    MAX_TOKEN_ID,
    MAX_TOKENS,
    Bias,
    Penalty,
    Probability,
    RepetitionPenalty,
    RequestId,
    Stop,
    Text,
    TokenId,
    TokenIdKey,
)
from octavo_server.frontend.message_fields import Ignored
from octavo_server.frontend.openai import TEMPLATE_VARIABLES, PromptCacheOptions, ReasoningEffort
from octavo_server.frontend.responses_api.hints import HINTS
from octavo_server.frontend.responses_api.item_fields import Items
from octavo_server.frontend.responses_api.tool_fields import AllowedTools, NamedFunction, ToolChoice, Tools
from octavo_server.frontend.structured_fields import JsonObjectFormat, JsonSchema, StructuredOutputs, TextFormat
from octavo_server.frontend.tool_fields import FunctionName, check_tool_names

ResponseId = Annotated[str, Field(min_length=1, max_length=256)]
LOGPROBS: Final = "message.output_text.logprobs"
_ALONE: Final = "give the text itself"


Input = Annotated[
    Annotated[Text, Tag("text")] | Annotated[Items, Tag("items")],
    Discriminator(
        kind(strings="text", lists=lambda _: "items"),
        custom_error_type="input_type",
        custom_error_message="Input should be a string or a list of items",
    ),
]


class SchemaFormat(Body):
    """JSON that a schema describes. It is always kept to; `strict` changes nothing."""

    type: Literal["json_schema"]
    name: FunctionName
    schema_: Annotated[JsonSchema, Field(alias="schema")]
    description: Annotated[str, Field(max_length=16_384)] | None = None
    strict: bool | None = None


class TextConfig(Body):
    """What the text must look like, and how much of it there should be."""

    format: Annotated[TextFormat | JsonObjectFormat | SchemaFormat, Field(discriminator="type")] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningConfig(Body):
    """How much a model thinks. Its thoughts are in the answer as they are, so that there is no summary of them."""

    effort: ReasoningEffort | None = None
    summary: Annotated[Literal["auto", "concise", "detailed"] | None, Field(description="of no effect")] = None
    generate_summary: Annotated[Literal["auto", "concise", "detailed"] | None, Field(description="of no effect")] = None
    context: Annotated[Literal["auto", "current_turn", "all_turns"] | None, Field(description="of no effect")] = None
    mode: Annotated[Any, Only("standard", why="a model thinks in one way")] = None


Includable = Literal[
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
]


class StreamOptions(Body):
    """Only with `stream`."""

    include_obfuscation: Annotated[Any, Only(False, why="events are not padded")] = None


class ResponsesRequest(Body):
    """Body of POST /v1/responses."""

    hints = HINTS

    model: Annotated[str, Field(min_length=1, max_length=256)]
    input: Input
    instructions: Text | None = None
    previous_response_id: ResponseId | None = None
    store: Annotated[bool | None, Field(description="keep it for previous_response_id; left out: yes")] = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    temperature: Annotated[float, Field(ge=0.0, le=2.0, allow_inf_nan=False)] | None = None
    top_p: Probability | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    include: (
        Annotated[
            list[Includable], Field(fail_fast=True, max_length=16, description=f"{LOGPROBS}; others of no effect")
        ]
        | None
    ) = None
    metadata: Annotated[dict[Annotated[str, Field(max_length=64)], ShortText], Entries(MAX_METADATA)] | None = None
    # vLLM's.
    top_k: Annotated[int, Field(ge=-1, le=MAX_TOKEN_ID, description="0 or -1: off")] | None = None
    min_p: Probability | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: RepetitionPenalty | None = None
    logit_bias: Annotated[dict[TokenIdKey, Bias], Entries(MAX_BIASES)] | None = None
    stop: Stop | None = None
    stop_token_ids: Annotated[list[TokenId], Field(fail_fast=True, max_length=64)] | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    structured_outputs: StructuredOutputs | None = None
    chat_template_kwargs: Annotated[dict[str, Any], TEMPLATE_VARIABLES] | None = None
    priority: Annotated[int, Field(ge=-1000, le=1000, description="lower ones go first")] | None = None
    cache_salt: (
        Annotated[
            str, Field(min_length=1, max_length=256, description="cached pages are shared only where it is the same")
        ]
        | None
    ) = None
    request_id: Annotated[
        RequestId | None, Field(description="of the response, behind resp_; instead of one that is drawn")
    ] = None
    timeout: (
        Annotated[
            float, Field(ge=0.001, le=86_400.0, allow_inf_nan=False, description="seconds until it ends with an error")
        ]
        | None
    ) = None
    # Taken and of no effect: no tool runs here, nobody is looked for, and caching is automatic.
    max_tool_calls: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    user: ShortText | None = None
    safety_identifier: ShortText | None = None
    prompt_cache_key: ShortText | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None
    prompt_cache_options: PromptCacheOptions | None = None
    client_metadata: Ignored = None
    # Not supported: only the value that asks for nothing.
    truncation: Annotated[Any, Only("disabled", why="what is left out of a conversation is the client's choice")] = None
    background: Annotated[Any, Only(False, why="an answer lives as long as its connection")] = None
    background_options: Annotated[Any, Only(why="an answer lives as long as its connection")] = None
    service_tier: Annotated[Any, Only("auto", "default", why="there is one tier of service")] = None
    conversation: Annotated[Any, Only(why="use previous_response_id")] = None
    prompt: Annotated[Any, Only(why=f"no prompts are stored here: {_ALONE}")] = None
    context_management: Annotated[Any, Only([], why="what is left out of a conversation is the client's choice")] = None
    moderation: Annotated[Any, Only(why="there is no model here that does it")] = None
    access_programs: Annotated[Any, Only({}, why="there are none")] = None
    image: Annotated[Any, Only(why="this model takes text only")] = None
    mm_processor_kwargs: Annotated[Any, Only({}, why="this model takes text only")] = None
    enable_response_messages: Annotated[Any, Only(False, why="input_items tells them")] = None
    previous_input_messages: Annotated[Any, Only(why="send them as input")] = None
    previous_response: Annotated[Any, Only(why="send its output as input, or previous_response_id")] = None
    vllm_xargs: Annotated[Any, Only({}, why="there are no extensions to take them")] = None

    @model_validator(mode="after")
    def _streams_have_their_own_options(self) -> "ResponsesRequest":
        if self.stream_options is not None and not self.stream:
            raise field_error("stream_options", "is only allowed together with stream: true")
        return self

    @model_validator(mode="after")
    def _one_shape_of_the_answer(self) -> "ResponsesRequest":
        given = None if self.text is None else self.text.format
        if self.structured_outputs is not None and given is not None and given.type != "text":
            raise field_error("structured_outputs", "is not allowed together with text.format")
        if self.min_tokens and self.max_output_tokens is not None and self.min_tokens > self.max_output_tokens:
            raise field_error("min_tokens", f"must be at most {self.max_output_tokens}, which is max_output_tokens")
        return self

    @model_validator(mode="after")
    def _tools_are_known_by_their_names(self) -> "ResponsesRequest":
        names = [tool.name for tool in self.tools or ()]
        needed = self.tool_choice not in (None, "none", "auto")
        check_tool_names(names, self.chosen_names, needed=needed)
        return self

    def with_strict(self, strict: bool) -> "ResponsesRequest":
        """Where it is said of every tool whether it is strict: so, if it is not said yet."""
        tools = self.tools or []
        if all(tool.strict is not None for tool in tools):
            return self
        said = [tool if tool.strict is not None else tool.model_copy(update={"strict": strict}) for tool in tools]
        return self.model_copy(update={"tools": said})

    def without_strict(self, index: int) -> "ResponsesRequest":
        """With this tool not strict."""
        tools = list(self.tools or ())
        tools[index] = tools[index].model_copy(update={"strict": False})
        return self.model_copy(update={"tools": tools})

    @property
    def chosen_names(self) -> list[str]:
        """Functions that `tool_choice` names."""
        match self.tool_choice:
            case NamedFunction() as named:
                return [named.name]
            case AllowedTools() as some:
                return [tool.name for tool in some.tools]
        return []

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives to each token that are wanted; None: no log-probabilities."""
        wanted = self.top_logprobs or LOGPROBS in (self.include or ())
        return (self.top_logprobs or 0) if wanted else None

    @property
    def is_stored(self) -> bool:
        """Whether it may be asked for later."""
        return self.store is not False
