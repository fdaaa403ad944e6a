"""A process that renders a model's chat templates: a template is a program that came with the model, and a thread that
runs one cannot be stopped. Started by `line_process.py`.

JSON lines over pipes. The first line is `{"sources", "special_tokens", "seconds", "content_format"}`, answered by
`{"reads": [names]}` or `{"invalid": reason}`; each further one `{"messages", "tools", "variables",
"add_generation_prompt", "continue_final_message"}`, answered by `{"text": prompt}`, `{"refused": reason}` or
`{"cannot_continue": reason}`. Whatever is not done within `seconds` ends the process, by a timer of the kernel's,
whoever else is still alive; so does the end of stdin.

Jinja evaluates constant expressions when it compiles, so compiling is bounded as well.
"""

import contextlib
import json
import resource
import secrets
import signal
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Final

import jinja2

from octavo_server.frontend.text.quiet import say_no_more
from octavo_server.frontend.text.template_language import (
    Content,
    content_read,
    environment,
    names_read,
    takes_text_arguments,
)
from octavo_server.frontend.text.template_messages import CannotContinue, cut_off, for_template, leave_open

MAX_MEMORY_BYTES: Final = 2**30  # of address space; the largest body takes about half of it
MAX_TEXT: Final = 32 * 2**20  # characters: twice the largest body
PIPE_BYTES: Final = 2**20  # what Linux allows everybody
_SHOWN: Final = 500  # characters of a reason


class TextTooLong(Exception):
    """The template writes without end."""


class Templates:
    """A model's templates by name, compiled."""

    def __init__(self, start: Mapping[str, Any]) -> None:
        """Compile what the first line holds; raises as Jinja does."""
        language = environment()
        trees = {name: language.parse(source) for name, source in start["sources"].items()}
        self._compiled = {name: language.from_string(source) for name, source in start["sources"].items()}
        self._special_tokens = start["special_tokens"]
        forms: dict[str, Content] = {"string": "string", "openai": "parts"}
        form = forms.get(start["content_format"])
        self._content: dict[str, Content] = {name: form or content_read(tree) for name, tree in trees.items()}
        self._text_arguments = {name: takes_text_arguments(tree) for name, tree in trees.items()}
        self.reads = sorted(set().union(*(names_read(tree) for tree in trees.values())))

    def render(self, chat: Mapping[str, Any]) -> str:
        """The prompt of a chat.

        Raises:
            CannotContinue: its last message cannot be left open.
        """
        name = "tool_use" if chat["tools"] is not None and "tool_use" in self._compiled else "default"
        text_arguments = self._text_arguments[name]
        messages = for_template(chat["messages"], self._content[name], text_arguments=text_arguments)
        variables = {"documents": None} | self._special_tokens | chat["variables"]
        variables |= {"tools": chat["tools"], "add_generation_prompt": chat["add_generation_prompt"]}
        if not chat["continue_final_message"]:
            return _text(self._compiled[name], variables | {"messages": messages})
        mark = f"{secrets.token_hex(16)} "
        text = leave_open(messages, mark)
        return cut_off(_text(self._compiled[name], variables | {"messages": messages}), mark, text)


def main() -> None:
    """Until stdin ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    lines = open(sys.stdin.fileno(), "rb", buffering=PIPE_BYTES, closefd=False)  # noqa: SIM115 (for its life)
    start = json.loads(lines.readline())
    try:
        with _timer(start["seconds"]):
            templates = Templates(start)
    except Exception as error:
        _answer(invalid=_reason(error))
        return
    say_no_more()
    _answer(reads=templates.reads)
    for line in lines:
        with _timer(start["seconds"]):
            try:
                _answer(text=templates.render(json.loads(line)))
            except CannotContinue as error:
                _answer(cannot_continue=_reason(error))
            except Exception as error:  # it can fail in any way, and must fail this request alone
                _answer(refused=_reason(error))


def _text(template: jinja2.Template, variables: Mapping[str, Any]) -> str:
    pieces: list[str] = []
    length = 0
    for piece in template.generate(variables):
        pieces.append(piece)
        length += len(piece)
        if length > MAX_TEXT:
            raise TextTooLong(f"it writes more than {MAX_TEXT} characters")
    return "".join(pieces)


def _answer(**fields: Any) -> None:
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


if __name__ == "__main__":
    main()
