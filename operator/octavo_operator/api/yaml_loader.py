"""YAML as kubectl reads it: no dates, JSON's numbers, keys that are strings. A key that is there twice is refused, of
which kubectl would quietly take the last.

A text of a few hundred bytes can stand for gigabytes by aliases of aliases: what they bring is counted before it is
made.
"""

import json
import math
import re
from collections.abc import Hashable
from typing import Any, Final

import yaml

_FLOAT = re.compile(r"^([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$")
_BOOL = re.compile(r"^(y|Y|n|N)$")  # besides PyYAML's own yes, no, on, off, true and false
_INT = re.compile(r"^[-+]?(0b[01_]+|0o?[0-7_]+|0x[0-9a-fA-F_]+|0|[1-9][0-9_]*)$")

DEEPEST: Final = 100
"""Levels of nesting: far more than any manifest has, far fewer than what recursion bears."""
MOST_BY_ALIASES: Final = 10_000
LONGEST_NUMBER: Final = 300
"""In characters, about where the numbers end that JSON's readers know."""

_UNREADABLE: Final = (ValueError, TypeError, KeyError, AttributeError)
"""What PyYAML's constructors let through for a scalar that does not hold what its tag says."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader where it differs from the parser in kubectl, and bounded."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._level = 0
        self._by_aliases = 0
        self._extent: dict[yaml.Node, tuple[int, int]] = {}  # nodes and levels, aliases written out

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        mark: Any = event.start_mark
        self._level += 1
        self._refuse_depth(self._level, mark)
        node = super().compose_node(parent, index)
        self._level -= 1
        if node is None:
            return None
        if not isinstance(event, yaml.AliasEvent):
            inner = [self._extent[child] for child in _children(node)]
            self._extent[node] = 1 + sum(count for count, _ in inner), 1 + max((deep for _, deep in inner), default=0)
            return node
        if node not in self._extent:
            raise yaml.composer.ComposerError(None, None, f"*{event.anchor} stands inside itself", mark)
        count, levels = self._extent[node]
        self._refuse_depth(self._level + levels, mark)
        self._by_aliases += count
        if self._by_aliases > MOST_BY_ALIASES:
            message = f"aliases stand for more than {MOST_BY_ALIASES} values"
            raise yaml.composer.ComposerError(None, None, message, mark)
        return node

    def _refuse_depth(self, levels: int, mark: yaml.Mark) -> None:
        if levels > DEEPEST:
            raise yaml.composer.ComposerError(None, None, f"nested more than {DEEPEST} levels deep", mark)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except _UNREADABLE as error:
            kind, given = node.tag.rpartition(":")[2], str(node.value)
            shown = given if len(given) <= 40 else f"{given[:40]}…"
            message = f"{shown} cannot be read as {kind}"
            raise yaml.constructor.ConstructorError(None, None, message, node.start_mark) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a string", key_node.start_mark)
            if key_node.tag == "tag:yaml.org,2002:null":
                raise yaml.constructor.ConstructorError(None, None, "a key must not be null", key_node.start_mark)
            if key_node.tag != "tag:yaml.org,2002:merge" and key_node.value in seen:
                message = f"key {key_node.value!r} is there twice"
                raise yaml.constructor.ConstructorError(None, None, message, key_node.start_mark)
            seen.add(key_node.value)
        self.flatten_mapping(node)
        # As texts from the start: of Python's keys True and 1 are one.
        pairs = ((self.construct_object(key), value) for key, value in node.value)
        return {_as_text(key): self.construct_object(value, deep=deep) for key, value in pairs}

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > LONGEST_NUMBER:
            raise ValueError("too long")
        return int(re.sub(r"^([-+]?)0([0-7_]+)$", r"\g<1>0o\2", node.value), 0)

    def construct_yaml_bool(self, node: yaml.ScalarNode) -> bool:
        text = node.value.lower()
        return text == "y" if _BOOL.match(text) else bool(super().construct_yaml_bool(node))

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float | int:
        value = super().construct_yaml_float(node)
        if not math.isfinite(value):
            raise yaml.constructor.ConstructorError(
                None, None, f"{node.value} is not a number of JSON", node.start_mark
            )
        return int(value) if value.is_integer() else value  # written as JSON, 2.0 is 2


# Resolvers are tried in order of the first character: take over PyYAML's, less dates, its float (1e3 is text there) and
# its int (1:30 is 90 there).
_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag not in {f"tag:yaml.org,2002:{kind}" for kind in ("timestamp", "int", "float")}
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", _BOOL, list("yYnN"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
_Loader.add_constructor("tag:yaml.org,2002:bool", _Loader.construct_yaml_bool)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)


def _as_text(key: Hashable) -> str:
    """A key as JSON writes it."""
    return str(key).lower() if isinstance(key, bool) else str(key)


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def describe(error: yaml.YAMLError) -> str:
    """One line that says where and what, in the user's own terms."""
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    if not isinstance(error, yaml.MarkedYAMLError) or mark is None:
        return " ".join(str(error).split())
    told = ": ".join(filter(None, (error.context, error.problem)))
    return f"line {mark.line + 1}, column {mark.column + 1}: {' '.join(told.split())}"


def load_documents(text: str) -> list[Any]:
    """Every document of a YAML (so also JSON) text; all that is in it could be written as JSON.

    Raises:
        yaml.YAMLError: with line and column where there are any.
    """
    documents = list(yaml.load_all(text, Loader=_Loader))
    try:
        json.dumps(documents)
    except (TypeError, ValueError, RecursionError) as error:
        raise yaml.YAMLError(f"it has no form in JSON: {error}") from error
    return documents
