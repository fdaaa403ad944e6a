"""Messages put together from what output parsers give out."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from octavo_server.frontend.text.output_parsers import OutputFormat, Tool


@dataclass
class Whole:
    """A message put together from what a parser gave out."""

    content: str = ""
    reasoning: str = ""
    calls: list[list[str]] = field(default_factory=list)


def put_together(form: OutputFormat, pieces: Iterable[str], *, tools: Sequence[Tool], opened: bool = False) -> Whole:
    """What a parser makes of these pieces; each call's name comes first and once, the indices in order."""
    parser = form.parser(tools, reasoning_open=opened)
    whole = Whole()
    for parsed in [*map(parser.add, pieces), parser.end()]:
        whole.content += parsed.content
        whole.reasoning += parsed.reasoning
        assert [call.index for call in parsed.calls] == sorted({call.index for call in parsed.calls})
        for call in parsed.calls:
            if call.name is not None:
                assert call.index == len(whole.calls)
                whole.calls.append([call.name, ""])
            whole.calls[call.index][1] += call.arguments
    return whole


def calls(whole: Whole) -> list[tuple[str, Any]]:
    """Names and arguments, which are JSON."""
    return [(name, json.loads(arguments)) for name, arguments in whole.calls]
