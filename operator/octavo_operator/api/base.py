"""The base of every model here, and the rules and bounded types that the fields are made of.

What a type refuses, the CRD's schema refuses too: both come from the same annotation. Patterns are written in the
subset that RE2 (API server, CEL), Rust (pydantic) and Python read alike; in the first two `$` is the
end of the text.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, PydanticCustomError, core_schema


@dataclass(frozen=True, slots=True)
class Rule:
    """A condition over several fields, as the API server (CEL) and as this process (Python) check it.

    `cel` sees the object as `self`; `holds` gets the model that stands for it, defaults filled in. `field` is the field
    of that object which the message is about, None for the object itself. A rule about a change, whose `cel` names
    `oldSelf`, holds for every object by itself.
    """

    cel: str
    message: str
    holds: Callable[[Any], bool]
    field: str | None = None


class ApiModel(BaseModel):
    """Field names in camelCase, unknown fields refused, types taken strictly, `rules` checked last."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, alias_generator=to_camel)

    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="before")
    @classmethod
    def _a_null_is_a_field_left_out(cls, value: Any) -> Any:
        """The API server drops a null where the schema does not allow one, and then fills in the default."""
        if not isinstance(value, dict):
            return value
        known = {info.alias for info in cls.model_fields.values()}
        return {key: item for key, item in value.items() if item is not None or key not in known}

    @model_validator(mode="after")
    def _rules_hold(self) -> Self:
        for rule in self.rules:
            if not rule.holds(self):
                raise PydanticCustomError("rule", "{text}", {"text": rule.message, "field": rule.field})
        return self


class PreservedModel(ApiModel):
    """A core type of which only the fields named here are checked; the rest is left to the API server to judge."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})


def matches(pattern: str, text: str) -> bool:
    """What CEL's `text.matches(pattern)` says; Python's own `$` would allow a line break at the end."""
    return re.search(pattern.replace("$", r"\Z"), text) is not None


@dataclass(frozen=True, slots=True)
class ListType:
    """How server-side apply merges a list: "map" by `keys` or "set" of scalars, without twins, or "atomic", whole."""

    kind: Literal["map", "set", "atomic"]
    keys: tuple[str, ...] = ()

    def _refuse_twins(self, items: list[Any]) -> list[Any]:
        seen: list[Any] = []
        for item in items:
            identity = [_by_alias(item, key) for key in self.keys] if self.keys else [item]
            if identity in seen:
                given = ", ".join(map(str, identity))
                raise PydanticCustomError(
                    "duplicate",
                    "{what} {given} is there twice",
                    {"what": "/".join(self.keys) or "value", "given": given},
                )
            seen.append(identity)
        return items

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        inner = handler(source)
        return (
            inner if self.kind == "atomic" else core_schema.no_info_after_validator_function(self._refuse_twins, inner)
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        result = handler(schema) | {"x-kubernetes-list-type": self.kind}
        return result | ({"x-kubernetes-list-map-keys": list(self.keys)} if self.keys else {})


def _by_alias(item: BaseModel, alias: str) -> Any:
    return next(getattr(item, name) for name, info in type(item).model_fields.items() if info.alias == alias)


@dataclass(frozen=True, slots=True)
class Quantity:
    """A Kubernetes quantity above zero: a whole number, or a string that matches `pattern`, like the `examples`."""

    pattern: str
    examples: str

    def _check(self, value: Any) -> int | str:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise PydanticCustomError("quantity", "must be a quantity such as {examples}", {"examples": self.examples})
        if isinstance(value, int) and not 1 <= value <= 2**53:
            raise PydanticCustomError("quantity", "must be between 1 and 2^53")
        if isinstance(value, str) and not matches(self.pattern, value):
            raise PydanticCustomError("quantity", "must be a quantity such as {examples}", {"examples": self.examples})
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self._check, serialization=core_schema.plain_serializer_function_ser_schema(lambda value: value)
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {
            "x-kubernetes-int-or-string": True,
            "pattern": self.pattern,
            "minimum": 1,
            "maximum": 2**53,
            "maxLength": 32,
        }
