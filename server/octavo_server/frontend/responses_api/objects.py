"""What clients get of a response: the objects of OpenAI's reference.

Items are made anew for each event that shows them. A field that is None is null.
"""

from typing import Any, Literal

from msgspec import Raw, Struct

from octavo_server.frontend.responses import TokenLogprob

Status = Literal["in_progress", "completed", "incomplete"]


class OutputText(Struct, tag_field="type", tag="output_text"):
    """A piece of an answer."""

    text: str = ""
    annotations: list[Any] = []
    logprobs: list[TokenLogprob] = []


class ReasoningText(Struct, tag_field="type", tag="reasoning_text"):
    """A piece of thoughts."""

    text: str = ""


class Message(Struct, tag_field="type", tag="message"):
    """What the model says."""

    id: str
    status: Status
    content: list[OutputText]
    role: str = "assistant"


class Reasoning(Struct, tag_field="type", tag="reasoning"):
    """What the model thinks. There are no summaries: these are its thoughts."""

    id: str
    status: Status
    content: list[ReasoningText]
    summary: list[Any] = []
    encrypted_content: None = None


class FunctionCall(Struct, tag_field="type", tag="function_call"):
    """A call of a function."""

    id: str
    call_id: str
    name: str
    status: Status
    arguments: str = ""


OutputItem = Message | Reasoning | FunctionCall
Part = OutputText | ReasoningText


class InputTokensDetails(Struct):
    """Tokens of the input whose K and V were found in the cache."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(Struct):
    """Tokens of thoughts."""

    reasoning_tokens: int


class Usage(Struct):
    """Tokens of input and output."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class IncompleteDetails(Struct):
    """Why it is not complete."""

    reason: Literal["max_output_tokens", "content_filter"]


class ResponseError(Struct):
    """Why it failed."""

    code: str
    message: str


class Asked(Struct):
    """What a response repeats of its request, encoded once: it stands in several events."""

    instructions: Raw
    metadata: Raw
    reasoning: Raw
    text: Raw
    tool_choice: Raw
    tools: Raw
    max_output_tokens: int | None
    max_tool_calls: int | None
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    safety_identifier: str | None
    store: bool
    temperature: float
    top_logprobs: int
    top_p: float
    user: str | None


class Response(Asked, kw_only=True):
    """A response: in progress, or as it ended."""

    id: str
    created_at: int
    model: str
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    output: list[OutputItem]
    object: str = "response"
    background: bool = False
    completed_at: int | None = None
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    service_tier: str = "default"
    truncation: str = "disabled"
    usage: Usage | None = None


class Deleted(Struct):
    """Answer of DELETE /v1/responses/{id}."""

    id: str
    object: str = "response"
    deleted: bool = True


class InputItems(Struct):
    """A page of the items that a model was given."""

    data: list[dict[str, Any]]
    has_more: bool
    first_id: str | None
    last_id: str | None
    object: str = "list"
