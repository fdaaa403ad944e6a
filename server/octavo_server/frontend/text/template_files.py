"""Where a model's chat template stands: files and their order as transformers 5 has them, and the flag before all."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import jinja2

from octavo_server.errors import ConfigError, ModelError
from octavo_server.frontend.text.chat_template import ChatTemplate, ContentFormat
from octavo_server.frontend.text.template_language import environment

log = logging.getLogger(__name__)

MAX_BYTES: Final = 2**20  # of a template; the longest published ones have some ten thousand
_FLAG: Final = "--chat-template"


def load_chat_template(
    directory: Path,
    tokenizer_config: Mapping[str, Any],
    special_tokens: Mapping[str, str],
    given: str | None = None,
    content_format: ContentFormat = "auto",
) -> ChatTemplate | None:
    """The template that counts, compiled; None where the model has none.

    `given`: what `--chat-template` says, a file or the template itself; it goes before the model's own. Of those that
    have names, "default" counts, and "tool_use" for chats with tools.

    Raises:
        ModelError: the model's template cannot be read, has a syntax error, or cannot be compiled in the time it has.
        ConfigError: the same of the one that is given.
    """
    if given is not None:
        try:
            return ChatTemplate(_given(given), special_tokens, content_format=content_format)
        except ModelError as error:
            said = str(error).removeprefix("the model's chat template ")
            raise ConfigError(f"{_FLAG} {_shown(given)}: the template {said}") from error
    named = _from_files(directory) or _from_config(tokenizer_config) or _from_processor(directory)
    if named and "default" not in named:
        log.warning("none of the model's chat templates is named default: give one of them with %s", _FLAG)
    return ChatTemplate(named, special_tokens, content_format=content_format) if "default" in named else None


def check_given(value: str) -> None:
    """What can be known of `--chat-template` without a process for it: whether it is there, and is Jinja.

    Raises:
        ConfigError: it is not.
    """
    try:
        # It is only parsed: to compile it, Jinja would evaluate what is constant in it.
        environment().parse(_given(value))
    except (jinja2.TemplateSyntaxError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{_FLAG} {_shown(value)}: the template is not valid Jinja: {reason}") from error


def _given(value: str) -> str:
    """A file's content; what has braces or line breaks and is no file is a template, as vLLM takes it."""
    path = Path(value)
    try:
        if path.is_file():
            return _read(path)
    except OSError:  # too long for a path
        pass
    except ModelError as error:
        raise ConfigError(f"{_FLAG} {error}") from error
    if any(character in value for character in "{}\n"):
        return value
    raise ConfigError(f"{_FLAG} {_shown(value)}: there is no such file; give the path of one, or the template itself")


def _shown(value: str) -> str:
    line = value.splitlines()[0] if value else ""
    return line if len(line) <= 200 else line[:200] + "…"


def _from_files(directory: Path) -> dict[str, str]:
    """`chat_template.jinja` and `additional_chat_templates/NAME.jinja`; if there is one, no other place counts."""
    path = directory / "chat_template.jinja"
    named = {"default": _read(path)} if path.is_file() else {}
    for other in sorted((directory / "additional_chat_templates").glob("*.jinja")):
        named[other.stem] = _read(other)
    return named


def _from_config(tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    """`tokenizer_config.json`: a template, or a list of those that have names."""
    found = tokenizer_config.get("chat_template")
    if isinstance(found, str):
        return {"default": found}
    entries = [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []
    named = {entry.get("name"): entry.get("template") for entry in entries}
    return {name: text for name, text in named.items() if isinstance(name, str) and isinstance(text, str)}


def _from_processor(directory: Path) -> dict[str, str]:
    """`chat_template.json`, where the processors of older models have theirs."""
    path = directory / "chat_template.json"
    if not path.is_file():
        return {}
    try:
        content = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from error
    found = content.get("chat_template") if isinstance(content, dict) else None
    return {"default": found} if isinstance(found, str) else {}


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ModelError(f"{path} is larger than a chat template may be, {MAX_BYTES} bytes")
        # As text files are read: line ends of other systems count as one.
        return content.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
