"""The status of a deployment as a person reads it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from octavo_cli.replica_metrics import KVCacheUse

if TYPE_CHECKING:
    from octavo_operator.local.replica import ReplicaState

PIPE_WIDTH = 200
COLOURS = {"True": "green", "False": "yellow", "Unknown": "dim"}
BAD_WHEN_TRUE = {"Degraded"}
GOOD_WHEN_FALSE = {"Degraded", "Progressing"}


def print_status(
    console: Console,
    name: str,
    status: Mapping[str, Any],
    replicas: "Sequence[ReplicaState]",
    kv_cache: Sequence[tuple[str, str]],
) -> None:
    """Replicas, conditions, URL and KV-cache use. `kv_cache` holds a line for each replica: its name and its use."""
    ready = f"{status['readyReplicas']}/{status['desiredReplicas']}"
    _print(console, Text.assemble((f"LLMDeployment {name}", "bold"), f"  replicas ready {ready}"))
    facts = Table.grid(padding=(0, 2))
    facts.add_row("  model", str(status.get("model", "")))
    facts.add_row("  url", str(status.get("url", "none: no replica takes requests")))
    for replica in replicas:
        facts.add_row(f"  {replica.name}", f"{replica.phase}, {replica.restarts} restarts, {replica.url or 'no URL'}")
    for replica_name, use in kv_cache:
        facts.add_row("  KV cache", use if len(kv_cache) == 1 else f"{replica_name}: {use}")
    _print(console, facts)
    _print(console, _conditions(status["conditions"]))


def describe_use(now: KVCacheUse | None, peak: float | None) -> str:
    """A KV cache's use in words; `peak` is the greatest share that was seen during an answer, 0 to 1."""
    if now is None:
        return "not told by the replica"
    of = f" of {now.tokens_total:,} tokens" if now.tokens_total is not None else ""
    during = f", at most {peak:.2%} seen during the answer" if peak is not None else ""
    return f"{now.share:.2%}{of} in use{during}"


def _conditions(conditions: Sequence[Mapping[str, str]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("  CONDITION", "STATUS", "REASON", "MESSAGE"):
        table.add_column(column)
    for each in conditions:
        style = "" if each["status"] == "False" and each["type"] in GOOD_WHEN_FALSE else COLOURS[each["status"]]
        style = "red" if each["status"] == "True" and each["type"] in BAD_WHEN_TRUE else style
        table.add_row(f"  {each['type']}", Text(each["status"], style), each["reason"], Text(each["message"]))
    return table


def _print(console: Console, content: Text | Table) -> None:
    """Wrapped to a terminal's width; in a pipe nobody wants lines broken at 80 columns."""
    console.print(content, width=None if console.is_terminal else PIPE_WIDTH, highlight=False)
