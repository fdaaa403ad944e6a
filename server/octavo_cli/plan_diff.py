"""`octavo plan --diff`: asks the cluster what a manifest would change."""

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING

from octavo_cli.errors import NOT_COMPARED, CommandError
from octavo_cli.manifest_file import wrong_manifest

if TYPE_CHECKING:
    from octavo_operator.api import LLMDeployment
    from octavo_operator.diff import Comparison
    from octavo_operator.render import RenderSettings


def compare(
    filename: str,
    deployment: "LLMDeployment",
    known: "RenderSettings",
    fallback: "RenderSettings",
    *,
    namespace: str | None,
    field_manager: str,
    kubeconfig: Path | None,
) -> "Comparison":
    """What applying `deployment` would change. `known`: the operator's settings as far as they were given, `fallback`:
    where neither they nor the cluster tell them.

    Raises:
        CommandError: no cluster, no CRD, or the API server refuses.
    """
    from octavo_operator.api import ManifestError
    from octavo_operator.diff import Comparer
    from octavo_operator.kube import KubeError, connect, current_namespace

    given = deployment.metadata.namespace
    if namespace is not None and given is not None and namespace != given:
        text = f"plan: --namespace {namespace}: the manifest says {given}"
        raise CommandError(text, exit_code=NOT_COMPARED)
    if kubeconfig is not None and not kubeconfig.is_file():
        raise CommandError(f"plan: --kubeconfig {kubeconfig}: there is no such file", exit_code=NOT_COMPARED)

    async def asked() -> "Comparison":
        path = kubeconfig or _default_kubeconfig()
        where = namespace or given or (current_namespace(path) if path is not None else "default")
        there = deployment.model_copy(update={"metadata": deployment.metadata.model_copy(update={"namespace": where})})
        async with connect(path) as kube:
            if not await kube.serves_our_api():
                text = "this cluster has no LLMDeployment: install the chart, or the CRD (octavo crd)"
                raise CommandError(f"plan: {text}", exit_code=NOT_COMPARED)
            return await Comparer(kube, known, fallback, where).compare(there, field_manager)

    try:
        return asyncio.run(asked())
    except KubeError as error:
        raise CommandError(f"plan: {error}", exit_code=NOT_COMPARED) from error
    except ManifestError as error:
        raise wrong_manifest(filename, error) from error


def _default_kubeconfig() -> Path | None:
    """As kubectl finds it; None: that of the pod that this runs in."""
    if os.environ.get("KUBECONFIG"):
        return Path(os.environ["KUBECONFIG"])
    usual = Path("~/.kube/config").expanduser()
    return usual if usual.is_file() else None
