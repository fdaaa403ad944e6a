"""What `octavo operator` can be told. Imports nothing heavy, so that a command line can be made from it."""

from dataclasses import dataclass, field
from pathlib import Path

from octavo_common.names import GATEWAY_SELECTOR, OPERATOR_PORT


@dataclass(frozen=True, slots=True)
class OperatorSettings:
    """The operator's configuration.

    Attributes:
        namespaces: where LLMDeployments are looked after; empty: in all of them (needs a ClusterRole).
        default_image: image of the server where spec.server.image is left out; None: such a spec is refused.
        pull_image: the operator's own image, which downloads models; None: a spec that needs it is refused.
        leader_elect: hold a Lease while acting, so that of several operators one acts.
        lease_namespace: where the Lease is; None: where this runs, outside a cluster "default".
        operator_namespace: where operator and gateway run, whom network policies let in; None: where this runs.
        gateway_selector: of the gateways' pods in operator_namespace, by labels; the autoscaler reads their metrics.
        gateway_key_secret: Secret in the namespaces of models with the gateway's own key, which pods mount where it is
            there; None: they take no key for a gateway's.
        gateway_url: base URL of the gateway before all models, told in their status; None: their Services' is.
        probe_port: port of /healthz, /readyz and /metrics on every address; 0: any free one, None: none of them.
        log_level: least level that is logged: debug, info, warning or error.
        kubeconfig: how to reach the API server; None: the service account of the pod, else KUBECONFIG.
        workers: LLMDeployments that are worked on at once.
        resync_seconds: how often each LLMDeployment is looked at although nothing was heard of it.
    """

    namespaces: tuple[str, ...] = ()
    default_image: str | None = None
    pull_image: str | None = None
    leader_elect: bool = True
    lease_namespace: str | None = None
    operator_namespace: str | None = None
    gateway_selector: str = GATEWAY_SELECTOR
    gateway_key_secret: str | None = None
    gateway_url: str | None = None
    probe_port: int | None = OPERATOR_PORT
    log_level: str = "info"
    kubeconfig: Path | None = None
    workers: int = 8
    resync_seconds: float = 600.0
    lease_seconds: tuple[float, float, float] = field(default=(15.0, 10.0, 2.0))
    """of the Lease: how long it is good for, until when it must be renewed, how often that is tried"""
