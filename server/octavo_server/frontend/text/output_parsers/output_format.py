"""How a model writes its thoughts and its tool calls: chosen once, for every answer it gives."""

import secrets
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Protocol

from octavo_server.errors import ConfigError
from octavo_server.frontend.text.output_parsers import (
    bare_grammars,
    json_formats,
    json_grammars,
    pythonic,
    qwen3_coder,
)
from octavo_server.frontend.text.output_parsers.lark import NO_FORCING, Lark
from octavo_server.frontend.text.output_parsers.machine import Machine, PlainText, Reader
from octavo_server.frontend.text.output_parsers.parsed import OutputParser, Tool

_NO_TOKENS: Final[Mapping[str, int]] = MappingProxyType({})


class Grammar(Protocol):
    """What forces calls of a format; see `OutputFormat.call_grammar`."""

    def __call__(self, lark: Lark, tools: Sequence[Tool], *, required: bool, parallel: bool) -> str:
        """The whole grammar."""
        ...


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """A way to write tool calls. `markers`: those that may be special tokens.

    `exact`: its grammar holds all of a tool's schema.
    """

    name: str
    reader: Reader
    markers: tuple[str, ...]
    grammar: Grammar
    exact: bool


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """A way to write thoughts. `always`: answers begin within them, unless the prompt has ended them."""

    name: str
    markers: tuple[str, str]
    always: bool = False


_TOOL_FORMATS: Final = (
    ToolFormat("hermes", json_formats.read_hermes, json_formats.TOOL_CALL, json_grammars.hermes_grammar, True),
    ToolFormat(
        "llama3_json",
        json_formats.read_llama3_json,
        (json_formats.PYTHON_TAG,),
        json_grammars.llama3_json_grammar,
        True,
    ),
    ToolFormat(
        "mistral",
        json_formats.read_mistral,
        (json_formats.TOOL_CALLS, json_formats.CALL_ID, json_formats.ARGS),
        json_grammars.mistral_grammar,
        True,
    ),
    ToolFormat(
        "pythonic",
        pythonic.read_pythonic,
        (pythonic.PYTHON_START, pythonic.PYTHON_END),
        bare_grammars.pythonic_grammar,
        False,
    ),
    ToolFormat(
        "qwen3_coder",
        qwen3_coder.read_qwen3_coder,
        json_formats.TOOL_CALL,
        bare_grammars.qwen3_coder_grammar,
        False,
    ),
)
_ALIASES: Final = {"llama4_json": "llama3_json", "llama4_pythonic": "pythonic", "qwen3_xml": "qwen3_coder"}
_THINK: Final = ("<think>", "</think>")
_REASONING_FORMATS: Final = (
    ReasoningFormat("deepseek_r1", _THINK, always=True),
    ReasoningFormat("qwen3", _THINK),
    ReasoningFormat("mistral", ("[THINK]", "[/THINK]")),
)
NONE: Final = "none"
TOOL_PARSERS: Final = {tools.name: tools for tools in _TOOL_FORMATS} | {
    alias: tools for alias, name in _ALIASES.items() for tools in _TOOL_FORMATS if tools.name == name
}
REASONING_PARSERS: Final = {thoughts.name: thoughts for thoughts in _REASONING_FORMATS}


