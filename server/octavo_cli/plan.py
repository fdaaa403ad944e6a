"""`octavo plan`: what a manifest becomes, and the memory that it needs, without a cluster; or what it would change."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from octavo_cli.errors import FAILED, NOT_COMPARED, WRONG_INPUT, CommandError
from octavo_cli.manifest_file import in_fields, read_manifest, wrong_manifest
from octavo_common.version import __version__

if TYPE_CHECKING:
    from octavo_common.memory import MemoryBill
    from octavo_operator.diff import Comparison

CHART_IMAGE = f"octavo-server:{__version__}"
CHART_PULL_IMAGE = f"octavo-operator:{__version__}"


@click.command()
@click.option("-f", "--filename", required=True, metavar="FILE", help="Manifest of an LLMDeployment; - for stdin.")
@click.option("--gpu-memory", metavar="SIZE", help="Memory of a GPU, such as 80Gi.  [default: by the product's name]")
@click.option(
    "--model-config",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="The model's config.json or its directory, for the memory of a model that is not readable from here.",
)
@click.option(
    "--server-image",
    metavar="IMAGE",
    default=CHART_IMAGE,
    show_default=True,
    help="Image where the manifest names none: the chart's serverImage.",
)
@click.option(
    "--pull-image",
    metavar="IMAGE",
    default=CHART_PULL_IMAGE,
    show_default=True,
    help="Image that downloads models: the chart's image.",
)
@click.option(
    "--operator-namespace",
    metavar="NAME",
    default="octavo-system",
    show_default=True,
    help="Namespace of the operator, which network policies let in.",
)
@click.option("--diff", is_flag=True, help="Show what applying it would change in the kubeconfig's cluster instead.")
@click.option("-n", "--namespace", metavar="NAME", help="For --diff.  [default: the manifest's, else the context's]")
@click.option(
    "--field-manager",
    metavar="NAME",
    default="kubectl",
    show_default=True,
    help="For --diff: who would apply it, server-side; argocd-controller, for one.",
)
@click.option(
    "--kubeconfig",
    type=click.Path(path_type=Path),
    help="For --diff: how to reach the cluster.  [default: KUBECONFIG, ~/.kube/config, the pod's service account]",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print objects, memory bill, warnings and advice as a JSON object."
)
def plan(
    filename: str,
    gpu_memory: str | None,
    model_config: Path | None,
    server_image: str,
    pull_image: str,
    operator_namespace: str,
    diff: bool,
    as_json: bool,
    **cluster: Any,
) -> int:
    """Show the objects that a manifest becomes as YAML, and on stderr its memory bill and every warning.

    Exits with 2 if the manifest is wrong, with 1 if the model cannot fit. With --diff exits with 0 if nothing would
    change, with 1 if something would, with 2 or 3 if that cannot be told.
    """
    from octavo_cli.memory_plan import plan_memory, server_config
    from octavo_cli.plan_diff import compare
    from octavo_common.memory import DoesNotFit
    from octavo_operator.advice import advice
    from octavo_operator.api import ManifestError
    from octavo_operator.render import RenderSettings, render

    if not server_image.strip():
        raise CommandError("plan: --server-image is empty: give an image", exit_code=WRONG_INPUT)
    deployment = read_manifest(filename)
    try:
        objects = render(deployment.scaled(), RenderSettings(server_image, pull_image, operator_namespace))
    except ManifestError as error:
        raise wrong_manifest(filename, error) from error
    config = server_config(filename, deployment)
    try:
        memory = plan_memory(deployment, config, None if gpu_memory is None else _bytes(gpu_memory), model_config)
    except DoesNotFit as error:
        code = NOT_COMPARED if diff else FAILED
        raise CommandError(f"{filename}: {in_fields(str(error))}", exit_code=code) from error
    warnings = [in_fields(warning) for warning in memory.warnings]
    advised = advice(deployment)
    compared = None
    if diff:
        known = RenderSettings(
            _if_given("server_image", server_image),
            _if_given("pull_image", pull_image),
            _if_given("operator_namespace", operator_namespace) or "",
        )
        fallback = RenderSettings(server_image, pull_image, operator_namespace)
        compared = compare(filename, deployment, known, fallback, **cluster)
    if as_json:
        bill = None if memory.bill is None else _bill_document(memory.bill)
        told = {"objects": objects, "memory": bill, "warnings": warnings, "advice": advised}
        click.echo(json.dumps(told | (_difference_document(compared) if compared is not None else {})))
        return 1 if compared is not None and compared.differences else 0
    if compared is not None:
        for each in compared.differences:
            click.echo(each.text, nl=False)
        for note in compared.notes:
            click.echo(f"octavo: note: {note}", err=True)
    else:
        _print_yaml(objects)
    _print_memory(deployment.name, memory.bill, warnings)
    for sentence in advised:
        click.echo(f"octavo: advice: {sentence}", err=True)
    return 1 if compared is not None and compared.differences else 0


def _if_given(option: str, value: str) -> str | None:
    """None where the option was left out: the cluster may know better than the default."""
    source = click.get_current_context().get_parameter_source(option)
    return None if source is ParameterSource.DEFAULT else value


def _difference_document(compared: "Comparison") -> dict[str, Any]:
    return {"differences": [dataclasses.asdict(each) for each in compared.differences], "notes": compared.notes}


def _bytes(size: str) -> int:
    from octavo_operator.api.quantities import quantity_bytes

    try:
        # GiB is how people write it; Kubernetes, whose quantities these are, writes Gi.
        return quantity_bytes(size.removesuffix("B") if size.endswith("iB") else size)
    except ValueError as error:
        raise CommandError(f"plan: --gpu-memory: {error}", exit_code=WRONG_INPUT) from error


def _print_yaml(objects: Sequence[dict[str, Any]]) -> None:
    import yaml

    for item in objects:
        click.echo("---")
        click.echo(yaml.safe_dump(item, sort_keys=False, allow_unicode=True, width=120), nl=False)


def _print_memory(name: str, bill: "MemoryBill | None", warnings: Sequence[str]) -> None:
    if bill is not None:
        device = "of a GPU" if bill.device == "cuda" else "on the CPU"
        click.echo(f"\nMemory {device}, for each replica of {name}:", err=True)
        rows = bill.rows()
        width = max(len(label) for label, _ in rows)
        for label, value in rows:
            click.echo(f"  {label:<{width}}  {value}", err=True)
    for warning in warnings:
        click.echo(f"octavo: warning: {warning}", err=True)


def _bill_document(bill: "MemoryBill") -> dict[str, Any]:
    derived = {"kv_cache_bytes": bill.kv_cache_bytes, "kv_cache_tokens": bill.kv_cache_tokens}
    return {**dataclasses.asdict(bill), **derived, "full_length_requests": bill.full_length_requests}
