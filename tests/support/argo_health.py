"""Argo CD's judgement of an LLMDeployment: the script of docs/, run as Argo CD runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lupa import lua51

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "argo-cd" / "octavo.dev" / "LLMDeployment"
SCRIPT = (FOLDER / "health.lua").read_text()
# Argo CD opens the base and table libraries to a script, and of os what tells the time.
CLOSED = ("io", "os", "string", "math", "debug", "coroutine", "python", "require", "loadfile", "dofile")


def health(resource: dict[str, Any]) -> dict[str, str]:
    """{"status", "message"} of a resource. Lua 5.1, which gopher-lua is."""
    runtime = lua51.LuaRuntime(unpack_returned_tuples=True)
    for name in CLOSED:
        runtime.globals()[name] = None
    runtime.globals()["obj"] = table(runtime, resource)
    return dict(runtime.execute(SCRIPT))


def table(runtime: Any, value: Any) -> Any:
    """Dicts and lists as Lua's tables, to the bottom."""
    if isinstance(value, dict):
        return runtime.table_from({key: table(runtime, each) for key, each in value.items()})
    if isinstance(value, list):
        return runtime.table_from([table(runtime, each) for each in value])
    return value
