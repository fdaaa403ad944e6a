"""Reads the manifest that `--filename` names, for every command that takes one."""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from octavo_cli.errors import WRONG_INPUT, CommandError

if TYPE_CHECKING:
    from octavo_operator.api import LLMDeployment, ManifestError

LONGEST_MANIFEST = 4 * 1024 * 1024

_FIELDS: Final = {
    "--max-model-len": "spec.server.maxModelLength",
    "--dtype": "spec.server.dtype",
    "--swap-space": "spec.server.hostMemoryForKVCache",
    "--drain-seconds": "spec.termination.drainSeconds",
    "--served-model-name": "spec.model.name",
}
_FLAG: Final = re.compile(rf"(?P<flag>{'|'.join(_FIELDS)})(?![\w-])(?: (?P<value>[0-9]+): )?")


def read_manifest(name: str) -> "LLMDeployment":
    """The LLMDeployment in the file `name` ("-": stdin), validated as the CRD validates it.

    Raises:
        CommandError: no such file, or what is wrong in it, a line for each field.
    """
    from octavo_operator.api import ManifestError, load_manifest

    text = _read(name)
    try:
        return load_manifest(text)
    except ManifestError as error:
        raise wrong_manifest(name, error) from error


def wrong_manifest(name: str, error: "ManifestError") -> CommandError:
    """The error for a manifest that is not valid, or not here: a line for each field, with its path."""
    return CommandError("\n".join(f"{name}: {finding}" for finding in error.errors), exit_code=WRONG_INPUT)


def in_fields(text: str) -> str:
    """`text` of the server with the flags that the operator makes from fields told as those fields."""

    def field(found: re.Match[str]) -> str:
        value = found["value"]
        return _FIELDS[found["flag"]] + (f": {value}: " if value is not None else "")

    return _FLAG.sub(field, text)


def _read(name: str) -> str:
    if not name:
        raise CommandError("--filename is empty: give the manifest's file, or - for stdin", exit_code=WRONG_INPUT)
    try:
        if name == "-":
            data = sys.stdin.buffer.read(LONGEST_MANIFEST + 1)
        else:
            with Path(name).open("rb") as file:
                data = file.read(LONGEST_MANIFEST + 1)
        text = data.decode()
    except OSError as error:
        raise CommandError(f"{name}: {error.strerror or error}", exit_code=WRONG_INPUT) from error
    except UnicodeDecodeError as error:
        raise CommandError(f"{name}: is not a text in UTF-8", exit_code=WRONG_INPUT) from error
    if len(data) > LONGEST_MANIFEST:
        raise CommandError(
            f"{name}: is longer than {LONGEST_MANIFEST} bytes, too long for a manifest", exit_code=WRONG_INPUT
        )
    return text
