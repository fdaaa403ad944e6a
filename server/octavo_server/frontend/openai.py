"""The bodies of chats and completions: the OpenAI API's, with vLLM's extensions, every field bounded.

A field that is not here is refused by name. A field whose effect does not exist is accepted with the value that asks
for nothing (`best_of: 1`, `suffix: ""`), because clients send those, and refused by name with any other.
"""

from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from octavo_server.frontend.fields import Body, BoundedObject, Entries, Only, ShortText, field_error, kind
from octavo_server.frontend.generation_fields import MAX_LOGPROBS, MAX_TOKENS, GenerationRequest, Text, TokenIds
from octavo_server.frontend.message_fields import MAX_MESSAGES, Content, Message
from octavo_server.frontend.tool_fields import AllowedToolsChoice, NamedTool, ToolChoice, Tools, check_tool_names

MAX_PROMPTS: Final = 256
MAX_CHOICES: Final = 256  # prompts × n
MAX_DOCUMENTS: Final = 256
TEMPLATE_VARIABLES: Final = BoundedObject(depth=8, values=1024, bytes=64 * 1024)
ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Document = Annotated[dict[Annotated[str, Field(max_length=64)], Text], Entries(16)]
Documents = Annotated[list[Document], Field(fail_fast=True, max_length=MAX_DOCUMENTS)]


class Prediction(Body):
    """OpenAI's hint what the answer will probably be. It would only save time, and is of no effect."""

    type: Literal["content"]
    content: Content


class PromptCacheOptions(Body):
    """OpenAI's options of a cache that is always on here."""

    mode: Literal["implicit", "explicit"] | None = None
    ttl: Literal["30m"] | None = None


MEDIA: Final = "this model takes and gives text only"
PROGRAM: Final = "a template is a program, and only the server's owner chooses it"


class ChatCompletionRequest(GenerationRequest):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: ReasoningEffort | None = None
    include_reasoning: bool | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    chat_template_kwargs: Annotated[dict[str, Any], TEMPLATE_VARIABLES] | None = None
    documents: Documents | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    add_special_tokens: bool | None = None
    echo: bool | None = None
    service_tier: Annotated[Any, Only("auto", "default", why="there is one tier of service")] = None
    # Taken and of no effect: nothing is stored, nobody is looked for, and caching is automatic.
    store: bool | None = None
    safety_identifier: ShortText | None = None
    prompt_cache_key: ShortText | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None
    prompt_cache_options: PromptCacheOptions | None = None
    prediction: Prediction | None = None
    # Not supported: only the value that asks for nothing.
    functions: Annotated[Any, Only([], why="it is the older name of tools")] = None
    function_call: Annotated[Any, Only("none", why="it is the older name of tool_choice")] = None
    modalities: Annotated[Any, Only(["text"], why=MEDIA)] = None
    audio: Annotated[Any, Only(why=MEDIA)] = None
    web_search_options: Annotated[Any, Only(why="the server looks nothing up: give it a tool")] = None
    moderation: Annotated[Any, Only(why="there is no model here that does it")] = None
    chat_template: Annotated[Any, Only(why=PROGRAM)] = None
    media_io_kwargs: Annotated[Any, Only({}, why=MEDIA)] = None
    mm_processor_kwargs: Annotated[Any, Only({}, why=MEDIA)] = None
    return_prompt_text: Annotated[Any, Only(False, why="return_token_ids tells the prompt's tokens")] = None
    return_assistant_tokens_mask: Annotated[Any, Only(False, why="it is for training")] = None

    @model_validator(mode="after")
    def _top_logprobs_need_logprobs(self) -> "ChatCompletionRequest":
        if self.top_logprobs and not self.logprobs:
            raise field_error("top_logprobs", "is only allowed together with logprobs: true")
        return self

    @model_validator(mode="after")
    def _a_message_is_begun_or_continued(self) -> "ChatCompletionRequest":
        if self.continue_final_message and self.add_generation_prompt:
            raise field_error("add_generation_prompt", "is not allowed together with continue_final_message")
        if self.continue_final_message and self.messages[-1].role != "assistant":
            raise field_error("continue_final_message", "needs a last message of the assistant's, to be continued")
        return self

    @model_validator(mode="after")
    def _tools_are_known_by_their_names(self) -> "ChatCompletionRequest":
        names = [tool.function.name for tool in self.tools or ()]
        check_tool_names(names, self.chosen_names, needed=self.tool_choice is not None)
        return self

    @property
    def chosen_names(self) -> list[str]:
        """Functions that `tool_choice` names."""
        match self.tool_choice:
            case NamedTool() as named:
                return [named.function.name]
            case AllowedToolsChoice() as some:
                return [tool.function.name for tool in some.allowed_tools.tools]
        return []

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives to each token that are wanted; None: no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def token_limit(self) -> int | None:
        """The newer name counts where both are given."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


def _number(value: Any) -> Any:
    """Of alternatives; chats have a boolean under the same name."""
    if isinstance(value, bool):
        raise PydanticCustomError(
            "number",
            "must be a number of alternatives, 0 to {most}; chats take true",
            {"most": MAX_LOGPROBS},
        )
    return value


def prompt_kind(value: list[Any]) -> str | None:
    """What a list of prompts or tokens consists of."""
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
            kind(strings="text", lists=prompt_kind),
            custom_error_type="prompt_type",
            custom_error_message=(
                "Input should be a string, a list of strings, a list of token ids or several such lists, and not empty"
            ),
        ),
    ]
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS), BeforeValidator(_number)] | None = None
    echo: bool | None = None
    add_special_tokens: bool | None = None
    # Not supported: only the value that asks for nothing.
    suffix: Annotated[Any, Only("", why="nothing is filled in between two texts")] = None
    prompt_embeds: Annotated[Any, Only(why="a prompt is text or token ids")] = None

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
