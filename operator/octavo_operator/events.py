"""Which changes of status are worth an Event, for `kubectl describe` and whoever is on call. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from octavo_operator.status import condition


@dataclass(frozen=True, slots=True)
class Event:
    """What `kubectl describe` shows."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


def events_of(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Event]:
    """What became degraded, for another reason than before, and whether readiness changed."""
    events: list[Event] = []
    old, new = condition(before, "Degraded"), condition(after, "Degraded")
    if new["status"] == "True" and (old.get("status"), old.get("reason")) != ("True", new["reason"]):
        events.append(Event("Warning", new["reason"], new["message"]))
    was, now = condition(before, "Ready").get("status"), condition(after, "Ready")
    if now["status"] == "True" and was != "True":
        events.append(Event("Normal", "Ready", now["message"]))
    elif was == "True" and now["status"] != "True":
        events.append(Event("Normal", "NotReady", now["message"]))
    return events
