"""What clients get: the OpenAI API's answers and stream chunks, with vLLM's extensions.

msgspec structs, because a chunk is made for every token. A field that is UNSET is left out; one that is None is null.
"""

from typing import Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

encode = msgspec.json.Encoder().encode


class PromptTokensDetails(Struct):
    """Tokens of the prompt whose K and V were found in the cache."""

    cached_tokens: int


class CompletionTokensDetails(Struct):
    """Tokens of the answers that were thoughts, of models that think."""

    reasoning_tokens: int


class Usage(Struct):
    """Tokens of prompt and answer, over all choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | UnsetType = UNSET


class TopLogprob(Struct):
    """A token with its log-probability and bytes; a part of a character is spelt with \\x."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(Struct):
    """The token that stands there, and the likeliest ones."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct):
    """Log-probabilities of a chat's tokens."""

    content: list[TokenLogprob]
    refusal: None = None


class CompletionLogprobs(Struct):
    """Log-probabilities of a completion's tokens: parallel lists. The first token of a prompt has none."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class PromptLogprob(Struct):
    """A token that could stand in the prompt: vLLM's form. A part of a character is spelt with U+FFFD."""

    logprob: float
    rank: int  # 1: the most likely
    decoded_token: str


PromptLogprobs = list[dict[int, PromptLogprob] | None]  # by token id, the prompt's own first; its first token has none


class CalledFunction(Struct):
    """A function that is called; `arguments` is what the model wrote, which is to be JSON."""

    name: str
    arguments: str


class ToolCall(Struct):
    """A call of a tool."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


class Message(Struct):
    """The assistant's answer. Its content is null if it only calls tools. Thoughts stand under both of their names."""

    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChoice(Struct):
    """An answer. `stop_reason` is the stop string or stop token id that ended it."""

    index: int
    message: Message
    finish_reason: str
    logprobs: ChatLogprobs | None = None
    stop_reason: str | int | None = None
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(Struct):
    """Answer of POST /v1/chat/completions."""

    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    object: str = "chat.completion"
    service_tier: str | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class FunctionDelta(Struct):
    """What a chunk adds to a call; the name stands in the first one alone."""

    arguments: str
    name: str | UnsetType = UNSET


class ToolCallDelta(Struct):
    """The call that a chunk adds to, by its number; id and type stand in the first one alone."""

    index: int
    function: FunctionDelta
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class Delta(Struct):
    """What a chunk adds to the answer."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChatChunkChoice(Struct):
    """An answer's part in a chunk."""

    index: int
    delta: Delta
    finish_reason: str | None = None
    logprobs: ChatLogprobs | None = None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatChunk(Struct):
    """An event of a streamed chat."""

    id: str
    created: int
    model: str
    choices: list[ChatChunkChoice]
    object: str = "chat.completion.chunk"
    service_tier: str | UnsetType = UNSET
    usage: Usage | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class CompletionChoice(Struct):
    """A completion, or its part in a chunk."""

    index: int
    text: str
    finish_reason: str | None = None
    logprobs: CompletionLogprobs | None = None
    stop_reason: str | int | None = None
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class Completion(Struct):
    """Answer of POST /v1/completions, and an event of its stream."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    object: str = "text_completion"
    usage: Usage | UnsetType | None = UNSET


class Model(Struct):
    """A name that clients may ask for."""

    id: str
    created: int
    root: str
    object: str = "model"
    owned_by: str = "octavo"
    max_model_len: int | UnsetType = UNSET
    tasks: list[str] | UnsetType = UNSET  # "generate", "embed"


class ModelList(Struct):
    """Answer of GET /v1/models."""

    data: list[Model]
    object: str = "list"


class Health(Struct):
    """Answer of GET /health, and of GET /ready, which tells how far a start has come, too."""

    status: str
    phase: str | UnsetType = UNSET


class Version(Struct):
    """Answer of GET /version."""

    version: str
