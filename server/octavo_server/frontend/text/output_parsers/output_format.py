"""How a model writes its thoughts and its tool calls: chosen once, for every answer it gives."""

import secrets
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from octavo_server.frontend.text.output_parsers.parsed import OutputParser, Parsed, Tool

_NO_TOKENS: Final[Mapping[str, int]] = MappingProxyType({})


class OutputFormat:
    """How a served model writes. `supports_tools`: it can call them; `supports_reasoning`: it thinks first."""

    def __init__(self) -> None:
        self.kept_markers: tuple[str, ...] = ()
        """Special tokens that must stay in the text, for parsing."""
        self.reasoning_markers: tuple[str, str] | None = None
        """What stands before and behind its thoughts."""
        self.supports_tools = False
        self.supports_reasoning = False
        self.supports_required = False
        """A call can be forced by a grammar (`tool_choice` "required" and a named one)."""

    def parser(self, tools: Sequence[Tool], *, reasoning_open: bool) -> OutputParser:
        """The parser of one answer. Without tools, nothing is taken for a call.

        reasoning_open: the prompt ends within thoughts.
        """
        return _PlainParser()

    def opens_reasoning(self, prompt: str) -> bool:
        """Whether an answer to this prompt begins within thoughts (`reasoning_open` of `parser`)."""
        return False

    def call_grammar(self, tools: Sequence[Tool], *, required: bool, parallel: bool) -> str | None:
        """Lark, in llguidance's dialect, of answers with calls of these tools; None where nothing is to be forced.

        required: nothing but calls (for a named tool: give that one alone). parallel: more than one call may come.
        """
        return None

    def call_id(self) -> str:
        """A new id for a call."""
        return f"call_{secrets.token_hex(12)}"


class _PlainParser:
    """All of the text is content."""

    def add(self, text: str) -> Parsed:
        return Parsed(content=text)

    def end(self) -> Parsed:
        return Parsed()


def choose_format(
    template_source: str,
    tool_call_parser: str | None = None,
    reasoning_parser: str | None = None,
    *,
    token_ids: Mapping[str, int] = _NO_TOKENS,
) -> OutputFormat:
    """The format that a chat template shows, or that flags name ("none": neither).

    token_ids: the tokenizer's added tokens by their text: a marker that is one of them is forced as this token.

    Raises:
        ConfigError: a name is unknown.
    """
    return OutputFormat()
