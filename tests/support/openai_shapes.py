"""What the `openai` package declares of answers, held strictly: its own client takes whatever comes."""

import json
from collections.abc import Iterator
from typing import Any, Final, TypeVar

from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

# vLLM's names, which docs/api.md tells of; nothing else may stand beside what OpenAI has.
EXTENSIONS: Final = {
    "stop_reason",
    "token_ids",
    "prompt_token_ids",
    "prompt_logprobs",
    "reasoning",
    "reasoning_content",
}

Answer = TypeVar("Answer", bound=BaseModel)


def checked(body: str | bytes) -> Any:
    """A whole answer, typed; each value of it is what its type says, and of no field is too much."""
    answer = json.loads(body)
    if answer["object"] == "chat.completion":
        return _closed(ChatCompletion.model_validate_json(body, strict=True))
    for choice in answer["choices"]:
        for name in ("token_logprobs", "top_logprobs"):
            values = (choice["logprobs"] or {}).get(name) or [None]
            if values[0] is None:  # the first token of an echo, which the declaration forgets
                values[0] = {} if name == "top_logprobs" else 0.0
    _closed(Completion.model_validate_json(json.dumps(answer), strict=True))
    return Completion.construct(**json.loads(body))


def checked_chunk(event: Any) -> ChatCompletionChunk:
    """Likewise an event of a streamed chat, from its JSON."""
    chunk = ChatCompletionChunk.model_validate(event, strict=True)
    assert len(chunk.choices) <= 1
    for choice in chunk.choices:
        said = [name for name in ("content", "reasoning", "tool_calls") if getattr(choice.delta, name, None)]
        assert len(said) <= 1 or hasattr(choice, "token_ids"), "a chunk says one kind of thing"
    return _closed(chunk)


def _closed(answer: Answer) -> Answer:
    extra = set(_extra_fields(answer))
    assert extra <= EXTENSIONS, extra
    return answer


def _extra_fields(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for each in value:
            yield from _extra_fields(each)
    elif isinstance(value, BaseModel):
        yield from value.model_extra or ()
        for name in type(value).model_fields:
            yield from _extra_fields(getattr(value, name))
