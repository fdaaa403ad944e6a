"""What the autoscaler has learned, as `status.autoscaling` keeps it over restarts of the operator. Pure."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from octavo_operator.autoscale.state import State

SECONDS_BETWEEN: Final = 300.0
"""At least, between two times that learned figures are written."""
WORTH_TELLING: Final = 0.1
"""By how much a figure has to be off what is written."""
LONGEST: Final = 4096
"""Characters of the text; more is not kept."""
_DIGITS: Final = 4

Told = Mapping[str, Any]


def state_of(told: Told | None) -> State:
    """The state after a restart, from `status.autoscaling`; what cannot be read counts as not known."""
    try:
        kept = json.loads((told or {}).get("learned") or "{}")
    except ValueError:
        kept = {}
    return State.from_json(kept if isinstance(kept, dict) else {})


def figures(state: State) -> dict[str, Any]:
    """The fields of `status.autoscaling` that tell what was learned: for people two of them, for us all, as text.

    Empty while nothing is known. As text, because the API has no floats.
    """
    kept = _rounded(state.to_json())
    text = json.dumps(kept, separators=(",", ":"), sort_keys=True)
    if len(text) > LONGEST or not any(number for _, number in _numbers(kept)):
        return {}
    told: dict[str, Any] = {"learned": text}
    if state.learned.replica_tokens >= 1:
        told["replicaTokens"] = int(state.learned.replica_tokens)
    if state.learned.startup_seconds >= 1:
        told["startupSeconds"] = round(state.learned.startup_seconds)
    return told


def is_news(before: Told, after: Told) -> bool:
    """Whether a learned figure is off what `before` says by more than a tenth, or was not known then."""
    if "learned" not in after:
        return False
    old, new = dict(_numbers(_loaded(before))), dict(_numbers(_loaded(after)))
    return any(
        abs(number - old.get(path, 0.0)) > WORTH_TELLING * abs(old.get(path, 0.0)) for path, number in new.items()
    )


def _loaded(told: Told) -> Any:
    try:
        return json.loads(told.get("learned") or "{}")
    except ValueError:
        return {}


def _numbers(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _numbers(each, f"{path}.{key}")
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from _numbers(each, f"{path}[{index}]")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield path, float(value)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, (list, tuple)) else value
