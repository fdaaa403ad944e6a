"""docs/gateway.md has the flags as the command describes them, docs/metrics.md the metrics as they are told."""

import re
from pathlib import Path
from typing import Any, Final

import click

from gateways import FakeReplica, gateway_over
from octavo_cli.gateway import gateway as command
from octavo_common.prefixes import BLOCK_BYTES
from octavo_common.routing import RoutingPolicy

DOCS: Final = Path(__file__).resolve().parents[2] / "docs"
OPTIONS: Final = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
KINDS: Final = {"integer": "number", "float": "number", "path": "path", "text": "text", "boolean": ""}
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "stream": True}


def row(option: click.Option) -> str:
    """What the page has of a flag."""
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    choices = getattr(option.type, "choices", ())
    kind = ", ".join(map(str, choices)) if choices else KINDS[option.type.name]
    several = " (several times)" if option.multiple else ""
    environment = "".join(f"; `{name}`" for name in option.envvar or ())
    return f"| {names}{environment} | {kind}{several} | {' '.join((option.help or '').split())} |"


def test_the_page_of_the_gateway_has_each_flag_as_the_command_describes_it() -> None:
    rows = re.findall(r"^\| `-.*$", (DOCS / "gateway.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(rows) == sorted(map(row, OPTIONS))


def test_the_numbers_of_routing_on_the_page_are_those_of_the_code() -> None:
    page, policy = (DOCS / "gateway.md").read_text(encoding="utf-8"), RoutingPolicy()
    for words in (
        f"{policy.request_tokens} for each request",
        f"up to {policy.full_cache_tokens:,}",
        f"from {policy.kv_high * 100:.0f} % full",
        f"blocks of {BLOCK_BYTES} bytes",
        f"than {policy.overload} times the mean load, and {policy.free_load}",
        f"up to {policy.most_home_tokens:,} tokens",
    ):
        assert words in page, words


async def test_the_page_on_metrics_and_the_gateway_agree() -> None:
    page = (DOCS / "metrics.md").read_text(encoding="utf-8").partition("## The gateway's")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in page.splitlines() if line.startswith("| `")]
    described = {
        name.strip("`"): (kind.split(",")[0], set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows
    }
    async with gateway_over(FakeReplica("a", dies_after=2), FakeReplica("b")) as gateway:
        await gateway.read(CHAT)
        metrics = gateway.gateway.metrics
        for counter in (metrics.late_ttft, metrics.late_tpot, metrics.retried, metrics.resumed, metrics.lost):
            counter.add("m")
        metrics.refused.add("m", "queue_full")
        metrics.held.labels("m").observe(1)
        found = {}
        for family in metrics.registry.collect():
            labels = {label for sample in family.samples for label in sample.labels} - {"le"}
            found[family.name + "_total" * (family.type == "counter")] = (family.type, labels)
    assert found == described
