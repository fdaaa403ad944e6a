"""A process that renders one chat template: a template is a program that came with the model, and a thread that runs
one cannot be stopped. Started by `chat_template.py`.

JSON lines over pipes. The first line is `{"source", "special_tokens", "seconds"}`, answered by `{}` or
`{"invalid": reason}`; each further one a list of messages, answered by `{"text": prompt}` or `{"refused": reason}`.
Whatever is not done within `seconds` ends the process, by a timer of the kernel's, whoever else is still alive; so does
the end of stdin.

The template is rendered as transformers renders it: sandboxed Jinja with the same filters and globals. Jinja evaluates
constant expressions when it compiles, so compiling is bounded as well.
"""

import contextlib
import datetime
import json
import resource
import signal
import sys
from collections.abc import Iterator
from typing import Any, Final

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_MEMORY_BYTES: Final = 2**30  # of address space; the largest body takes about half of it
MAX_TEXT: Final = 32 * 2**20  # characters: twice the largest body
PIPE_BYTES: Final = 2**20  # what Linux allows everybody
_SHOWN: Final = 500  # characters of a reason


class TextTooLong(Exception):
    """The template writes without end."""


def main() -> None:
    """Until stdin ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    lines = open(sys.stdin.fileno(), "rb", buffering=PIPE_BYTES, closefd=False)  # noqa: SIM115 (for its life)
    start = json.loads(lines.readline())
    try:
        with _timer(start["seconds"]):
            template = environment().from_string(start["source"])
    except Exception as error:
        _answer(invalid=_reason(error))
        return
    _answer()
    for line in lines:
        with _timer(start["seconds"]):
            try:
                _answer(text=_render(template, json.loads(line), start["special_tokens"]))
            except Exception as error:  # it can fail in any way, and must fail this request alone
                _answer(refused=_reason(error))


def environment() -> ImmutableSandboxedEnvironment:
    """What templates are written for."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    made.filters["tojson"] = _tojson
    made.globals["raise_exception"] = _raise_exception
    made.globals["strftime_now"] = _strftime_now
    return made


def _render(template: jinja2.Template, messages: Any, special_tokens: dict[str, str]) -> str:
    """The prompt up to where the assistant's answer begins."""
    pieces: list[str] = []
    length = 0
    variables = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True}
    for piece in template.generate(variables | special_tokens):
        pieces.append(piece)
        length += len(piece)
        if length > MAX_TEXT:
            raise TextTooLong(f"it writes more than {MAX_TEXT} characters")
    return "".join(pieces)


def _answer(**fields: str) -> None:
    sys.stdout.buffer.write(json.dumps(fields, ensure_ascii=False).encode() + b"\n")
    sys.stdout.buffer.flush()


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "it needs too much memory"
    said = str(error).encode("utf-8", "replace").decode()
    return " ".join(said.split())[:_SHOWN] or type(error).__name__


@contextlib.contextmanager
def _timer(seconds: float) -> Iterator[None]:
    """SIGALRM ends the process, also from within a call that never comes back to Python."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


class _GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}` marks what the assistant said, for training; only its content counts."""

    tags = {"generation"}  # noqa: RUF012 (declared so by jinja2)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # A scope of its own: what is set inside does not reach the outside, as with the block that transformers makes.
        return nodes.Scope(body, lineno=line)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON for a prompt, not for a page: nothing is escaped that JSON does not ask for."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.datetime.now().strftime(format)


if __name__ == "__main__":
    main()
