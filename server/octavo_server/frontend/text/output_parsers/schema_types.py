"""What a JSON schema says outright of a value's type."""

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeGuard
from urllib.parse import unquote

_DEEPEST: Final = 8
_LONGEST: Final = 1024  # characters of a reference
_MOST_LOOKS: Final = 1_000  # each of some microseconds, as they are taken while answers come
_READ_AT_ONCE: Final = 16  # characters of a reference, or names that are required, that count as one look
_ONE_OF: Final = ("anyOf", "oneOf")
_UNIONS: Final = (*_ONE_OF, "allOf")
_TYPES: Final = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}


def properties(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schemas of an object's properties, by name."""
    found = schema.get("properties")
    return found if isinstance(found, dict) else {}


class Looks:
    """At schemas within one, as many as may be taken: those that refer to each other have no end of ways through them.

    `left` is below zero once there were more.
    """

    def __init__(self, root: Mapping[str, Any], most: int = _MOST_LOOKS) -> None:
        """root: what schemas refer to."""
        self.root = root
        self.left = most

    def resolved(self, schema: Any) -> dict[str, Any]:
        """A schema, or the one that it refers to; an empty one if it is none."""
        self.left -= 1
        for _ in range(_DEEPEST):
            reference = schema.get("$ref") if isinstance(schema, dict) else None
            if not is_pointer(reference):
                break
            self.left -= 1 + len(reference) // _READ_AT_ONCE
            schema = pointed(reference, self.root)
        return schema if isinstance(schema, dict) else {}


def is_pointer(reference: Any) -> TypeGuard[str]:
    """Whether it says where a schema stands, from the root on, and is no longer than is looked at."""
    return isinstance(reference, str) and (f"{reference}/").startswith("#/") and len(reference) <= _LONGEST


def pointed(reference: str, root: Any) -> Any:
    """What stands where a pointer says; None if nothing does."""
    for name in unquote(reference).split("/")[1:]:
        root = root.get(name.replace("~1", "/").replace("~0", "~")) if isinstance(root, dict) else None
    return root


def listed(schema: Mapping[str, Any]) -> list[Any] | None:
    """The values that a schema lists, None if it does not."""
    if "const" in schema:
        return [schema["const"]]
    values = schema.get("enum")
    return values if isinstance(values, list) and values else None


def types(schema: Any, looks: Looks) -> frozenset[str]:
    """The types that a value may have, as far as its schema says; empty if it does not.

    Of a union of very many not all are looked at.
    """
    found: set[str] = set()
    open_, seen = [schema], set[int]()
    while open_ and looks.left >= 0:
        option = looks.resolved(open_.pop())
        if id(option) in seen:
            continue
        seen.add(id(option))
        named = option.get("type")
        if isinstance(named, str | list):
            found |= {named} if isinstance(named, str) else {each for each in named if isinstance(each, str)}
        elif (values := listed(option)) is not None:
            found |= {_TYPES.get(type(value), "null") for value in values}
        else:
            open_ += [other for name in _UNIONS for other in _items(option.get(name))]
    return frozenset(found)


class Checker:
    """Whether values are valid, as far as types, lists, unions, items and properties say; and not too deep.

    What could not be looked at any more is taken for valid.
    """

    def __init__(self, looks: Looks) -> None:
        """looks: for all values together."""
        self._looks = looks

    def allows(self, schema: Any, value: Any, depth: int = 0) -> bool:
        """Whether this value is valid."""
        if depth == _DEEPEST or self._looks.left < 0:
            return True
        schema = self._looks.resolved(schema)
        values, given = listed(schema), schema.get("type")
        self._looks.left -= len(values or ())

        def allowed(option: Any, part: Any = value) -> bool:
            return self.allows(option, part, depth + 1)

        kinds = [given] if isinstance(given, str) else _items(given)
        return (
            (values is None or any(_same(value, other) for other in values))
            and (not kinds or any(_is_of(value, kind) for kind in kinds))
            and all(map(allowed, _items(schema.get("allOf"))))
            and all(any(map(allowed, options)) for name in _ONE_OF if (options := _items(schema.get(name))))
            and self._holds(schema, value, allowed)
        )

    def _holds(self, schema: Mapping[str, Any], value: Any, allowed: Callable[[Any, Any], bool]) -> bool:
        """Whether what is in it is valid."""
        if isinstance(value, list):
            return all(allowed(schema.get("items"), item) for item in value)
        if not isinstance(value, dict):
            return True
        named = properties(schema)
        self._looks.left -= len(_items(schema.get("required"))) // _READ_AT_ONCE
        return required(schema) <= value.keys() and all(
            allowed(named[name], part) for name, part in value.items() if name in named
        )


def is_plain_string(schema: Any, looks: Looks) -> bool:
    """Whether nothing but strings is valid, as far as is said; of any value nothing is."""
    return types(schema, looks) <= {"string"}


def alternatives(schema: Any, looks: Looks) -> list[dict[str, Any]]:
    """The schemas by one of which a value is valid: those of a union, and of the unions in it, each of them once.

    What says more than a union, by a type or a list, stays whole.
    """
    found: list[dict[str, Any]] = []
    open_, seen = [schema], set[int]()
    while open_ and looks.left >= 0:
        option = looks.resolved(open_.pop())
        if id(option) in seen:
            continue
        seen.add(id(option))
        parts = next((parts for name in _UNIONS if (parts := _items(option.get(name)))), [])
        whole = "type" in option or listed(option) is not None or ("allOf" in option and len(parts) != 1)
        if whole or not parts:
            found.append(option)
        else:
            open_ += reversed(parts)
    return found


def split(schema: Any, looks: Looks) -> tuple[list[str] | None, list[dict[str, Any]]]:
    """The strings that a schema lists, None where any may come; and schemas of what else it allows."""
    strings: dict[str, None] = {}
    others: list[dict[str, Any]] = []
    is_open, checker = False, Checker(looks)
    for option in alternatives(schema, looks):
        given = option.get("type")
        if (values := listed(option)) is not None:
            # Of "enum" itself all are valid: to look for each of many among all of them would take long.
            rest = {
                name: told for name, told in option.items() if name != ("enum" if "const" not in option else "const")
            }
            values = [value for value in values if checker.allows(rest, value)] or values
            strings |= {value: None for value in values if isinstance(value, str)}
            rest["enum"] = [value for value in values if not isinstance(value, str)]
            others += [rest] if rest["enum"] else []
        elif isinstance(given, str | list):
            kinds = [given] if isinstance(given, str) else given
            is_open = is_open or "string" in kinds
            more = [kind for kind in kinds if kind != "string"]
            others += [{**option, "type": more}] if more else []
        else:
            others.append(option)
    return None if is_open else list(strings), others


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
