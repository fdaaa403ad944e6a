"""Objects of a schema, closed: of no other properties than those that it names.

An object that several schemas describe together (`allOf`, `$ref` beside `properties`, …) cannot be closed by closing
each of them: what one names the other would refuse.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

_NAMING: Final = ("properties", "patternProperties")
_BY_NAME: Final = (*_NAMING, "dependentSchemas")
_BELOW: Final = ("items", "prefixItems", "additionalItems", "additionalProperties")
_SPEAKING: Final = (*_NAMING, "additionalProperties")
_DEEPEST: Final = 64  # of references to references
_ESCAPED: Final = re.compile("%([0-9a-fA-F]{2})")


def closed(schema: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """The schema with `additionalProperties: false` in each object that names properties and does not say it itself.

    And whether all were: those stay open that several schemas describe, or that are referred to by other than `#/…`.
    """
    walk = _Walk(schema).walk()
    return walk.copied(schema), not walk.left_open


class _Walk:
    """Which schemas say alone what their object may hold; by identity, as a definition is used in many places."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self.root = root
        self.seen: set[tuple[int, bool]] = set()
        self.merged: set[int] = set()
        self.naming: set[int] = set()
        self.speaks: dict[int, bool] = {}
        self.is_unknown = False

    @property
    def left_open(self) -> bool:
        """Whether one is not closed."""
        return self.is_unknown or bool(self.naming & self.merged)

    def walk(self) -> "_Walk":
        """Through all that the schema holds or refers to."""
        waiting: list[tuple[Any, bool]] = [(self.root, True)]
        while waiting:
            schema, alone = waiting.pop()
            if isinstance(schema, Mapping) and (id(schema), alone) not in self.seen:
                self.seen.add((id(schema), alone))
                waiting += self._visited(schema, alone)
        return self

    def _visited(self, schema: Mapping[str, Any], alone: bool) -> Iterator[tuple[Any, bool]]:
        """What there is to be visited from it. alone: no schema before it describes the same value."""
        parts = self._parts(schema)
        speaking = sum(any(map(self._speaks, part)) for part in parts) + any(name in schema for name in _SPEAKING)
        alone = alone and speaking <= 1
        if any(name in schema for name in _NAMING) and "additionalProperties" not in schema:
            self.naming.add(id(schema))
            if not alone:
                self.merged.add(id(schema))
        return ((one, alone) for one in (*(one for part in parts for one in part), *_held(schema)))

    def copied(self, schema: Any) -> Any:
        """A copy with those closed that can be."""
        if isinstance(schema, list):
            return [self.copied(value) for value in schema]
        if not isinstance(schema, Mapping):
            return schema
        found = {name: self.copied(value) for name, value in schema.items()}
        if (
            id(schema) in self.naming
            and id(schema) not in self.merged
            and "enum" not in schema
            and "const" not in schema
        ):
            found["additionalProperties"] = False
        return found

    def _parts(self, schema: Mapping[str, Any]) -> list[list[Any]]:
        """What else describes the same value; each a list of alternatives."""
        parts = [[one] for one in _listed(schema.get("allOf"))]
        parts += [_listed(schema.get(name)) for name in ("anyOf", "oneOf") if name in schema]
        if isinstance(reference := schema.get("$ref"), str):
            parts.append([self._resolved(reference)])
        return parts

    def _speaks(self, schema: Any, depth: int = 0) -> bool:
        """Whether it says what an object may hold, itself or by its parts; too deep to be told, it may."""
        if not isinstance(schema, Mapping) or depth > _DEEPEST:
            return depth > _DEEPEST
        if id(schema) not in self.speaks:
            self.speaks[id(schema)] = False  # of one that refers to itself
            self.speaks[id(schema)] = any(name in schema for name in _SPEAKING) or any(
                self._speaks(one, depth + 1) for part in self._parts(schema) for one in part
            )
        return self.speaks[id(schema)]

    def _resolved(self, reference: str) -> Any:
        found: Any = self.root
        if reference != "#" and not reference.startswith("#/"):
            self.is_unknown = True
            return None
        for step in reference.split("/")[1:]:
            name = _ESCAPED.sub(lambda code: chr(int(code[1], 16)), step).replace("~1", "/").replace("~0", "~")
            found = found.get(name) if isinstance(found, Mapping) else None
        return found


def _held(schema: Mapping[str, Any]) -> Iterator[Any]:
    """Schemas of what a value by this one holds."""
    for name in _BY_NAME:
        if isinstance(held := schema.get(name), Mapping):
            yield from held.values()
    for name in _BELOW:
        yield from _listed(schema.get(name)) or [schema.get(name)]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
