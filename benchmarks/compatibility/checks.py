"""What the scripts here share. They run in the environment of the program they try: the standard library alone."""

import argparse
import asyncio
import inspect
import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

QUESTION = "What is a page?"
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}},
    "required": ["city"],
    "additionalProperties": False,
}
CITY = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "large": {"type": "boolean"}},
    "required": ["name", "large"],
    "additionalProperties": False,
}


def arguments() -> argparse.Namespace:
    """--url of the server, without /v1, --model and --key; the model's directory where a tokenizer is needed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--key", default="none")
    parser.add_argument("--directory", help="of the model's tokenizer")
    return parser.parse_args()


class Checks:
    """The things that a program is asked to do, and what came of them: a line of JSON each."""

    def __init__(self, package: str) -> None:
        self._package = package
        self._failed = False

    def __call__(self, what: str, function: Callable[[], Any]) -> None:
        """One thing. It has to return something; coroutines are run."""
        try:
            found = function()
            if inspect.isawaitable(found):
                found = asyncio.run(_awaited(found))
            if not found:
                raise AssertionError(f"nothing came of it: {found!r}")
            self._tell(what, "works", str(found))
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            self._failed = True
            self._tell(what, "fails", f"{type(error).__name__}: {error}")

    def refused(self, what: str, function: Callable[[], Any], kind: type[BaseException], status: int) -> None:
        """Something that has to end with the program's own exception for a status."""

        def ask() -> str:
            try:
                function()
            except kind as error:
                if getattr(error, "status_code", status) != status:
                    raise
                return f"{type(error).__name__}: {error}"
            raise AssertionError("it was not refused")

        self(what, ask)

    def end(self) -> None:
        """With the exit status."""
        sys.exit(self._failed)

    def _tell(self, what: str, outcome: str, detail: str) -> None:
        line = {"program": self._package, "version": version(self._package), "what": what, "outcome": outcome}
        print(json.dumps(line | {"detail": " ".join(detail.split())[:300]}), flush=True)


async def _awaited(found: Any) -> Any:
    return await found


def need(condition: Any, found: Any = None) -> Any:
    """What was found, if the condition holds."""
    if not condition:
        raise AssertionError(f"unexpected: {found!r}")
    return found if found is not None else condition


def a_city(text: str | dict[str, Any]) -> Any:
    """An object of the schema CITY."""
    found = json.loads(text) if isinstance(text, str) else text
    return need(set(found) == {"name", "large"} and isinstance(found["large"], bool), found)
