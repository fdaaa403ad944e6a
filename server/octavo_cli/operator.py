"""`octavo operator`: the operator as a process, in a cluster's pod or beside the cluster with a kubeconfig."""

from pathlib import Path

import click

from octavo_cli.errors import FAILED, WRONG_INPUT, CommandError
from octavo_common.names import GATEWAY_SELECTOR, OPERATOR_PORT


@click.command(name="operator")
@click.option("-n", "--namespace", "namespaces", multiple=True, metavar="NAME", help="Namespace to act in; repeatable.")
@click.option("-A", "--all-namespaces", is_flag=True, help="Act in all namespaces; needs a ClusterRole.")
@click.option("--server-image", metavar="IMAGE", help="Image of the server where a manifest names none.")
@click.option("--pull-image", metavar="IMAGE", help="This image: it downloads models, in init containers and Jobs.")
@click.option(
    "--leader-elect/--no-leader-elect", default=True, help="Act only while holding a Lease.  [default: leader-elect]"
)
@click.option("--lease-namespace", metavar="NAME", help="Namespace of the Lease.  [default: the pod's own]")
@click.option(
    "--gateway-selector",
    metavar="LABELS",
    default=GATEWAY_SELECTOR,
    show_default=True,
    help="Pods of the operator's namespace that are gateways; the autoscaler reads their metrics.",
)
@click.option(
    "--gateway-key-secret",
    metavar="NAME",
    help="Secret with the gateway's own key, which model pods mount where their namespace has it.",
)
@click.option("--gateway-url", metavar="URL", help="Base URL of the gateway, for status.url in place of the Services'.")
@click.option(
    "--probe-port",
    type=click.IntRange(0, 65_535),
    default=OPERATOR_PORT,
    show_default=True,
    help="Port of /healthz, /readyz and /metrics; 0: any free one.",
)
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
@click.option(
    "--kubeconfig",
    type=click.Path(path_type=Path),
    help="How to reach the cluster.  [default: the pod's service account, else KUBECONFIG]",
)
def operator(
    namespaces: tuple[str, ...],
    all_namespaces: bool,
    server_image: str | None,
    pull_image: str | None,
    leader_elect: bool,
    lease_namespace: str | None,
    gateway_selector: str,
    gateway_key_secret: str | None,
    gateway_url: str | None,
    probe_port: int,
    log_level: str,
    kubeconfig: Path | None,
) -> int:
    """Turn every LLMDeployment into the objects that serve it, and tell its status, until SIGTERM."""
    if all_namespaces == bool(namespaces):
        raise CommandError("operator: give either --namespace (repeatable) or --all-namespaces", exit_code=WRONG_INPUT)
    if kubeconfig is not None and not kubeconfig.is_file():
        raise CommandError(f"operator: --kubeconfig {kubeconfig}: there is no such file", exit_code=WRONG_INPUT)
    if gateway_url is not None and not gateway_url.startswith(("http://", "https://")):
        text = f"operator: --gateway-url {gateway_url}: must begin with http:// or https://"
        raise CommandError(text, exit_code=WRONG_INPUT)
    from octavo_operator.kube import KubeError
    from octavo_operator.main import run_operator
    from octavo_operator.settings import OperatorSettings

    settings = OperatorSettings(
        namespaces=namespaces,
        default_image=server_image,
        pull_image=pull_image,
        leader_elect=leader_elect,
        lease_namespace=lease_namespace,
        gateway_selector=gateway_selector,
        gateway_key_secret=gateway_key_secret,
        gateway_url=gateway_url,
        probe_port=probe_port,
        log_level=log_level,
        kubeconfig=kubeconfig,
    )
    try:
        return run_operator(settings)
    except (KubeError, OSError) as error:
        raise CommandError(f"operator: {error}", exit_code=FAILED) from error
