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


def allows(schema: Any, value: Any, root: Mapping[str, Any], depth: int = 0) -> bool:
    """Whether a value is valid, as far as types, lists, unions, items and properties say; and not too deep."""
    schema = resolved(schema, root)
    if depth == _DEEPEST:
        return True

    def allowed(option: Any, part: Any = value) -> bool:
        return allows(option, part, root, depth + 1)

    values, given = listed(schema), schema.get("type")
    kinds = [given] if isinstance(given, str) else _items(given)
    checks = [
        values is None or any(_same(value, other) for other in values),
        not kinds or any(_is_of(value, kind) for kind in kinds),
        all(map(allowed, _items(schema.get("allOf")))),
        *(any(map(allowed, _items(schema[name]))) for name in ("anyOf", "oneOf") if _items(schema.get(name))),
    ]
    if isinstance(value, list):
        checks += [allowed(schema.get("items"), item) for item in value]
    elif isinstance(value, dict):
        checks += [name in value for name in required(schema)]
        checks += [allowed(one, value[name]) for name, one in properties(schema).items() if name in value]
    return all(checks)


def is_plain_string(schema: Any, root: Mapping[str, Any]) -> bool:
    """Whether a value is a string in any case; also where nothing is said of it."""
    return types(schema, root) <= {"string"}


def split(schema: Any, root: Mapping[str, Any], depth: int = 0) -> tuple[list[str] | None, list[dict[str, Any]]]:
    """The strings that a schema lists, None where any may come; and schemas of what else it allows."""
    schema = resolved(schema, root)
    if (values := listed(schema)) is not None:
        values = [value for value in values if allows(schema, value, root)] or values
        others = [value for value in values if not isinstance(value, str)]
        plain = {name: told for name, told in schema.items() if name != "const"}
        return [value for value in values if isinstance(value, str)], [plain | {"enum": others}] if others else []
    kinds = schema.get("type")
    if isinstance(kinds, str | list):
        others = [kind for kind in ([kinds] if isinstance(kinds, str) else kinds) if kind != "string"]
        rest = [{**schema, "type": others}] if others else []
        return (None if kinds == "string" or "string" in _items(kinds) else []), rest
    options = _items(schema.get("anyOf")) or _items(schema.get("oneOf")) or _items(schema.get("allOf"))
    if depth == _DEEPEST or not options or (len(options) > 1 and "allOf" in schema):
        return [], [schema]
    parts = [split(option, root, depth + 1) for option in options]
    rest = [other for _, others in parts for other in others]
    if any(strings is None for strings, _ in parts):
        return None, rest
    return list(dict.fromkeys(string for strings, _ in parts for string in strings or ())), rest


def required(schema: Mapping[str, Any]) -> frozenset[str]:
    """The properties that must be there."""
    return frozenset(name for name in _items(schema.get("required")) if isinstance(name, str))


def _same(one: Any, other: Any) -> bool:
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def _is_of(value: Any, kind: Any) -> bool:
    """Whether a value is of a type; 1.0 is an integer, too."""
    found = _TYPES.get(type(value), "null")
    return (
        found == kind
        or (kind == "number" and found == "integer")
        or (kind == "integer" and isinstance(value, float) and value.is_integer())
    )


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
