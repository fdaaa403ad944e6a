"""Whether the server's part is installed, found out without importing it (torch takes seconds)."""

import importlib.util
from typing import Final

from octavo_cli.errors import WRONG_INPUT, CommandError

SERVER_MODULES: Final = (
    "fastapi",
    "httptools",
    "jinja2",
    "msgspec",
    "numpy",
    "safetensors",
    "tokenizers",
    "torch",
    "uvicorn",
    "uvloop",
    "zmq",
)


def require_server() -> None:
    """Nothing, if the server can be imported.

    Raises:
        CommandError: a module that it needs is missing; says what to install.
    """
    missing = [name for name in SERVER_MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise missing_server(missing[0])


def missing_server(module: str) -> CommandError:
    """The error for a module of the server that the base install leaves out."""
    text = f"this needs the server's part, whose module {module!r} is missing: pip install 'octavo[server]'"
    return CommandError(text, exit_code=WRONG_INPUT)
