"""What forces calls whose arguments are no JSON: Python's, and Qwen3-Coder's.

Names, types, enumerations and which arguments must be there are held; other keywords of a schema are not.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from octavo_server.errors import RequestError
from octavo_server.frontend.text.closed_schemas import closed
from octavo_server.frontend.text.output_parsers.json_formats import TOOL_CALL
from octavo_server.frontend.text.output_parsers.json_grammars import unmarked
from octavo_server.frontend.text.output_parsers.lark import Lark, either, quoted, several, without
from octavo_server.frontend.text.output_parsers.parsed import Tool
from octavo_server.frontend.text.output_parsers.pythonic import PYTHON_START
from octavo_server.frontend.text.output_parsers.qwen3_coder import FUNCTION, PARAMETER
from octavo_server.frontend.text.output_parsers.schema_types import (
    Looks,
    alternatives,
    is_plain_string,
    listed,
    properties,
    required,
    split,
    types,
)
from octavo_server.frontend.text.output_parsers.standalone import standalone

_PYTHON_TERMINALS: Final = {
    "STRING": r'/"([^"\\\x00-\x1f]|\\(["\\bfnrt]|u[0-9a-fA-F]{4}))*"/',
    "INTEGER": "/-?(0|[1-9][0-9]{0,18})/",
    "NUMBER": r"/-?(0|[1-9][0-9]{0,18})(\.[0-9]{1,17})?([eE][-+]?[0-9]{1,3})?/",
}
_PYTHON_RULES: Final = {
    "boolean": '"True" | "False"',
    "null": '"None"',
    "anything": "STRING | NUMBER | boolean | null | array | object",
    "array": '"[" (anything (", " anything)*)? "]"',
    "object": '"{" (item (", " item)*)? "}"',
    "item": 'STRING ": " anything',
}
_SIMPLE: Final = {"string": "STRING", "integer": "INTEGER", "number": "NUMBER", "boolean": "boolean", "null": "null"}
_CONSTANTS: Final = {"true": "True", "false": "False", "null": "None"}
_NO_KEY: Final = re.compile(r"[<>\r\n]")
_MOST_LOOKS: Final = 200_000  # at what the schemas of all tools say, some of it for each argument: half a second
_DEEPEST: Final = 8  # within this, what arrays hold is typed; below, anything goes


def pythonic_grammar(lark: Lark, tools: Sequence[Tool], *, required: bool, parallel: bool) -> str:
    """See `OutputFormat.call_grammar`. Free text must not begin as a list of calls does, with a bracket."""
    for name, body in (_PYTHON_TERMINALS | _PYTHON_RULES).items():
        lark.add(name, body)
    options, left = [], _MOST_LOOKS
    for index, tool in enumerate(tools):
        _check_names(tool, str.isidentifier)
        looks = Looks(tool.parameters, left)
        arguments = _arguments(lark, f"arguments_{index}", tool.parameters, looks)
        left = _left(looks)
        options.append(lark.add(f"call_{index}", f'{quoted(tool.name + "(")} {arguments} ")"'))
    lark.add("call", either(options))
    calls = lark.add("calls", f'"[" {several("call", ", ", parallel=parallel)} "]"')
    return lark.start(calls if required else unmarked(lark, calls, "[", PYTHON_START))


def _check_names(tool: Tool, can_be_written: Callable[[str], bool]) -> None:
    """Raises RequestError where a strict tool needs an argument whose name has no place in the format."""
    lost = [key for key in properties(tool.parameters) if key in required(tool.parameters) and not can_be_written(key)]
    if tool.strict and lost:
        raise RequestError(
            f"tools: this model cannot write an argument named {lost[0][:64]!r}, which {tool.name} needs, and the tool "
            "is strict",
            param="tools",
        )


def _is_key(key: str) -> bool:
    return bool(key) and not _NO_KEY.search(key)


def _left(looks: Looks) -> int:
    """How many there are. Raises RequestError where there were too few."""
    if looks.left < 0:
        raise RequestError(
            "tools: what the schemas of the arguments refer to, by each of them, is too much to be read", param="tools"
        )
    return looks.left


def _arguments(lark: Lark, rule: str, parameters: Mapping[str, Any], looks: Looks) -> str:
    """A rule for the arguments of a call, in the schema's order, commas between them."""
    first = more = lark.add(f"{rule}_end", '""')
    values = _PythonValues(lark, f"{rule}_value", looks)
    for number, (key, schema) in reversed([*enumerate(properties(parameters).items())]):
        if not key.isidentifier():
            continue
        item = lark.add(f"{rule}_{number}", f"{quoted(f'{key}=')} {values.rule(schema)}")
        left_out = "" if key in required(parameters) else " | "
        first, more = (
            lark.add(f"{rule}_{number}_first", f"{item} {more}{left_out and left_out + first}"),
            lark.add(f"{rule}_{number}_more", f'", " {item} {more}{left_out and left_out + more}'),
        )
    return first


