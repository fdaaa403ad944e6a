"""What `octavo up --burst` tells in the end."""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from octavo_cli.local_burst import Account


def print_account(console: Console, account: Account, history: Sequence[int]) -> None:
    """`history`: numbers of replicas that were wanted, in turn."""
    killed = "none: no replica was ready" if account.killed is None else account.killed
    agree = "all that were asked the same agree"
    rows = [
        ("requests", str(account.requests)),
        ("failed", str(len(account.failures))),
        ("streams that went on at another replica", str(account.resumed)),
        ("answers", agree if not account.differing else f"those to {account.differing} prompts differ"),
        ("killed", killed),
        ("replicas", " → ".join(map(str, history)) + ("" if account.is_small else ", and no fewer in time")),
    ]
    width = max(len(label) for label, _ in rows)
    for label, value in rows:
        console.print(Text.assemble((f"{label:<{width}}", "dim"), f"  {value}"), soft_wrap=True, highlight=False)
