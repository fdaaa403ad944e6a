"""`octavo gateway`: one endpoint for all replicas of a fleet."""

import importlib.util
import os
from typing import Any, Final

import click
from click.core import ParameterSource

from octavo_cli.errors import WRONG_INPUT, CommandError
from octavo_cli.options import options_of, validated
from octavo_common.access.config import KEY_VARIABLES
from octavo_common.errors import ConfigError
from octavo_gateway.config import GatewayConfig

MODULES: Final = ("msgspec", "uvloop")


def require_gateway() -> None:
    """Nothing, if the gateway can be imported.

    Raises:
        CommandError: a module that it needs is missing; says what to install.
    """
    missing = [name for name in MODULES if importlib.util.find_spec(name) is None]
    if missing:
        text = f"this needs the gateway's part, whose module {missing[0]!r} is missing: pip install 'octavo[gateway]'"
        raise CommandError(text, exit_code=WRONG_INPUT)


@click.command(name="gateway")
@click.pass_context
@options_of(GatewayConfig, envvars={"api_key": KEY_VARIABLES})
def gateway(context: click.Context, /, **options: Any) -> int:
    """Serve all replicas of a fleet through one OpenAI-compatible endpoint.

    Which replicas there are is read from --endpoints-file, or from the EndpointSlices of --namespace. A request goes
    where the beginning of its prompt is cached and load allows; while no replica can take it, it is held. A stream
    whose replica breaks down goes on at another one.
    """
    for variable in KEY_VARIABLES:
        if os.environ.get(variable) == "":  # not an open gateway
            raise click.UsageError(f"{variable} is set but empty: unset it, or give a key")
    if context.get_parameter_source("api_key") == ParameterSource.COMMANDLINE:
        click.echo(
            "warning: who lists this machine's processes sees the keys of --api-key; --api-key-file and "
            f"{KEY_VARIABLES[0]} keep them to themselves",
            err=True,
        )
    config = validated(GatewayConfig, options)
    if config.endpoints_file is None and not config.is_in_cluster:
        text = "where are the replicas? Give --endpoints-file, or --namespace or --all-namespaces in a cluster"
        raise click.UsageError(text)
    require_gateway()
    from octavo_gateway.main import run

    try:
        return run(config)
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
