"""What pods say about themselves, in their own words and those of scheduler and kubelet. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

Manifest = Mapping[str, Any]

_WAITING_IN_VAIN: Final = frozenset(
    {
        *("CrashLoopBackOff", "ImagePullBackOff", "ErrImagePull", "ErrImageNeverPull", "InvalidImageName"),
        *("CreateContainerConfigError", "CreateContainerError", "RunContainerError", "StartError"),
    }
)


@dataclass(frozen=True, slots=True)
class Unscheduled:
    """Pods without a node: `count` that the scheduler refused with `messages`, `undecided` that it has yet to see."""

    count: int
    undecided: int
    reason: str
    messages: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Trouble:
    """What keeps pods from running; `reason` is the kubelet's."""

    reason: str
    message: str


def living(pods: Sequence[Manifest]) -> list[Manifest]:
    """The pods that are not ending: what those say is about the past."""
    return [pod for pod in pods if not pod["metadata"].get("deletionTimestamp")]


def unscheduled(pods: Sequence[Manifest]) -> Unscheduled:
    """Which pods have no node, and what the scheduler says about them."""
    refused: list[Manifest] = []
    undecided = 0
    for pod in pods:
        verdict = next((each for each in _conditions(pod) if each["type"] == "PodScheduled"), None)
        if verdict is not None and verdict["status"] == "False":
            refused.append(verdict)
        elif not pod["spec"].get("nodeName") and (verdict is None or verdict["status"] != "True"):
            undecided += 1
    messages = dict.fromkeys(each.get("message") or each.get("reason", "no reason given") for each in refused)
    reason = str(refused[0].get("reason") or "Unschedulable") if refused else ""
    return Unscheduled(len(refused), undecided, reason, tuple(messages))


def describe_trouble(pods: Sequence[Manifest]) -> Trouble | None:
    """The first container that cannot run, and how many pods have one like it."""
    found = [(pod, each) for pod in pods for each in _containers(pod) if _reason(each) in _WAITING_IN_VAIN]
    if not found:
        return None
    pod, container = found[0]
    reason = _reason(container)
    others = len({each["metadata"]["name"] for each, _ in found}) - 1
    more = f" (and {others} more {'pod' if others == 1 else 'pods'})" if others else ""
    return Trouble(reason, f"pod {pod['metadata']['name']}{more}: {reason}: {_explanation(container)}")


def why_it_fails(pods: Sequence[Manifest]) -> str:
    """The last words of the pod that failed last, or why a container cannot start; empty where nothing is wrong."""
    trouble = describe_trouble(living(pods))
    if trouble is not None:
        return trouble.message
    ended = [each.get("state", {}).get("terminated") for pod in pods for each in _containers(pod)]
    failed = [each for each in ended if each is not None and each.get("exitCode", 0) != 0]
    if not failed:
        return ""
    last = max(failed, key=lambda each: str(each.get("finishedAt", "")))
    lines = [line.strip() for line in str(last.get("message", "")).splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {last.get('exitCode')} ({last.get('reason', 'no reason given')})"


def _explanation(container: Manifest) -> str:
    """What the container said when it ended, else what the kubelet says."""
    ended = container.get("lastState", {}).get("terminated")
    waiting = str(container["state"]["waiting"].get("message", ""))
    if ended is None:
        return waiting
    cause = f"it ended with exit code {ended.get('exitCode')}"
    cause += f" ({ended['reason']})" if ended.get("reason") not in (None, "", "Error") else ""
    last_words = [line.strip() for line in str(ended.get("message", "")).splitlines() if line.strip()]
    return f"{cause}: {last_words[-1]}" if last_words else f"{cause}; {waiting}"


def _reason(container: Manifest) -> str:
    return str(container.get("state", {}).get("waiting", {}).get("reason", ""))


def _containers(pod: Manifest) -> Iterator[Manifest]:
    status = pod.get("status") or {}
    yield from status.get("initContainerStatuses") or ()
    yield from status.get("containerStatuses") or ()


def _conditions(pod: Manifest) -> Sequence[Manifest]:
    conditions: Sequence[Manifest] = (pod.get("status") or {}).get("conditions") or ()
    return conditions
