"""Answers in the OpenAPI document: the schemas of what is sent, from the structs that are encoded."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from octavo_server.frontend.refusal import DESCRIBED_BODY

_DEFS: Final = "#/$defs/"
_LEFT_OUT: Final = ("$defs", "discriminator")  # which refers to them

# Of GET /metrics, besides plain text.
FIGURES: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": {"application/openmetrics-text": {"schema": {"type": "string"}}}}
}


def answers(
    whole: Any, events: Any = None, *, last: str = "[DONE]", statuses: Sequence[int] = (200,)
) -> dict[int | str, dict[str, Any]]:
    """For a route's `responses`: its whole answer, and the events of its stream if it has one.

    whole, events: structs, or unions of them. last: the data of the last event, if that is none of them.
    """
    content: dict[str, Any] = {"application/json": {"schema": _schema(whole)}}
    if events is not None:
        content["text/event-stream"] = {"itemSchema": _event(_schema(events), last)}
    return {status: {"description": "The answer", "content": content} for status in statuses}


def _event(schema: dict[str, Any], last: str) -> dict[str, Any]:
    """An event as OpenAPI 3.2 describes those of a stream; older tools leave it aside. An error ends a stream, too."""
    told = {"contentMediaType": "application/json", "contentSchema": {"anyOf": [schema, DESCRIBED_BODY]}}
    data = {"anyOf": [told, {"const": last}]} if last else told
    return {
        "type": "object",
        "required": ["data"],
        "properties": {"event": {"type": "string"}, "data": {"type": "string", **data}},
    }


def _schema(kind: Any) -> dict[str, Any]:
    """Whole, without references: those would have to be among the document's components, and their names are taken."""
    schema = msgspec.json.schema(kind)
    found: dict[str, Any] = _inlined(schema, schema["$defs"])
    return found


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(schema, list):
        return [_inlined(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if (reference := schema.get("$ref")) is not None:
        return _inlined(definitions[reference.removeprefix(_DEFS)], definitions)
    return {name: _inlined(part, definitions) for name, part in schema.items() if name not in _LEFT_OUT}
