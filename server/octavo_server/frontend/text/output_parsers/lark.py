"""Grammars of answers with tool calls, in llguidance's dialect of Lark.

A marker that is a token of its own is forced as that token, by its id: to llguidance, it is no text. Free text must not
spell a marker either, since parsers see only text.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from octavo_server.errors import RequestError
from octavo_server.frontend.text.closed_schemas import closed
from octavo_server.frontend.text.json_schemas import ESCAPES, served

MOST_CALLS: Final = 128
MOST_SAID: Final = 2**22  # characters
# Else text that must come is tokenized by llguidance, and becomes special tokens where it spells them: an end in
# mid-answer. There are too many ways to spell one in a pattern to look for them.
NO_FORCING: Final = '%llguidance {"no_forcing": true}'
# As `json.dumps` and `tojson` write it: what models have seen. Some go on forever with white space where it is free.
_OPTIONS: Final = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", **ESCAPES}
# With one of these, a schema says by other means than `properties` what an object may hold.
_MORE_THAN_PROPERTIES: Final = frozenset(
    {"$ref", "allOf", "anyOf", "oneOf", "not", "if", "patternProperties", "additionalProperties", "propertyNames"}
    | {"unevaluatedProperties", "dependentSchemas", "minProperties", "enum", "const"}
)
_ANYTHING: Final = r"/(.|\n)*/"


class Lark:
    """Rules of a grammar, gathered."""

    def __init__(self, token_ids: Mapping[str, int]) -> None:
        """token_ids: texts that are tokens."""
        self._token_ids = token_ids
        self._lines: list[str] = []
        self._length = 0  # characters of them

    def __str__(self) -> str:
        return "".join(f"{line}\n" for line in (NO_FORCING, *self._lines))

    def add(self, name: str, body: str) -> str:
        """A rule, or, in capitals, a terminal; its name. Raises RequestError where the grammar becomes too long."""
        self._length += len(body)
        if self._length > MOST_SAID:
            raise RequestError(
                "tools: the schemas of the arguments, each with what it refers to, are too long together: "
                f"their grammar has more than {MOST_SAID} characters",
                param="tools",
            )
        self._lines.append(f"{name}: {body}")
        return name.removesuffix("[lazy]")

    def start(self, body: str) -> str:
        """The whole grammar, with the rule that it starts with."""
        self.add("start", body)
        return str(self)

    def json(self, name: str, schema: Mapping[str, Any]) -> str:
        """A rule for JSON that is valid by a tool's schema. Raises RequestError for what cannot be held of it."""
        # A client's own options would be the server's to check.
        text = json.dumps({**served(schema, "tools"), "x-guidance": _OPTIONS}, ensure_ascii=False)
        return self.add(name, f"%json {text}")

    def is_token(self, marker: str) -> bool:
        """Whether it is a token of its own."""
        return marker in self._token_ids

    def marker(self, marker: str) -> str:
        """A marker as the model writes it."""
        return f"<[{self._token_ids[marker]}]>" if self.is_token(marker) else quoted(marker)

    def text(self, *markers: str, name: str = "TEXT") -> str:
        """Text without these in it."""
        return self.add(name, without(*markers))

    def opened(self, marker: str) -> str:
        """Text up to a marker, and the marker; the first one after which something is forced."""
        if self.is_token(marker):
            return self.add("opened", f"TEXT {self.marker(marker)}")
        return self.add("opened[lazy]", f"TEXT {quoted(marker)}")


def without(*markers: str) -> str:
    """A terminal's body: text with none of these in it."""
    return " & ".join((_ANYTHING, *(f"~/(.|\\n)*{_pattern(marker)}(.|\\n)*/" for marker in markers)))


def quoted(text: str) -> str:
    """Text as a Lark string."""
    return json.dumps(text, ensure_ascii=False)


def several(item: str, separator: str, *, parallel: bool) -> str:
    """One or more of them; one alone if they may not be parallel."""
    between = f"{quoted(separator)} " if separator else ""
    return f"{item} ({between}{item}){{0,{MOST_CALLS - 1}}}" if parallel else item


def either(options: Sequence[str]) -> str:
    """One of them."""
    return " | ".join(options)


def arguments_schema(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The schema that arguments are forced to: an object, of no other properties than those that are named.

    So are those within it, unless several schemas describe one together.
    """
    schema = dict(parameters)
    if not _MORE_THAN_PROPERTIES & schema.keys():
        schema["additionalProperties"] = False
        schema.setdefault("properties", {})
    if "$ref" not in schema:
        schema["type"] = "object"
    return closed(schema)[0]


def _pattern(text: str) -> str:
    """A regular expression that matches this text, without the slash that would end it."""
    return (
        "".join(character if character.isalnum() or character in "_ =" else f"\\{character}" for character in text)
        .replace("\\<", "<")
        .replace("\\>", ">")
    )
