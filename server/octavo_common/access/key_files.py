"""Files of API keys: lines, or a YAML or JSON list; and directories of them, as Kubernetes mounts a Secret.

A line is `NAME: KEY`, or a KEY alone; what begins with # is a comment. In a list an entry is an object with `name`,
`key`, and maybe limits of its own. A file's only key may go without a name: it is then named after the file. No message
holds what stands in a file.
"""

import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from octavo_common.errors import ConfigError

MAX_FILE_BYTES: Final = 256 * 1024
MAX_FILES: Final = 1000
MAX_KEY_LENGTH: Final = 4096
LIMITS: Final = ("requests_per_minute", "tokens_per_minute", "concurrent_requests")
_MOST: Final = 10**12
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@/+-]{0,127}")
_KEY: Final = re.compile(rf"[\x21-\x7e]{{1,{MAX_KEY_LENGTH}}}")
_LINE: Final = re.compile(r"(?:([^\s:]+):\s+)?(\S+)")
# What somebody meant otherwise: a key with its quotes, an object, YAML's line between documents; and, without a name, a
# shell's assignment, or a name with no space behind its colon.
_SLIP: Final = re.compile(r"""^["'{]|["'}]$|^---""")
_SLIP_ALONE: Final = re.compile(r"[A-Z][A-Z0-9_]*=[^=]|[^:]+:[^:]+$")
_LIST: Final = re.compile(r"[ \t]*(?:\[|-[ \t]|-$)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Entry:
    """A key as it was given. `limits`: those that it sets itself. `where`: a file and line, or a flag."""

    name: str
    key: str = field(repr=False)
    named: bool = True
    limits: dict[str, int | None] = field(default_factory=dict)
    where: str = "--api-key"


def read_keys(path: Path) -> list[Entry]:
    """The keys in a file, or in the files of a directory whose names do not begin with a dot.

    Raises:
        ConfigError: one cannot be read, is too large, not understood, or all are empty: who removes the last key should
            not open the server, nor should who is about to write the file close it.
    """
    entries = []
    for found in read_each(path).values():
        if isinstance(found, ConfigError):
            raise found
        entries += found
    return entries


def read_each(path: Path) -> dict[Path, list[Entry] | ConfigError]:
    """The keys in each file, or why it cannot be used.

    Raises:
        ConfigError: `path` itself cannot be read, or all of its files are empty.
    """
    try:
        files = _files_of(path) if path.is_dir() else [path]
    except OSError as error:
        raise _unreadable(path, error) from error
    each = {file: _entries(file) for file in files}
    if not any(each.values()):
        raise ConfigError(f"{path}: there is no API key in it")
    return each


def is_empty_directory(path: Path) -> bool:
    """Whether a directory has no file in it, or none yet: an optional Secret that nobody has made."""
    try:
        return path.is_dir() and not _files_of(path)
    except (OSError, ConfigError):
        return False


def _entries(file: Path) -> list[Entry] | ConfigError:
    try:
        return _parse(file, _read(file))
    except OSError as error:
        return _unreadable(file, error)
    except ConfigError as error:
        return error


def _unreadable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{error.filename or path}: {error.strerror or error}")


def _files_of(directory: Path) -> list[Path]:
    """Not the hidden ones: a Secret's files are links into `..data`, which is replaced as a whole."""
    names = sorted(name for name in os.listdir(directory) if not name.startswith("."))  # noqa: PTH208 (names alone)
    if len(names) > MAX_FILES:
        raise ConfigError(f"{directory}: there are more than {MAX_FILES} files in it")
    return [directory / name for name in names]


def _read(path: Path) -> str:
    if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe is to wait for its writer
        raise ConfigError(f"{path}: it is not a file")
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: it is larger than {MAX_FILE_BYTES} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}, line {line}: it is not UTF-8") from None


def _parse(path: Path, text: str) -> list[Entry]:
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1)]
    lines = [(number, line) for number, line in lines if line and not line.startswith("#")]
    if any(_LIST.match(line) for _, line in lines[: 1 + (lines[0][1] == "---" if lines else 0)]):
        return list(_of_list(path, text))
    return [_of_line(path, number, line, alone=len(lines) == 1) for number, line in lines]


def _of_line(path: Path, number: int, line: str, *, alone: bool) -> Entry:
    where = f"{path}, line {number}"
    match = _LINE.fullmatch(line)
    name, key = match.groups() if match is not None else (None, ":")
    if name in ("name", "key", *LIMITS):
        raise ConfigError(f"{where}: it looks like a part of an entry of a list: begin the entry with `- `")
    if _SLIP.search(key) or (name is None and _SLIP_ALONE.match(key)):
        raise ConfigError(f"{where}: it must be NAME: KEY, or a KEY, without quotes, braces, = or --- before the key")
    if key.endswith(":") or key.startswith("#"):  # a name whose key is missing is no key itself
        raise ConfigError(
            f"{where}: it must be NAME: KEY, or a KEY, which has no spaces, no : at its end and no # before"
        )
    if name is None:
        return _entry(where, path.name if alone else f"{path.name}/{number}", key, named=alone)
    return _entry(where, name, key)


def _of_list(path: Path, text: str) -> Iterator[Entry]:
    """JSON is YAML but for tabs, and has no lines to tell."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        yield from _of_yaml(path, text)
    else:
        for number, value in enumerate(values, 1):
            yield _of_object(f"{path}, entry {number}", value)


def _of_yaml(path: Path, text: str) -> Iterator[Entry]:
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if not isinstance(node, yaml.SequenceNode):
            raise ConfigError(f"{path}: it must be a list of keys")
        for item in node.value:
            where = f"{path}, line {item.start_mark.line + 1}"
            yield _of_object(where, loader.construct_object(item, deep=True))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # its words may hold what stands in the file
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{path}{place}: it is neither valid YAML nor JSON") from None
    finally:
        loader.dispose()


def _of_object(where: str, value: Any) -> Entry:
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: it must be an object with name and key")
    if set(value) - {"name", "key", *LIMITS} or not {"name", "key"} <= set(value):
        raise ConfigError(f"{where}: it needs name and key, and may have {', '.join(LIMITS)}")
    name, key = value["name"], value["key"]
    if not isinstance(name, str) or not isinstance(key, str):
        raise ConfigError(f"{where}: name and key must be texts; put what looks like a number into quotes")
    limits = {limit: value[limit] for limit in LIMITS if limit in value}
    for limit, most in limits.items():
        whole = isinstance(most, int) and not isinstance(most, bool)
        if most is not None and not (whole and 1 <= most <= _MOST):
            raise ConfigError(f"{where}: {limit} must be a whole number from 1 to {_MOST}, or null for no limit")
    return _entry(where, name, key, limits=limits)


def _entry(
    where: str, name: str, key: str, *, named: bool = True, limits: dict[str, int | None] | None = None
) -> Entry:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{where}: a name has at most 128 letters, digits and any of ._@/+- and begins with no mark")
    if not _KEY.fullmatch(key):
        raise ConfigError(f"{where}: a key has 1 to {MAX_KEY_LENGTH} visible ASCII characters")
    return Entry(name, key, named, limits or {}, where)
