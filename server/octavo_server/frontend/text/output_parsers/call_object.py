"""A call written as a JSON object: `{"name": …, "arguments": {…}}`, the arguments called `parameters` by some."""

from collections.abc import Container
from typing import Final

from octavo_server.frontend.text.output_parsers.json_text import json_string, json_value
from octavo_server.frontend.text.output_parsers.message import Message
from octavo_server.frontend.text.output_parsers.source import Read, Source

KEYS: Final = frozenset({"name", "arguments", "parameters", "type", "id"})
_ARGUMENTS: Final = frozenset({"arguments", "parameters"})
_VALUE_STARTS: Final = frozenset('{["-0123456789tfn')


class CallObject:
    """Reads one such object. `begun`: a call came of it, maybe unfinished."""

    def __init__(self, source: Source, message: Message, names: Container[str] | None = None) -> None:
        """With `names`, an object with another name, or with keys that no call has, is no call."""
        self._source = source
        self._message = message
        self._names = names
        self._name: str | None = None
        self._early: list[str] = []  # arguments that came before the name
        self.begun = False

    def read(self) -> Read[bool]:
        """Read the object; whether a call came of it.

        What was read until then is kept by `source` if not, with all that it keeps already: it is just text. So is
        what follows the arguments and breaks the object.
        """
        source = self._source
        whole = (yield from source.starts("{")) and (yield from self._members())
        if whole and not self.begun and self._name is not None:
            self._begin(self._name)
            self._message.arguments("".join(self._early) or "{}")
        if self.begun:
            rest = source.kept()
            if not whole and rest.strip(" \t\r\n,"):
                self._message.content(rest)
        return self.begun

    def _members(self) -> Read[bool]:
        """Whether all of them, and the brace behind them, are there."""
        source = self._source
        while True:
            yield from source.space()
            key = yield from json_string(source)
            if key is None or (self._names is not None and key not in KEYS):
                return False
            yield from source.space()
            if not (yield from source.starts(":")):
                return False
            yield from source.space()
            if not (yield from self._value(key)):
                return False
            yield from source.space()
            if not (yield from source.starts(",")):
                return (yield from source.starts("}"))

    def _value(self, key: str) -> Read[bool]:
        source, message = self._source, self._message
        if key == "name" and self._name is None:
            self._name = yield from json_string(source)
            return bool(self._name) and (self._names is None or self._name in self._names)
        if key not in _ARGUMENTS or self.begun or self._early:
            return (yield from json_value(source, _nothing))
        if (yield from source.peek()) not in _VALUE_STARTS:
            return False
        if self._name is None:
            return (yield from json_value(source, self._early.append))
        self._begin(self._name)
        yield from json_value(source, message.arguments)
        source.keep()
        return True

    def _begin(self, name: str) -> None:
        self.begun = True
        self._source.kept()
        self._message.call(name)


def _nothing(text: str) -> None:
    """For values that say nothing of the call."""
