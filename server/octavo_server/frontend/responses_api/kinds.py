"""Unions whose members are told apart by `type`, and that refuse other types by their name."""

from collections.abc import Callable
from typing import Any, Final

from pydantic import Discriminator, GetCoreSchemaHandler, GetJsonSchemaHandler, Tag
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

OTHER: Final = "other"


def tag(kind: str) -> Tag:
    """Of the member of a union with this type. No field is called so: paths of errors leave out what is none."""
    return Tag(_tag(kind))


def _tag(kind: str) -> str:
    return f"type {kind}"


def by_type(allowed: tuple[str, ...], default: str | None = None, word: str | None = None) -> Discriminator:
    """A union's discriminator. `default`: the type of what says none. `word`: the kind of strings.

    Members have the tags of `tag`.

    Another type goes to the member of the kind OTHER, which is annotated with `OtherKinds`.
    """

    def tell(value: Any) -> str | None:
        if isinstance(value, str):
            return None if word is None else _tag(word)
        found = value.get("type", default) if isinstance(value, dict) else None
        return _tag(found if found in allowed else OTHER) if isinstance(found, str) else None

    shown = " or ".join(f'{{"type": "{name}", …}}' for name in allowed)
    return Discriminator(tell, custom_error_type="kind", custom_error_message=f"Input should be {shown}")


class OtherKinds:
    """Annotates the member of a union (Never: no value comes of it) that gets what has another type, and refuses it."""

    def __init__(self, what: str, why: Callable[[str], str]) -> None:
        """`what` they are, in the plural. `why`: the reason for each type."""
        self._what, self._why = what, why

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._refuse)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"not": {}}

    def _refuse(self, value: Any) -> Any:
        found = value["type"]
        raise PydanticCustomError(
            "kind",
            "{what} of the type {found} are not supported: {why}",
            {"what": self._what, "found": found[:64], "why": self._why(found)},
        )
