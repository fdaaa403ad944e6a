"""What makes answers by a schema end: llguidance's formats and ranges have digits without end, and models write them.

A schema becomes narrower, never wider, so that answers stay valid by the one that was given.
"""

from collections.abc import Mapping
from typing import Any, Final

_YEAR: Final = "(?:000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})"  # there was no year 0
_LEAP_YEAR: Final = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DAYS: Final = (
    "(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    "|02-(?:0[1-9]|1[0-9]|2[0-8]))"
)
_DATE: Final = f"(?:{_YEAR}-{_DAYS}|{_LEAP_YEAR}-02-29)"
_HOUR_AND_MINUTE: Final = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
# Nanoseconds are the most that readers keep; a leap second is one that many refuse.
_TIME: Final = rf"{_HOUR_AND_MINUTE}:[0-5][0-9](?:\.[0-9]{{1,9}})?(?:Z|[+-]{_HOUR_AND_MINUTE})"


def _ordered(*units: str) -> str:
    """A number of each of these, from one on without a gap, as RFC 3339's appendix A has durations."""
    options, rest = [], ""
    for unit in reversed(units):
        rest = f"[0-9]{{1,6}}{unit}(?:{rest})?" if rest else f"[0-9]{{1,6}}{unit}"
        options.append(rest)
    return f"(?:{'|'.join(options)})"


_OF_A_DAY: Final = f"T{_ordered('H', 'M', 'S')}"
# Each as a pattern: RFC 3339's, of days that there are.
FORMATS: Final[Mapping[str, str]] = {
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}T{_TIME}$",
    "duration": f"^P(?:{_ordered('Y', 'M', 'D')}(?:{_OF_A_DAY})?|{_OF_A_DAY}|[0-9]{{1,6}}W)$",
}
MOST: Final = 9 * 10**18  # llguidance's numbers have 64 bits
SMALLEST: Final = 1e-10  # and the smallest number that one may be a multiple of
_LOWER: Final = ("minimum", "exclusiveMinimum")
_UPPER: Final = ("maximum", "exclusiveMaximum")


def finite(found: dict[str, Any], *, has_multiples: bool) -> None:
    """Bound, in this schema alone, the digits of numbers that have a bound, of integers, and of times.

    Numbers without any bound stay as they are: they may have exponents, which llguidance does not bound.

    has_multiples: somewhere in the whole there is a `multipleOf`. With another its multiples overflow in llguidance.
    """
    if "enum" in found or "const" in found:
        return
    pattern = FORMATS.get(str(found.get("format")))
    if pattern is not None:
        del found["format"]
        _also(found, pattern)
    _bound_numbers(found, has_multiples)


def _also(found: dict[str, Any], pattern: str) -> None:
    if "pattern" not in found:
        found["pattern"] = pattern
    elif isinstance(more := found.get("allOf", []), list):
        found["allOf"] = [*more, {"pattern": pattern}]


def _bound_numbers(found: dict[str, Any], has_multiples: bool) -> None:
    is_integer = found.get("type") == "integer"
    if is_integer:
        _narrow(found)
    given = {name: found[name] for name in (*_LOWER, *_UPPER) if name in found}
    values = [value for value in given.values() if _is_number(value)]
    if len(values) < sum(not isinstance(value, bool) for value in given.values()) or not (
        values or is_integer or "multipleOf" in found
    ):
        return
    if all(abs(value) <= MOST for value in values):
        if not any(name in found for name in _LOWER):
            found["minimum"] = -MOST
        if not any(name in found for name in _UPPER):
            found["maximum"] = MOST
    if not is_integer and not has_multiples and _has_room(found):
        found["multipleOf"] = SMALLEST


def _narrow(found: dict[str, Any]) -> None:
    """Bounds of integers that are further away than llguidance's go, as those of 64 bits are.

    Not where all that is between them lies there: it is to be refused for the bounds that were given.
    """
    if any(_is_number(found.get(name)) and found[name] > MOST for name in _LOWER):
        return
    if any(_is_number(found.get(name)) and found[name] < -MOST for name in _UPPER):
        return
    for names, sign in ((_LOWER, -1), (_UPPER, 1)):
        for name in names:
            if _is_number(found.get(name)) and sign * found[name] > MOST:
                found[name] = sign * MOST


def _has_room(found: Mapping[str, Any]) -> bool:
    """Whether there are numbers of so few digits between the bounds."""
    lower = max((found[name] for name in _LOWER if _is_number(found.get(name))), default=-MOST)
    upper = min((found[name] for name in _UPPER if _is_number(found.get(name))), default=MOST)
    # Integers of any size are no floats.
    return bool(max(min(upper, MOST), -MOST) - min(max(lower, -MOST), MOST) > 4 * SMALLEST)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