class _PythonValues:
    """Rules of the literals that are valid by schemas, one for each schema."""

    def __init__(self, lark: Lark, prefix: str, looks: Looks) -> None:
        """prefix: of the rules' names."""
        self._lark, self._prefix, self._looks = lark, prefix, looks
        self._rules: dict[int, str] = {}

    def rule(self, schema: Any, depth: int = 0) -> str:
        """The rule of a schema; at some depth anything goes."""
        schema = self._looks.resolved(schema)
        if not schema or depth == _DEEPEST:
            return "anything"
        if (rule := self._rules.get(id(schema))) is None:
            rule = self._rules[id(schema)] = f"{self._prefix}_{len(self._rules)}"
            options = [self._one(option, depth) for option in alternatives(schema, self._looks)]
            self._lark.add(rule, either(list(dict.fromkeys(options))) or "anything")
        return rule

    def _one(self, schema: Mapping[str, Any], depth: int) -> str:
        """The expression for a schema that is no union."""
        if (values := listed(schema)) is not None:
            return either([quoted(_python(value)) for value in values])
        kinds = types(schema, self._looks)
        if not kinds:
            return "anything"
        options = [_SIMPLE.get(kind, "object") for kind in sorted(kinds) if kind != "array"]
        if "array" in kinds:
            item = self.rule(schema.get("items"), depth + 1)
            options.append(f'"[" ({item} (", " {item})*)? "]"')
        return either(options)


def _python(value: Any) -> str:
    text = json.dumps(value)
    return _CONSTANTS.get(text, text)


def qwen3_coder_grammar(lark: Lark, tools: Sequence[Tool], *, required: bool, parallel: bool) -> str:
    """See `OutputFormat.call_grammar`."""
    opening, closing = TOOL_CALL
    lark.add("VALUE", without(*PARAMETER, *FUNCTION, *TOOL_CALL))
    lark.add("value[lazy]", f'VALUE "\\n" {quoted(PARAMETER[1])}')
    options, left = [], _MOST_LOOKS
    for index, tool in enumerate(tools):
        _check_names(tool, _is_key)
        looks = Looks(tool.parameters, left)
        parameters = [
            _parameter(lark, f"parameter_{index}_{number}", tool.parameters, key, looks)
            for number, key in enumerate(properties(tool.parameters))
            if _is_key(key)
        ]
        left = _left(looks)
        name = quoted(f"{FUNCTION[0]}{tool.name}>\n")
        options.append(lark.add(f"function_{index}", f"{name} {' '.join(parameters)} {quoted(FUNCTION[1])}"))
    lark.add("function", either(options))
    lark.add("rest", f'"\\n" function "\\n" {lark.marker(closing)}')
    if required:
        lark.add("call", f"{lark.marker(opening)} rest")
        return lark.start(several("call", "\n", parallel=parallel))
    lark.text(opening, FUNCTION[0])
    return lark.start(f"({lark.opened(opening)} rest){'*' if parallel else '?'} TEXT")


def _parameter(lark: Lark, rule: str, parameters: Mapping[str, Any], key: str, looks: Looks) -> str:
    """Strings stand bare; what else may come is JSON. `as_json` reads either as what it was meant for."""
    schema, end = looks.resolved(properties(parameters)[key]), f"\n{PARAMETER[1]}\n"
    strings, others = split(schema, looks)
    is_string = is_plain_string(schema, looks)
    if strings is None or (is_string and not strings):
        body = 'value "\\n"'
    else:
        options = [quoted(string + end) for string in strings]
        if others and not is_string:
            rest = standalone({"anyOf": others} if strings else schema, parameters)
            options.append(f"{lark.json(f'{rule}_json', closed(rest)[0])} {quoted(end)}")
        body = either(options)
    lark.add(rule, f'{quoted(f"{PARAMETER[0]}{key}>")} "\\n" ({body})')
    return rule if key in required(parameters) else f"{rule}?"
