"""What a JSON schema says outright of a value's type."""

from collections.abc import Mapping
from typing import Any, Final

_DEEPEST: Final = 8
_UNIONS: Final = ("anyOf", "oneOf", "allOf")
_TYPES: Final = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}


def properties(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schemas of an object's properties, by name."""
    found = schema.get("properties")
    return found if isinstance(found, dict) else {}


def resolved(schema: Any, root: Mapping[str, Any]) -> dict[str, Any]:
    """A schema, or the one that it refers to within `root`; an empty one if it is none."""
    for _ in range(_DEEPEST):
        reference = schema.get("$ref") if isinstance(schema, dict) else None
        if not isinstance(reference, str) or not reference.startswith("#/"):
            break
        schema = root
        for name in reference[2:].split("/"):
            schema = schema.get(name.replace("~1", "/").replace("~0", "~")) if isinstance(schema, dict) else None
    return schema if isinstance(schema, dict) else {}


def listed(schema: Mapping[str, Any]) -> list[Any] | None:
    """The values that a schema lists, None if it does not."""
    if "const" in schema:
        return [schema["const"]]
    values = schema.get("enum")
    return values if isinstance(values, list) and values else None


def types(schema: Any, root: Mapping[str, Any]) -> frozenset[str]:
    """The types that a value may have, as far as its schema says; empty if it does not."""
    found: set[str] = set()
    open_, seen = [resolved(schema, root)], set[int]()
    while open_:
        option = open_.pop()
        if id(option) in seen:
            continue
        seen.add(id(option))
        given = option.get("type")
        if isinstance(given, str | list):
            found |= {kind for kind in ([given] if isinstance(given, str) else given) if isinstance(kind, str)}
        elif (values := listed(option)) is not None:
            found |= {_TYPES.get(type(value), "null") for value in values}
        else:
            open_ += [resolved(other, root) for name in _UNIONS for other in _items(option.get(name))]
    return frozenset(found)


def required(schema: Mapping[str, Any]) -> frozenset[str]:
    """The properties that must be there."""
    return frozenset(name for name in _items(schema.get("required")) if isinstance(name, str))


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
