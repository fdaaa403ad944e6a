"""Typed reading of a model's JSON files, with errors that name field, value and what is allowed."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class ModelConfigError(ValueError):
    """A model's description is broken or asks for what is not supported. The message is one line, for people."""


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in the file.

    Raises:
        ModelConfigError: no such file, not readable, no JSON, or not an object.
    """
    content = _read_json(path)
    if not isinstance(content, dict):
        raise ModelConfigError(f"{path} must hold a JSON object, it holds a {type(content).__name__}")
    return content


def read_json_list(path: Path) -> list[Any]:
    """The JSON list in the file.

    Raises:
        ModelConfigError: no such file, not readable, no JSON, or not a list.
    """
    content = _read_json(path)
    if not isinstance(content, list):
        raise ModelConfigError(f"{path} must hold a JSON list, it holds a {type(content).__name__}")
    return content


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelConfigError(f"{path.name} is missing in {path.parent}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelConfigError(f"{path} cannot be read as JSON: {error}") from error


class FieldReader:
    """Reads fields of one JSON object. `prefix` is the path of that object, for messages.

    A default stands for an absent field and for null alike.
    """

    def __init__(self, fields: Mapping[str, Any], prefix: str = "") -> None:
        self._fields = fields
        self._prefix = prefix

    def absent(self, name: str) -> bool:
        """Whether the field is not there at all; null is there."""
        return name not in self._fields

    def given(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self._fields.get(name) is not None

    def count(self, name: str, default: int | None = None) -> int:
        """A positive integer."""
        value = self.optional_count(name)
        if value is not None:
            return value
        if default is None:
            raise self._error(name, "a positive integer")
        return default

    def optional_count(self, name: str) -> int | None:
        """A positive integer, or None where there is none."""
        value = self._fields.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self._error(name, "a positive integer")
        return value

    def counts(self, name: str) -> tuple[int, ...] | None:
        """A list of positive integers, in rising order and without repetitions, or None where there is none."""
        value = self._fields.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or any(type(entry) is not int or entry < 1 for entry in value):
            raise self._error(name, "a list of positive integers")
        return tuple(sorted(set(value)))

    def number(self, name: str, default: float | None = None, at_least: float | None = None) -> float:
        """A finite number."""
        value = self.optional_number(name, at_least)
        if value is not None:
            return value
        if default is None:
            raise self._error(name, "a number")
        return default

    def optional_number(self, name: str, at_least: float | None = None) -> float | None:
        """A finite number, or None where there is none."""
        value = self._fields.get(name)
        if value is None:
            return None
        allowed = "a number" if at_least is None else f"a number of {at_least:g} or more"
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self._error(name, allowed)
        if at_least is not None and value < at_least:
            raise self._error(name, allowed)
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        """A boolean."""
        value = self._fields.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._error(name, "true or false")
        return value

    def choice(self, name: str, allowed: Sequence[str], default: str) -> str:
        """One of some strings."""
        value = self._fields.get(name)
        if value is None:
            return default
        if not isinstance(value, str) or value not in allowed:
            raise self._error(name, " or ".join(allowed))
        return value

    def strings(self, name: str, allowed: Sequence[str]) -> list[str] | None:
        """A list of some strings, or None where there is none."""
        value = self._fields.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or any(entry not in allowed for entry in value):
            raise self._error(name, "a list of " + " and ".join(allowed))
        return value

    def token_id(self, name: str) -> int | None:
        """A token's number, or None where there is none."""
        ids = self.token_ids(name)
        if len(ids) > 1:
            raise self._error(name, "one token id")
        return ids[0] if ids else None

    def token_ids(self, name: str) -> tuple[int, ...]:
        """The numbers of tokens: given as one, as a list of some, or as null for none. Without repetitions."""
        value = self._fields.get(name)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if any(isinstance(entry, bool) or not isinstance(entry, int) or entry < 0 for entry in ids):
            raise self._error(name, "a token id, a list of them, or null")
        return tuple(dict.fromkeys(ids))

    def _error(self, name: str, allowed: str) -> ModelConfigError:
        value = self._fields.get(name)
        found = "missing" if name not in self._fields else repr(value)[:200]
        return ModelConfigError(f"{self._prefix}{name} is {found}; it must be {allowed}")
