"""What the fields of request bodies are made of: bounds that stop early, and what is refused by name.

pydantic collects an error for each entry that is wrong, and a body has room for a million. So lists and objects stop at
the first one, and what has more fields than are known is refused before it is looked at.
"""

import json
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import cache
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Final, cast, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidatorFunctionWrapHandler,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, PydanticKnownError, core_schema

_HIDDEN: Final = "x-not-supported"
_OTHER_FIELDS: Final = 16  # that something of another kind may have
_LONGEST_NAME: Final = 64  # of those that are looked for among the known ones


class Only:
    """Annotates a field that may be absent, null, or one of the given values, and nothing else."""

    def __init__(self, *neutral: Any, why: str = "") -> None:
        """The values that ask for nothing; `why` others are refused."""
        self._neutral, self._why = neutral, f": {why}" if why else ""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {_HIDDEN: True}

    def _check(self, value: Any) -> Any:
        if value is None or any(value == neutral and type(value) is type(neutral) for neutral in self._neutral):
            return value
        allowed = " or ".join(json.dumps(neutral) for neutral in self._neutral)
        hint = f"leave it out or give {allowed}" if allowed else "leave it out"
        raise PydanticCustomError(
            "not_supported", "this is not supported{why}; {hint}", {"why": self._why, "hint": hint}
        )


class Entries:
    """Annotates an object of at most so many entries, which stops at the first wrong one.

    pydantic checks all entries before it counts them, and has `fail_fast` for lists alone.
    """

    def __init__(self, most: int) -> None:
        """Of entries."""
        self._most = most

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        inner = handler(source)
        if inner["type"] != "dict":
            raise TypeError(f"only objects have entries, not {source}")
        described = cast(CoreSchema, {**inner, "max_length": self._most})
        return core_schema.no_info_wrap_validator_function(self._check, described)

    def _check(self, value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        if not isinstance(value, dict):
            return handler(value)
        if len(value) > self._most:
            sizes = {"field_type": "Dictionary", "max_length": self._most, "actual_length": len(value)}
            raise PydanticKnownError("too_long", sizes)
        checked: dict[Any, Any] = {}
        for key, entry in value.items():
            checked |= handler({key: entry})
        return checked


class BoundedObject:
    """Annotates an object of any JSON, as a schema is one, within bounds of depth, values and bytes."""

    def __init__(self, *, depth: int, values: int, bytes: int) -> None:
        """depth: of values within each other. values: all that are in it. bytes: of its UTF-8."""
        self._depth, self._values, self._bytes = depth, values, bytes

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        strings = core_schema.str_schema(strict=True)
        plain = core_schema.dict_schema(strings, core_schema.any_schema(), max_length=self._values)
        return core_schema.no_info_before_validator_function(self.check, plain)

    def check(self, value: Any) -> Any:
        """The value, if it keeps to the bounds. Raises PydanticCustomError."""
        level, found = [value], 0
        for _ in range(self._depth):
            below: list[Any] = []
            for each in level:
                children = each.values() if isinstance(each, dict) else each if isinstance(each, list) else ()
                found += len(children)
                if found > self._values:
                    raise _wrong_size(f"it has more than {self._values} values")
                if any(isinstance(child, str) and len(child) > self._bytes for child in children):
                    raise _wrong_size(f"one of its texts has more than {self._bytes} characters")
                below += children
            level = below
            if not level:
                break
        else:
            raise _wrong_size(f"its values stand more than {self._depth} deep in each other")
        try:
            size = len(json.dumps(value, ensure_ascii=False, allow_nan=False).encode())
        except UnicodeEncodeError as error:
            raise _wrong_size("it holds half of a surrogate pair, which is no character") from error
        except ValueError as error:
            raise _wrong_size("it holds a number that JSON does not have") from error
        if size > self._bytes:
            raise _wrong_size(f"it has {size} bytes; allowed are {self._bytes}")
        return value


def _wrong_size(message: str) -> PydanticCustomError:
    return PydanticCustomError("bounded_object", "{message}", {"message": message})


def kind(
    *, strings: str | None = None, lists: Callable[[list[Any]], str | None] | None = None
) -> Callable[[Any], str | None]:
    """Tells the members of a union apart, so that the message of a wrong one concerns the one that was meant."""

    def tell(value: Any) -> str | None:
        if isinstance(value, str):
            return strings
        return lists(value) if isinstance(value, list) and lists is not None else None

    return tell


ShortText = Annotated[str, Field(max_length=512)]


class Body(BaseModel):
    """Strict: a number is a number and not a string of digits. Closed: what is not known is refused.

    `hints`: what to tell of fields that are not known here, and often given.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)
    hints: ClassVar[Mapping[str, str]] = MappingProxyType({})

    @model_validator(mode="before")
    @classmethod
    def _all_fields_are_known(cls, value: Any) -> Any:
        if isinstance(value, dict) and not (known := _names(cls)).issuperset(value) and _is_of_kind(cls, value):
            unknown = next((name for name, given in value.items() if name not in known and given is not None), None)
            if unknown is not None:
                raise field_error(unknown, f"this field is not known{_hint(unknown, cls.hints, known)}")
            return {name: given for name, given in value.items() if name in known}  # null is as if it were left out
        return value

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The schema without the fields that are not supported."""
        described = handler.resolve_ref_schema(handler(schema))
        fields = described.get("properties", {})
        described["properties"] = {name: field for name, field in fields.items() if _HIDDEN not in field}
        return described


@cache
def _names(body: type[Body]) -> frozenset[str]:
    return frozenset(field.alias or name for name, field in body.model_fields.items())


def _is_of_kind(body: type[Body], value: dict[str, Any]) -> bool:
    """Whether it says so by its `type`. If not, that is what is wrong with it, and not the fields of its kind."""
    if "type" not in body.model_fields or "type" not in value:
        return True
    kinds = get_args(body.model_fields["type"].annotation)
    return value["type"] in kinds or len(value) > len(body.model_fields) + _OTHER_FIELDS


def _hint(name: str, hints: Mapping[str, str], known: frozenset[str]) -> str:
    if name in hints:
        return f": {hints[name]}"
    alike = get_close_matches(name[:_LONGEST_NAME], known, n=1, cutoff=0.7)
    return f"; did you mean {alike[0]}?" if alike else ""


def field_error(field: str, message: str) -> PydanticCustomError:
    """An error of a check over the whole body that concerns one field."""
    return PydanticCustomError("field", "{message}", {"field": field, "message": message})
