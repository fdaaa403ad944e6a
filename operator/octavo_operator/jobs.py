"""What a Job says of itself. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from octavo_operator import drift
from octavo_operator.pods import why_it_fails

Manifest = Mapping[str, Any]


def has_condition(job: Manifest, kind: str) -> bool:
    """Whether it is Complete, or Failed."""
    return any(each["type"] == kind and each["status"] == "True" for each in _conditions(job))


def is_terminating(job: Manifest) -> bool:
    """Whether it is being deleted."""
    return "deletionTimestamp" in job["metadata"]


def pods_of(job: Manifest, pods: Sequence[Manifest]) -> list[Manifest]:
    """Those of `pods` that this very Job made: one of the same name before it may have left some, with other words."""
    uid = job["metadata"]["uid"]
    return [each for each in pods if drift.controller_uid(each) == uid]


def why_it_failed(job: Manifest, pods: Sequence[Manifest]) -> str:
    """The last words of its pods, else its own."""
    told = (str(each.get("message", "")) for each in _conditions(job) if each["type"] == "Failed")
    return why_it_fails(pods) or next(told, "")


def _conditions(job: Manifest) -> Sequence[Manifest]:
    conditions: Sequence[Manifest] = (job.get("status") or {}).get("conditions") or ()
    return conditions
