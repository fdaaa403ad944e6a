"""Answers in the OpenAPI document: the schemas of what is sent, from the structs that are encoded."""

from typing import Any, Final

import msgspec

_DEFS: Final = "#/$defs/"


def answers(whole: type[msgspec.Struct], events: type[msgspec.Struct] | None = None) -> dict[int | str, dict[str, Any]]:
    """For a route's `responses`: its whole answer, and the events of its stream if it has one."""
    content: dict[str, Any] = {"application/json": {"schema": _schema(whole)}}
    if events is not None:
        told = "server-sent events; the data of each is this, of the last one [DONE]"
        content["text/event-stream"] = {"schema": {"type": "string", "description": told, "x-event": _schema(events)}}
    return {200: {"description": "The answer", "content": content}}


def _schema(kind: type[msgspec.Struct]) -> dict[str, Any]:
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
    return {name: _inlined(part, definitions) for name, part in schema.items() if name != "$defs"}
