"""The bodies of chats and completions: the OpenAI API's, with vLLM's extensions, every field bounded.

A field that is not here is refused by name. A field whose effect does not exist is accepted with the value that asks
for nothing (`best_of: 1`, `suffix: ""`), because clients send those, and refused by name with any other.
"""

from typing import Annotated, Any, Final

from pydantic import Discriminator, Field, Tag, model_validator

from octavo_server.frontend.fields import NotYet, Only, ShortText, field_error, kind
from octavo_server.frontend.generation_fields import MAX_LOGPROBS, MAX_TOKENS, GenerationRequest, Text, TokenIds
from octavo_server.frontend.message_fields import MAX_MESSAGES, Message

MAX_PROMPTS: Final = 256
MAX_CHOICES: Final = 256  # prompts × n


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
            kind(strings="text", lists=_prompt_list),
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
