"""The command `octavo`: a group whose sub-commands are imported when they are used, and not before.

The operator's image has no torch and the laptop of a reader of `octavo --help` no patience: so the table below holds
all that the help needs. Errors become one line; exit codes are those of `octavo_cli.errors`.
"""

import errno
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Final, NoReturn

import click

from octavo_cli.errors import FAILED, INTERRUPTED, CommandError
from octavo_cli.extras import SERVER_MODULES, missing_server
from octavo_cli.lazy import LazyGroup, SubCommand
from octavo_cli.near import no_such_option
from octavo_common.version import __version__
from octavo_server.errors import OctavoError

COMMANDS: Final[dict[str, SubCommand]] = {
    "serve": SubCommand("octavo_cli.serve", "serve", "Serve a model through the OpenAI API."),
    "up": SubCommand("octavo_cli.up", "up", "Bring a manifest up on this machine, without a cluster."),
    "plan": SubCommand("octavo_cli.plan", "plan", "Show what a manifest becomes, and the memory it needs."),
    "pull": SubCommand("octavo_cli.pull", "pull", "Fetch a model, verified and whole or not at all."),
    "gateway": SubCommand("octavo_cli.gateway", "gateway", "Serve a fleet of replicas through one endpoint."),
    "bench": SubCommand("octavo_cli.bench", "bench", "Time a model, or a shape with random weights."),
    "simulate": SubCommand("octavo_cli.simulate", "simulate", "Replay a trace against a simulated fleet."),
    "crd": SubCommand("octavo_cli.crd", "crd", "Print the CustomResourceDefinition."),
    "operator": SubCommand("octavo_cli.operator", "operator", "Run the operator, in or beside a cluster."),
}


@click.group(cls=LazyGroup, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
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
        case click.NoSuchOption():
            return explain(no_such_option(error))
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
