"""The part of the configuration that says which pages may ask from a browser, besides all else of access."""

import json
from contextlib import suppress
from itertools import chain
from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from octavo_common.access.config import KEY_VARIABLES, AccessConfig

__all__ = ["KEY_VARIABLES", "OriginsConfig"]

Texts = tuple[Annotated[str, Field(min_length=1, max_length=1024)], ...]


class OriginsConfig(AccessConfig):
    """What `octavo serve` can be told of access."""

    allowed_origins: Texts = Field(
        (), description="origin(s) whose pages may ask from a browser, as a JSON list too; * is any [default: none]"
    )
    allowed_methods: Texts = Field(
        ("GET", "POST", "DELETE"), description="methods that they may use [default: all that there are]"
    )
    allowed_headers: Texts = Field(("*",), description="headers that they may send [default: *, any]")
    allow_credentials: bool = Field(False, description="their browsers may send cookies and certificates along")

    @field_validator("allowed_origins", "allowed_methods", "allowed_headers", mode="before")
    @classmethod
    def _lists_as_json(cls, value: Any) -> Any:
        """vLLM takes one JSON list."""
        return tuple(chain.from_iterable(map(_list_of, value))) if isinstance(value, list | tuple) else value

    @field_validator("allow_credentials")
    @classmethod
    def _credentials_of_some(cls, value: bool, info: ValidationInfo) -> bool:
        if value and "*" in info.data.get("allowed_origins", ()):
            raise PydanticCustomError(
                "cors", "Any page could act for its reader: name the --allowed-origins, without *"
            )
        return value


def _list_of(text: Any) -> list[Any]:
    if isinstance(text, str) and text.startswith("["):
        with suppress(ValueError):
            return list(json.loads(text))
    return [text]
