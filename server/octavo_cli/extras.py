"""Whether the server's part is installed, found out without importing it (torch takes seconds)."""

import importlib.util
from typing import Final

from octavo_cli.errors import WRONG_INPUT, CommandError

SERVER_MODULES: Final = (
    "fastapi",
    "jinja2",
    "msgspec",
    "numpy",
    "safetensors",
    "tokenizers",
    "torch",
    "uvicorn",
    "zmq",
)


def require_server(command: str) -> None:
    """Nothing, if the server can be imported.

    Raises:
        CommandError: a module that it needs is missing; says what to install.
    """
    missing = [name for name in SERVER_MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise missing_server(command, missing[0])


def missing_server(command: str, module: str) -> CommandError:
    """The error for a module of the server that the base install leaves out."""
    text = f"octavo {command} needs the module {module!r}, which the base install leaves out"
    return CommandError(f"{text}: pip install 'octavo[server]'", exit_code=WRONG_INPUT)
