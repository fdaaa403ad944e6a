"""The status of a deployment as a person reads it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.text import Text

from octavo_cli.replica_metrics import KVCacheUse

if TYPE_CHECKING:
    from octavo_operator.local.replica import ReplicaState

# How a condition is when all is well; another status is shown in the colour of trouble.
WELL: Final = {"Degraded": "False", "Progressing": "False", "ScalingActive": "False"}
COLUMNS: Final = ("CONDITION", "STATUS", "REASON", "MESSAGE")


def print_status(
    console: Console,
    name: str,
    status: Mapping[str, Any],
    replicas: "Sequence[ReplicaState]",
    kv_cache: Sequence[tuple[str, KVCacheUse | None]],
    peak: float,
) -> None:
    """Replicas, conditions, URL and KV-cache use. `kv_cache` holds the use of each replica, by name; `peak` is the
    greatest share of one during the answer, 0 to 1.
    """
    ready = f"{status['readyReplicas']}/{status['desiredReplicas']}"
    _print(console, Text.assemble((f"LLMDeployment {name}", "bold"), f"  replicas ready {ready}"))
    facts = [("model", str(status.get("model", ""))), ("url", status.get("url", "none: no replica takes requests"))]
    facts += [(each.name, f"{each.phase}, restarts {each.restarts}, {each.url or 'no URL'}") for each in replicas]
    several = len(kv_cache) > 1
    uses = [(replica, describe_use(use)) for replica, use in kv_cache]
    facts += [("KV cache", f"{replica}: {use}" if several else use) for replica, use in uses]
    facts += [("", f"{peak:.2%} of one at the most during the answer")]
    width = max(len(label) for label, _ in facts)
    for label, value in facts:
        _print(console, Text.assemble((f"  {label:<{width}}", "dim"), f"  {value}"))
    _print_conditions(console, status["conditions"])


def describe_use(now: KVCacheUse | None) -> str:
    """A KV cache's use in words."""
    if now is None:
        return "not told by the replica"
    of = f" of {now.tokens_total:,} tokens" if now.tokens_total is not None else ""
    return f"{now.share:.2%}{of} in use"


def _print_conditions(console: Console, conditions: Sequence[Mapping[str, str]]) -> None:
    rows = [COLUMNS, *((each["type"], each["status"], each["reason"], each["message"]) for each in conditions)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for index, row in enumerate(rows):
        cells = [f"{cell:<{width}}" for cell, width in zip(row[:3], widths, strict=True)]
        style = "dim" if index == 0 else _style(row[0], row[1])
        _print(console, Text.assemble(f"  {cells[0]}  ", (cells[1], style), f"  {cells[2]}  {row[3]}".rstrip()))


def _style(kind: str, status: str) -> str:
    return "green" if status == WELL.get(kind, "True") else "yellow" if kind != "Degraded" else "red"


def _print(console: Console, line: Text) -> None:
    """A terminal breaks what is too long; in a pipe a line stays one."""
    console.print(line, soft_wrap=True, highlight=False)
