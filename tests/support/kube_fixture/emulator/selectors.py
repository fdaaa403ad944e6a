"""Label and field selectors."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from kube_fixture.emulator.errors import bad_request
from kube_fixture.emulator.resources import Object

Matcher = Callable[[Object], bool]
Test = Callable[[Mapping[str, str]], bool]

SET = re.compile(r"([^\s!=,()]+)\s+(in|notin)\s+\(([^)]*)\)")
EQUALITY = re.compile(r"([^\s!=,()]+)\s*(==|=|!=)\s*([^\s!=,()]*)")
EXISTS = re.compile(r"(!?)\s*([^\s!=,()]+)")
COMMA_OUTSIDE_PARENTHESES = re.compile(r",(?![^(]*\))")


def matcher(labels: str, fields: str) -> Matcher:
    """Raises ApiError 400 for a selector that cannot be parsed."""
    tests = [_test(term.strip()) for term in COMMA_OUTSIDE_PARENTHESES.split(labels) if term.strip()]
    wanted = [_field(term) for term in fields.split(",") if term]

    def matches(held: Object) -> bool:
        found = held["metadata"].get("labels") or {}
        return all(test(found) for test in tests) and all(field(held) for field in wanted)

    return matches


def _test(term: str) -> Test:
    if among := SET.fullmatch(term):
        name, values, inside = among[1], {value.strip() for value in among[3].split(",")}, among[2] == "in"
        return lambda labels: (labels.get(name) in values) == inside
    if equal := EQUALITY.fullmatch(term):
        name, value, same = equal[1], equal[3], equal[2] != "!="
        return lambda labels: (labels.get(name) == value) == same
    if exists := EXISTS.fullmatch(term):
        name, present = exists[2], not exists[1]
        return lambda labels: (name in labels) == present
    raise bad_request(f"unable to parse requirement: {term!r}")


def _field(term: str) -> Matcher:
    equal = EQUALITY.fullmatch(term)
    if not equal:
        raise bad_request(f"invalid field selector: {term!r}")
    path, value, same = equal[1].split("."), equal[3], equal[2] != "!="

    def matches(held: Object) -> bool:
        found: Any = held
        for name in path:
            found = found.get(name) if isinstance(found, dict) else None
        return (str(found if found is not None else "") == value) == same

    return matches
