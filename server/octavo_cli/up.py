"""`octavo up`: a manifest brought up on this machine as processes, the operator's own code deciding."""

import asyncio
import dataclasses
import os
from typing import TYPE_CHECKING

import click

from octavo_cli.errors import FAILED, WRONG_INPUT, CommandError
from octavo_cli.extras import require_server
from octavo_cli.manifest_file import in_fields, read_manifest, wrong_manifest

if TYPE_CHECKING:
    from octavo_cli.local_run import LocalRun


@click.command()
@click.option("-f", "--filename", required=True, metavar="FILE", help="Manifest of an LLMDeployment; - for stdin.")
@click.option("--once", metavar="PROMPT", help="Send one chat, print the answer and the status, stop everything.")
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    help="Port of the gateway; another is taken if it is not free.  [default: the Service's port]",
)
@click.option(
    "--burst",
    type=click.IntRange(1, 1000),
    metavar="STREAMS",
    help="Rehearse load: so many chats at once, a replica killed among them, until the fleet is small again.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead: once ready, or after the chat.")
@click.option("--logs", is_flag=True, help="Show the replicas' output on stderr.")
def up(filename: str, once: str | None, port: int | None, burst: int | None, as_json: bool, logs: bool) -> int:
    """Bring an LLMDeployment up on this machine, without a cluster.

    A model from a hub, S3, a web server or a registry is downloaded first, once, into ~/.cache/octavo (OCTAVO_CACHE).
    Replicas run as processes behind a gateway, all on 127.0.0.1; with spec.autoscaling their number follows the load,
    as in a cluster. What dies is started again. Progress is on stderr; the answer, the status and the URL are on
    stdout. Ctrl-C lets running requests end and stops everything; a second Ctrl-C does not wait for them.
    """
    from octavo_cli.local_door import door_of
    from octavo_cli.local_run import LocalRun, RunOptions
    from octavo_cli.memory_plan import server_config
    from octavo_cli.pulled_models import pull_for, source_of
    from octavo_operator.api import ManifestError
    from octavo_operator.local.gpus import gpu_ids
    from octavo_operator.local.plan import plan_locally

    if once is not None and not once.strip():
        raise CommandError("up: --once needs a prompt that is not empty", exit_code=WRONG_INPUT)
    if burst is not None and (once is not None or as_json):
        raise CommandError("up: --burst goes with neither --once nor --json", exit_code=WRONG_INPUT)
    deployment = read_manifest(filename)
    config = server_config(filename, deployment, local=True)  # refused here rather than by a process that dies of it
    require_server()
    try:
        plan = plan_locally(deployment, os.environ, gpu_ids())
    except ManifestError as error:
        raise wrong_manifest(filename, error) from error
    source = source_of(deployment.spec.model.source)
    if source is not None:
        plan = dataclasses.replace(plan, model=pull_for(source))
    service_port = deployment.spec.networking.service.port
    door = door_of(config, plan, service_port if port is None else port)
    return asyncio.run(_run(LocalRun(plan, RunOptions(door, once, burst, as_json, logs))))


async def _run(run: "LocalRun") -> int:
    """Run to the end or to a signal; the exit code."""
    from octavo_cli.signals import run_until_signal
    from octavo_operator.local.supervisor import ReplicaFailedError

    try:
        signal_number = await run_until_signal(run.run(), run.hurry)
    except ReplicaFailedError as error:
        raise CommandError(in_fields(str(error)), exit_code=FAILED) from error
    if signal_number is None or run.was_served:
        return 0
    return 128 + signal_number
