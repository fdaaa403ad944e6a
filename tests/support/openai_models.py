"""What the `openai` package's models say of responses and their events: strict types, and no field they do not know."""

from collections.abc import Iterator
from typing import Any, Final, get_args

import pydantic
from openai.types.responses import Response, ResponseStreamEvent

# Fields that OpenAI's service sends, or that earlier versions of its reference had, and the package does not describe.
_KNOWN: Final = {("Response", "store"), ("ResponseFunctionCallArgumentsDoneEvent", "name")}
_RESPONSE: Final = pydantic.TypeAdapter(Response)
_EVENTS: Final[dict[str, pydantic.TypeAdapter[Any]]] = {
    get_args(kind.model_fields["type"].annotation)[0]: pydantic.TypeAdapter(kind)
    for kind in get_args(get_args(ResponseStreamEvent)[0])
}


def check_response(text: str) -> None:
    """Raises where a response's JSON is none of the reference's."""
    _check(_RESPONSE.validate_json(text, strict=True))


def check_event(kind: str, text: str) -> None:
    """Raises where the JSON of an event of this type is none of the reference's."""
    _check(_EVENTS[kind].validate_json(text, strict=True))


def _check(found: pydantic.BaseModel) -> None:
    for path, model in _models(found, type(found).__name__):
        for name in model.model_extra or {}:
            # Log-probabilities have their bytes in events, too, where the reference has them in items alone.
            if (type(model).__name__, name) not in _KNOWN and not (name == "bytes" and ".logprobs" in path):
                raise ValueError(f"{path}.{name} is not in the reference")


def _models(value: Any, path: str) -> Iterator[tuple[str, pydantic.BaseModel]]:
    if isinstance(value, pydantic.BaseModel):
        yield path, value
        for name in type(value).model_fields:
            yield from _models(getattr(value, name), f"{path}.{name}")
    elif isinstance(value, list):
        for one in value:
            yield from _models(one, path)
