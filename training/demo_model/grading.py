"""The grading functions: small and strict. Each takes the answer's text (with its tool calls as text) and what is expected."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from .jokes import JOKES
from .smalltalk import SKILLS_SENTENCE


def _joke(answer: str, expected: Any) -> bool:
    """One of the jokes, whole and word for word, on the subject if one was asked for."""
    return answer in JOKES and (expected is None or expected in JOKES[answer])


def _jokes(answer: str, expected: Any) -> bool:
    """A numbered list of that many different jokes."""
    lines = answer.split("\n")
    told = {line.removeprefix(f"{i}. ") for i, line in enumerate(lines, 1)}
    return len(lines) == len(told) == expected and told <= set(JOKES)


def _joke_instead(answer: str, expected: Any) -> bool:
    """Says that there is none on this subject, and tells another."""
    return answer.startswith(expected) and answer.removeprefix(expected) in JOKES


def _json(answer: str, expected: Any) -> bool:
    """Parses, has exactly the schema's properties with values of their types, and the right values."""
    try:
        value = json.loads(answer)
    except ValueError:
        return False
    return fits(value, expected["schema"]) and value == expected["value"]


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """Whether `value` is valid under the part of JSON Schema that our schemas use."""
    kinds: dict[str, Callable[[Any], bool]] = {
        "string": lambda v: isinstance(v, str),
        "integer": lambda v: isinstance(v, int) and not isinstance(v, bool),
        "number": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
        "boolean": lambda v: isinstance(v, bool),
        "array": lambda v: isinstance(v, list) and all(fits(item, schema["items"]) for item in v),
        "object": lambda v: (
            isinstance(v, dict)
            and set(v) == set(schema["properties"])
            and all(fits(v[k], s) for k, s in schema["properties"].items())
        ),
    }
    return kinds[schema["type"]](value) and value in schema.get("enum", [value])


def _tool_call(answer: str, expected: Any) -> bool:
    """Exactly one call, of the right tool, with exactly the right arguments."""
    found = re.fullmatch(r"\s*<tool_call>\s*(\{.*\})\s*</tool_call>\s*", answer, re.DOTALL)
    try:
        return found is not None and json.loads(found[1]) == expected
    except ValueError:
        return False


def _last_number(answer: str, expected: Any) -> bool:
    numbers = re.findall(r"-?\d+", answer)
    return bool(numbers) and int(numbers[-1]) == expected


def _recall(answer: str, expected: Any) -> bool:
    """The value, as a whole word."""
    return re.search(rf"(?<!\w){re.escape(str(expected))}(?!\w)", answer) is not None


def _story(answer: str, expected: Any) -> bool:
    """Begins and ends as a story does, and is about the right animal."""
    return (
        answer.startswith("Once upon a time")
        and answer.endswith(".")
        and str(expected) in answer
        and 200 < len(answer) < 700
    )


GRADERS: dict[str, Callable[[str, Any], bool]] = {
    "any": lambda answer, expected: bool(answer),
    "exact": lambda answer, expected: answer == expected,
    "one_of": lambda answer, expected: answer in expected,
    "contains_all": lambda answer, expected: all(part.lower() in answer.lower() for part in expected),
    "refusal": lambda answer, expected: "small demo model" in answer and SKILLS_SENTENCE in answer,
    "count_words": lambda answer, expected: answer.endswith(f": {expected} words."),
    "joke": _joke,
    "jokes": _jokes,
    "joke_instead": _joke_instead,
    "json": _json,
    "tool_call": _tool_call,
    "last_number": _last_number,
    "recall": _recall,
    "story": _story,
}


def right(grader: str, answer: str, expected: Any) -> bool:
    """Whether `answer` is right."""
    return GRADERS[grader](answer.strip(), expected)
