"""Unions whose members are told apart by `type`, and that refuse other types by their name."""

from collections.abc import Callable
from typing import Annotated, Any, Final

from pydantic import Discriminator, PlainValidator, Tag, WithJsonSchema
from pydantic_core import PydanticCustomError

OTHER: Final = "other"


def by_type(allowed: tuple[str, ...], default: str | None = None, word: str | None = None) -> Discriminator:
    """A union's discriminator; `default`: where no type is given; `word`: the tag of strings.

    One more member, `other_kinds`, gets what has another type.
    """

    def tell(value: Any) -> str | None:
        if isinstance(value, str):
            return word
        found = value.get("type", default) if isinstance(value, dict) else None
        return (found if found in allowed else OTHER) if isinstance(found, str) else None

    shown = " or ".join(f'{{"type": "{name}", …}}' for name in allowed)
    return Discriminator(tell, custom_error_type="kind", custom_error_message=f"Input should be {shown}")


def other_kinds(what: str, why: Callable[[str], str]) -> Any:
    """The member for what has another type: refused with its name and the reason."""

    def refuse(value: Any) -> Any:
        found = value["type"]
        raise PydanticCustomError(
            "kind",
            "{what} of the type {found} are not supported: {why}",
            {"what": what, "found": found[:64], "why": why(found)},
        )

    return Annotated[Any, PlainValidator(refuse), WithJsonSchema({"not": {}}), Tag(OTHER)]
