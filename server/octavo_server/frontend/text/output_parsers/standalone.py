"""Schemas of single arguments, taken out of the one that describes all of them."""

from collections.abc import Mapping
from typing import Any, Final

from octavo_server.errors import RequestError
from octavo_server.frontend.text.json_schemas import mapped
from octavo_server.frontend.text.output_parsers.schema_types import is_pointer, pointed

_MOST_COPIED: Final = 20_000  # schemas


def standalone(schema: Mapping[str, Any], root: Mapping[str, Any]) -> dict[str, Any]:
    """A schema from within `root`, with what it refers to there as definitions of its own.

    Where it refers to something by other than a pointer, as by an anchor, it gets the root's definitions as they are.

    Raises:
        RequestError: that is too much.
    """
    copies = _Copies(root)
    found = mapped(schema, copies.move)
    definitions = copies.definitions()
    if copies.leads_elsewhere:
        return {**schema, **{name: root[name] for name in ("$defs", "definitions") if name in root}}
    return {**found, "$defs": definitions} if definitions else found


class _Copies:
    """What is referred to, each under a name of its own, however it is referred to."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self.leads_elsewhere = False
        self._root = root
        self._names: dict[int, str] = {}
        self._waiting: list[dict[str, Any]] = []
        self._count = 0

    def move(self, found: dict[str, Any]) -> None:
        """Make a copy of one schema refer to where its definition will stand."""
        self._count += 1
        if self._count > _MOST_COPIED:
            raise RequestError("tools: what the schema of one argument refers to is too much", param="tools")
        if "$ref" not in found:
            return
        target = pointed(reference, self._root) if is_pointer(reference := found["$ref"]) else None
        if not isinstance(target, dict):
            self.leads_elsewhere = True
            return
        if id(target) not in self._names:
            self._names[id(target)] = str(len(self._names))
            self._waiting.append(target)
        found["$ref"] = f"#/$defs/{self._names[id(target)]}"

    def definitions(self) -> dict[str, Any]:
        """By their names: all that is referred to, by definitions too."""
        found = {}
        while self._waiting:
            target = self._waiting.pop()
            found[self._names[id(target)]] = mapped(target, self.move)
        return found
