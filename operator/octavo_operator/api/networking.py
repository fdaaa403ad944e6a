"""`LLMDeployment.spec.networking`: how clients reach the model, and who may."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from octavo_operator.api import rules
from octavo_operator.api.base import ApiModel, ListType, Rule
from octavo_operator.api.labels import LabelSelector
from octavo_operator.api.types import DNSLabel, PortNumber


class Service(ApiModel):
    """The Service before the pods, named like the LLMDeployment."""

    port: PortNumber = Field(8000, description="Port that clients connect to.")


class NetworkPeer(ApiModel):
    """Pods that may connect: those that both selectors mean."""

    rules: ClassVar[tuple[Rule, ...]] = rules.NETWORK_PEER

    namespace_selector: LabelSelector | None = Field(
        None,
        description="Namespaces by their labels, {} for all of them; this namespace when left out.",
        examples=["{matchLabels: {kubernetes.io/metadata.name: web}}"],
    )
    pod_selector: LabelSelector | None = Field(
        None,
        description="Pods by their labels, {} or left out for all of those namespaces.",
        examples=["{matchLabels: {app: chat}}"],
    )


class EndpointPickerRef(ApiModel):
    """The Service of an endpoint picker of the Gateway API Inference Extension, in the same namespace."""

    name: DNSLabel = Field(description="Name of the Service.", examples=["llama-epp"])
    port: PortNumber = Field(9002, description="Its port for the gateway's questions (gRPC).")
    failure_mode: Literal["FailOpen", "FailClose"] = Field(
        "FailClose",
        description="While the picker does not answer: FailOpen lets requests go to any pod, FailClose refuses them.",
    )


class InferencePool(ApiModel):
    """The pods as an InferencePool (inference.networking.k8s.io/v1), a backend for routes of the Gateway API."""

    endpoint_picker_ref: EndpointPickerRef = Field(
        description="What chooses the pod for each request. Where the server has an admin port (apiKeySecretRef, or "
        "podMonitor Enabled) it must read metrics there: --model-server-metrics-port=8001."
    )


class Networking(ApiModel):
    """How clients reach the model, and who may."""

    service: Service = Field(Service(), description="The Service before the pods, named like the LLMDeployment.")
    network_policy: Literal["Restricted", "Disabled"] = Field(
        "Restricted",
        description="Restricted: a NetworkPolicy lets in Octavo's gateway and operator, allowFrom, and anybody to the "
        "admin port's metrics; and out DNS, and the port that a model is downloaded from. Disabled: there is none. It "
        "takes a network plugin that enforces policies.",
    )
    allow_from: Annotated[list[NetworkPeer], Field(max_length=16), ListType("atomic")] = Field(
        [NetworkPeer(podSelector=LabelSelector())],
        description="Who else may send requests, with networkPolicy Restricted. Default: every pod of this namespace; "
        "[]: nobody else.",
        examples=["[{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: web}}}]"],
    )
    inference_pool: InferencePool | None = Field(
        None,
        description="The pods as an InferencePool as well; needs that CRD in the cluster, and in allowFrom the gateway "
        "and the picker. None when left out.",
    )
