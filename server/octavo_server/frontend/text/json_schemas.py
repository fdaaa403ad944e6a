"""JSON schemas as llguidance is given them. What it says that it cannot hold it refuses; the rest is done here.

With what is said here an answer is valid by its schema, but for what the schema's draft takes for an annotation.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import unquote

from octavo_server.errors import RequestError
from octavo_server.frontend.text.counted_lengths import MAX_COUNTED, MAX_IN_PATTERNS, CountedLengths
from octavo_server.frontend.text.finite_schemas import finite
from octavo_server.frontend.text.json_characters import unspellable

# Characters that may stand behind a backslash. With `u` a key could be spelt so that it is not known for the one that
# the schema names, and a string could hold half of a surrogate pair, which many readers of JSON refuse.
ESCAPES: Final[Mapping[str, Any]] = {"json_allowed_escapes": 'nrbtf\\"'}
# Where a schema holds schemas: in an object by name, in a list, or one alone.
_BY_NAME: Final = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_IN_LIST: Final = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_ALONE: Final = ("items", "additionalItems", "additionalProperties", "not", "if", "then", "else", "contains")
# What asks for nothing, and is no reason to refuse a schema.
_NOTHING: Final[Mapping[str, Any]] = {
    "uniqueItems": False,
    "dependentRequired": {},
    "dependentSchemas": {},
    "dependencies": {},
    "unevaluatedProperties": True,
    "unevaluatedItems": True,
    "propertyNames": True,
    "minContains": 0,
}
_OF_DRAFT_3: Final = ("disallow", "extends", "divisibleBy")  # which llguidance takes for words of the author's own


def served(schema: Mapping[str, Any], param: str) -> dict[str, Any]:
    """The schema without what says nothing, and is refused for its name alone; with bounds, so that answers end.

    Raises:
        RequestError: there is something in it that would be passed over; `param` is the field.
    """

    def checked(found: dict[str, Any]) -> None:
        for name, nothing in _NOTHING.items():
            if found.get(name) == nothing:
                del found[name]
        for name in _OF_DRAFT_3:
            if name in found:
                raise RequestError(f"{param}: {name} is a keyword of draft 3, which is not served", param=param)
        least, required = found.get("minProperties"), found.get("required")
        named = len(required) if isinstance(required, list) else 0
        if isinstance(least, int) and least > named + 1 and found.get("additionalProperties") is not False:
            raise RequestError(
                f"{param}: minProperties cannot be held where two or more properties are not in required: "
                "one of them could come twice",
                param=param,
            )
        if leads_elsewhere(found.get("$ref")):
            raise RequestError(
                f"{param}: $ref: {str(found['$ref'])[:100]!r} leads to where no schemas are looked for: use $defs",
                param=param,
            )
        if why := unspellable(found):
            raise RequestError(f"{param}: {why}", param=param)
        finite(found, has_multiples=bool(multiples))

    multiples: list[Any] = []
    lengths = CountedLengths()

    def looked_at(found: dict[str, Any]) -> None:
        multiples.extend([found["multipleOf"]] if "multipleOf" in found else [])
        lengths.add(found)

    mapped(schema, looked_at)
    if lengths.in_patterns > MAX_IN_PATTERNS:
        raise RequestError(
            f"{param}: its patterns have {lengths.in_patterns} characters, and {MAX_IN_PATTERNS} can be read",
            param=param,
        )
    if lengths.total > MAX_COUNTED:
        raise RequestError(
            f"{param}: its strings have {lengths.total} characters by minLength, maxLength and what patterns repeat, "
            f"and {MAX_COUNTED} can be counted: leave maxLength out of the longest, max_tokens bounds them too",
            param=param,
        )
    return mapped(schema, checked)


def leads_elsewhere(reference: Any) -> bool:
    """Whether it points past all places of schemas within a schema: what stands there is not looked at here."""
    _, _, pointer = str(reference).partition("#")
    if not pointer.startswith("/"):
        return False
    steps = [unquote(step) for step in pointer.split("/")[1:]]
    while steps:
        step = steps.pop(0)
        named = step in _BY_NAME or (step in _IN_LIST and bool(steps) and steps[0].isdecimal())
        if named and steps:
            steps.pop(0)
        elif step not in _ALONE:
            return True
    return False


def mapped(schema: Mapping[str, Any], change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """A copy in which each schema, itself too, was changed; names of properties are no keywords."""

    def below(value: Any) -> Any:
        return mapped(value, change) if isinstance(value, dict) else value

    found = dict(schema)
    for name in _BY_NAME:
        if isinstance(held := found.get(name), dict):
            found[name] = {key: below(value) for key, value in held.items()}
    for name in _IN_LIST:
        if isinstance(held := found.get(name), list):
            found[name] = [below(value) for value in held]
    for name in _ALONE:
        if isinstance(held := found.get(name), dict):
            found[name] = below(held)
    change(found)
    return found
