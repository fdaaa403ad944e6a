"""The command `octavo`: a group whose sub-commands are imported when they are used, and not before.

The operator's image has no torch and the laptop of a reader of `octavo --help` no patience: so the table below holds
all that the help needs. Errors become one line; exit codes are those of `octavo_cli.errors`.
"""

import difflib
import errno
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Final, NamedTuple, NoReturn

import click

from octavo_cli.errors import FAILED, INTERRUPTED, CommandError
from octavo_cli.extras import SERVER_MODULES, missing_server
from octavo_common.version import __version__
from octavo_server.errors import OctavoError


class SubCommand(NamedTuple):
    """Where a sub-command lives: `module` holds a click command of the name `attribute`."""

    module: str
    attribute: str
    help: str


COMMANDS: Final[dict[str, SubCommand]] = {
    "serve": SubCommand("octavo_cli.serve", "serve", "Serve a model through the OpenAI API."),
    "up": SubCommand("octavo_cli.up", "up", "Bring a manifest up on this machine, without a cluster."),
    "plan": SubCommand("octavo_cli.plan", "plan", "Show what a manifest becomes, and the memory it needs."),
    "crd": SubCommand("octavo_cli.crd", "crd", "Print the CustomResourceDefinition."),
    "operator": SubCommand("octavo_cli.operator", "operator", "Run the operator, in or beside a cluster."),
}


class LazyGroup(click.Group):
    """A group that knows its commands' names and one-line help without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names in the order of the table, which is the order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command, or None where there is none of this name."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command = getattr(importlib.import_module(entry.module), entry.attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{entry.module}.{entry.attribute} is not a click command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, but naming the nearest command for a typo."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            near = difflib.get_close_matches(name, COMMANDS, n=2, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(COMMANDS)}"
            raise click.UsageError(f"no command {name!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table of commands, from what is known without importing."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="octavo", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, envvar="OCTAVO_DEBUG", help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Large language models on Kubernetes, and on this machine, from one manifest."""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with one of the codes that `octavo_cli.errors` lists."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        result = cli.main(arguments, prog_name="octavo", standalone_mode=False)
        sys.stdout.flush()
        code = result if isinstance(result, int) else 0
    except BrokenPipeError:
        # The reader of a pipe has gone (`octavo plan | head`): nothing is wrong, and nothing more can be said.
        drop_output()
        code = FAILED
    except OSError as error:
        # Of a full disk or a terminal that is gone: what is still in the buffer would fail again at the end.
        told: Exception = error
        if error.filename is None and error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EIO}:
            drop_output()
            told = CommandError(f"the output cannot be written: {error.strerror}")
        code = tell(told, debug=wants_debug(arguments))
    except (Exception, KeyboardInterrupt) as error:
        code = tell(error, debug=wants_debug(arguments))
    sys.exit(code)


def drop_output() -> None:
    """From here on stdout goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def tell(error: BaseException, *, debug: bool) -> int:
    """Print what went wrong as one line on stderr and return the exit code."""
    message, code = explain(error)
    if debug:
        traceback.print_exception(error)
    # A manifest may be wrong in several places, a line each; what others say is made one line.
    lines = message.splitlines() if isinstance(error, CommandError) else [" ".join(message.split())]
    for line in filter(None, lines):
        click.echo(f"octavo: {line}", err=True)
    return code


def explain(error: BaseException) -> tuple[str, int]:
    """The one line and the exit code for an error of any kind."""
    match error:
        case CommandError():
            return str(error), error.exit_code
        case click.exceptions.NoArgsIsHelpError():
            click.echo(error.format_message())
            return "", error.exit_code
        case click.UsageError():
            where = error.ctx.command_path.removeprefix("octavo").strip() if error.ctx else ""
            return f"{where + ': ' if where else ''}{error.format_message()}", error.exit_code
        case click.ClickException():
            return error.format_message(), error.exit_code
        case click.Abort() | KeyboardInterrupt():
            return "interrupted", INTERRUPTED
        case ModuleNotFoundError() if (error.name or "").partition(".")[0] in SERVER_MODULES:
            return explain(missing_server(str(error.name)))
        case OctavoError():
            return str(error), FAILED
        case _:
            return f"unexpected {type(error).__name__}: {error} (octavo --debug … shows where)", FAILED


def wants_debug(arguments: Sequence[str]) -> bool:
    """Whether tracebacks are asked for; read here as well, because the parsing itself may have failed."""
    own = next((index for index, word in enumerate(arguments) if not word.startswith("-")), len(arguments))
    return "--debug" in arguments[:own] or os.environ.get("OCTAVO_DEBUG", "").lower() in {"1", "true", "yes", "on"}


if __name__ == "__main__":
    main()
