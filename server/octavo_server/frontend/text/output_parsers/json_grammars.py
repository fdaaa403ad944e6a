"""What forces calls written in JSON. The schema of the arguments is all llguidance's to hold."""

from collections.abc import Sequence
from typing import Final

from octavo_server.frontend.text.output_parsers.json_formats import ARGS, CALL_ID, PYTHON_TAG, TOOL_CALL, TOOL_CALLS
from octavo_server.frontend.text.output_parsers.lark import Lark, arguments_schema, either, quoted, several
from octavo_server.frontend.text.output_parsers.parsed import Tool

_MISTRAL_ID: Final = "/[a-zA-Z0-9]{9}/"


def hermes_grammar(lark: Lark, tools: Sequence[Tool], *, required: bool, parallel: bool) -> str:
    """See `OutputFormat.call_grammar`."""
    opening, closing = TOOL_CALL
    lark.add("rest", f'"\\n" {_objects(lark, tools, "arguments")} "\\n" {lark.marker(closing)}')
    if required:
        lark.add("call", f"{lark.marker(opening)} rest")
        return lark.start(several("call", "\n", parallel=parallel))
    lark.text(opening)
    return lark.start(f"({lark.opened(opening)} rest){'*' if parallel else '?'} TEXT")


def llama3_json_grammar(lark: Lark, tools: Sequence[Tool], *, required: bool, parallel: bool) -> str:
    """See `OutputFormat.call_grammar`. Free text must not begin as a call does, with a brace."""
    lark.add("call", _objects(lark, tools, "parameters"))
    calls = lark.add("calls", several("call", "; ", parallel=parallel))
    return lark.start(calls if required else unmarked(lark, calls, "{", PYTHON_TAG))


def mistral_grammar(lark: Lark, tools: Sequence[Tool], *, required: bool, parallel: bool) -> str:
    """See `OutputFormat.call_grammar`. Newer models, which have `[ARGS]`, write no list."""
    named = lark.is_token(ARGS)
    if named:
        options = []
        for index, tool in enumerate(tools):
            arguments = lark.json(f"arguments_{index}", arguments_schema(tool.parameters))
            options.append(f"{quoted(tool.name)} arguments_mark {arguments}")
        identified = f"({lark.marker(CALL_ID)} {_MISTRAL_ID})? " if lark.is_token(CALL_ID) else ""
        lark.add("arguments_mark", f"{identified}{lark.marker(ARGS)}")
        lark.add("rest", either(options))
    else:
        lark.add("call", _objects(lark, tools, "arguments"))
        lark.add("rest", f'" "? "[" {several("call", ", ", parallel=parallel)} "]"')
    if required:
        lark.add("marked", f"{lark.marker(TOOL_CALLS)} rest")
        return lark.start(several("marked", "", parallel=parallel and named))
    lark.text(TOOL_CALLS)
    return lark.start(f"({lark.opened(TOOL_CALLS)} rest){'*' if parallel else '?'} TEXT")


def unmarked(lark: Lark, calls: str, first: str, marker: str) -> str:
    """The start of a grammar with calls that stand at the beginning, or behind a marker: those, or free text."""
    lark.text(marker)
    lark.add("PLAIN", f"(/[ \\t\\r\\n]*[^ \\t\\r\\n\\{first}](.|\\n)*/ | /[ \\t\\r\\n]*/) & TEXT")
    if lark.is_token(marker):
        return f"{calls} | PLAIN ({lark.marker(marker)} {calls})?"
    lark.add("behind[lazy]", f"PLAIN {quoted(marker)}")
    return f"{calls} | PLAIN | behind {calls}"


def _objects(lark: Lark, tools: Sequence[Tool], key: str) -> str:
    """A call of one of the tools, as an object."""
    options = []
    for index, tool in enumerate(tools):
        arguments = lark.json(f"arguments_{index}", arguments_schema(tool.parameters))
        opening = f'{{"name": {quoted(tool.name)}, "{key}": '
        options.append(lark.add(f"object_{index}", f'{quoted(opening)} {arguments} "}}"'))
    return lark.add("object", either(options))
