"""What to say of a flag that there is not: the one that was meant, if one is near. click guesses from afar."""

from difflib import get_close_matches
from typing import Final

import click

_NEAR: Final = 0.8  # a letter or two are others


def no_such_option(error: click.NoSuchOption) -> click.UsageError:
    """The error to tell instead."""
    names = [name for known in (error.ctx.command.params if error.ctx else ()) for name in known.opts]
    near = get_close_matches(error.option_name, names, n=1, cutoff=_NEAR)
    hint = f"; did you mean {near[0]}?" if near else ""
    return click.UsageError(f"there is no option {error.option_name}{hint}", error.ctx)