class OutputFormat:
    """How a served model writes."""

    def __init__(
        self, tools: ToolFormat | None, thoughts: ReasoningFormat | None, token_ids: Mapping[str, int] = _NO_TOKENS
    ) -> None:
        """See `choose_format`. None: it cannot."""
        self._tools = tools
        self._thoughts = thoughts
        self._token_ids = token_ids
        self.reasoning_markers = thoughts.markers if thoughts is not None else None
        """What stands before and behind its thoughts."""
        self.supports_tools = tools is not None
        self.supports_reasoning = thoughts is not None
        self.supports_required = tools is not None
        """A call can be forced by a grammar (`tool_choice` "required" and a named one)."""
        self.supports_strict = tools is not None and tools.exact
        """A grammar can hold arguments to all of a schema; otherwise to names, types and enumerations."""
        self.kept_markers = (*(tools.markers if tools else ()), *(thoughts.markers if thoughts else ()))
        """Special tokens that must stay in the text, for parsing."""

    @property
    def names(self) -> tuple[str, str]:
        """What its parsers of tool calls and of thoughts are called."""
        return self._tools.name if self._tools else NONE, self._thoughts.name if self._thoughts else NONE

    def parser(self, tools: Sequence[Tool], *, reasoning_open: bool) -> OutputParser:
        """The parser of one answer. Without tools, nothing is taken for a call.

        reasoning_open: the prompt ends within thoughts, see `opens_reasoning`.
        """
        reader = self._tools.reader if self._tools is not None and tools else None
        if reader is None and self._thoughts is None:
            return PlainText()
        by_name = {tool.name: tool for tool in tools}
        return Machine(self.reasoning_markers, reader, by_name, reasoning_open=reasoning_open)

    def opens_reasoning(self, prompt: str) -> bool:
        """Whether an answer to this prompt begins within thoughts (`reasoning_open` of `parser`)."""
        if self._thoughts is None:
            return False
        start, end = self._thoughts.markers
        prompt = prompt.rstrip()
        return prompt.endswith(start) or (self._thoughts.always and not prompt.endswith(end))

    def call_grammar(self, tools: Sequence[Tool], *, required: bool, parallel: bool) -> str | None:
        """Lark, in llguidance's dialect, of answers with calls of these tools; None where nothing is to be forced.

        required: nothing but calls (for a named tool: give that one alone). parallel: more than one call may come.
        See `forces_calls`.
        """
        if self._tools is None or not self.forces_calls(tools, required=required, parallel=parallel):
            return None
        return self._tools.grammar(Lark(self._token_ids), tools, required=required, parallel=parallel)

    def forces_calls(self, tools: Sequence[Tool], *, required: bool, parallel: bool) -> bool:
        """Whether `call_grammar` makes one.

        Where calls are free to come, they are forced to be of these tools, with valid arguments, if one tool is strict
        or there may be no second call.
        """
        if self._tools is None or not tools:
            return False
        return required or not parallel or any(tool.strict for tool in tools)

    def call_or_json(self, calls: str, schema: str) -> str:
        """Lark of answers that are calls, by a `call_grammar`, or JSON by this schema."""
        return f"{NO_FORCING}\nstart: calls | answer\ncalls: %lark {{\n{calls}\n}}\nanswer: %json {schema}\n"

    def call_id(self) -> str:
        """A new id for a call."""
        if self._tools is not None and self._tools.name == "mistral":  # its templates refuse others
            return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))
        return f"call_{secrets.token_hex(12)}"


def choose_format(
    template_source: str,
    tool_call_parser: str | None = None,
    reasoning_parser: str | None = None,
    *,
    token_ids: Mapping[str, int] = _NO_TOKENS,
) -> OutputFormat:
    """The format that a chat template shows, or that flags name ("none": neither).

    token_ids: the added tokens that a grammar takes as one, by their text: a marker among them is forced as this token.

    Raises:
        ConfigError: a name is unknown.
    """
    tools = _tools_shown(template_source) if tool_call_parser is None else tool_call_parser
    thoughts = _thoughts_shown(template_source) if reasoning_parser is None else reasoning_parser
    check_names(tools, thoughts)
    return OutputFormat(TOOL_PARSERS.get(tools), REASONING_PARSERS.get(thoughts), token_ids)


def check_names(tool_call_parser: str | None, reasoning_parser: str | None) -> None:
    """Raises ConfigError where flags name a parser that is unknown; None: they do not name one."""
    for flag, name, known in (
        ("--tool-call-parser", tool_call_parser, TOOL_PARSERS.keys()),
        ("--reasoning-parser", reasoning_parser, REASONING_PARSERS.keys()),
    ):
        if name is not None and name not in known and name != NONE:
            raise ConfigError(f"{flag} {name} is unknown; known are {', '.join(sorted(known))} and {NONE}")


def _tools_shown(template: str) -> str:
    """The parser for the calls that a template shows its model, by what no other family's templates have."""
    if json_formats.TOOL_CALLS in template:
        return "mistral"
    if "<function=" in template and "<parameter=" in template:
        return "qwen3_coder"
    if json_formats.TOOL_CALL[0] in template:
        return NONE if "<arg_key>" in template else "hermes"  # GLM has its own way within these tags
    if pythonic.PYTHON_START in template or "func_name1(" in template:
        return "pythonic"
    if json_formats.PYTHON_TAG in template or ("<|start_header_id|>" in template and '"parameters"' in template):
        return "llama3_json"
    return NONE


def _thoughts_shown(template: str) -> str:
    if "[/THINK]" in template:
        return "mistral"
    return "qwen3" if "</think>" in template else NONE
