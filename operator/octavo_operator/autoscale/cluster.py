"""The cluster as the keeper of fleets: its pods are the replicas, and of those Kubernetes ends the cheapest first."""

import logging
from collections.abc import Callable, Sequence

from octavo_common.names import DEPLOYMENT_LABEL
from octavo_operator import drift
from octavo_operator.autoscale import pods
from octavo_operator.autoscale.decisions import Entry, Name
from octavo_operator.autoscale.loop import Seen
from octavo_operator.kube import Kube, KubeError
from octavo_operator.render import start_seconds
from octavo_operator.store import Store

log = logging.getLogger(__name__)


class Cluster:
    """`gateway_pods` is kept up to date by a watch of the namespace in which gateways run."""

    def __init__(self, kube: Kube, gateway_pods: Store, tell: Callable[[Name], None]) -> None:
        self._kube = kube
        self._gateway_pods = gateway_pods
        self._tell = tell

    async def see(self, name: Name, entry: Entry, now: float) -> Seen | None:
        """None while there is no Deployment of this LLMDeployment."""
        child = await self._kube.find_ours("Deployment", *name)
        if child is None or drift.controller_uid(child) != entry.uid or "deletionTimestamp" in child["metadata"]:
            return None
        return Seen(
            members=pods.members(await self._pods(name), now),
            desired=int(child["spec"].get("replicas", 1)),
            startup_deadline=start_seconds(entry.deployment),
        )

    async def gateways(self) -> dict[str, str]:
        """Of the pods that are ready and stay."""
        found = [self._gateway_pods.get(*name) for name in self._gateway_pods]
        return pods.gateway_urls([each for each in found if each is not None])

    async def prepare(self, name: Name, victims: Sequence[str]) -> bool:
        """Write the costs by which the ReplicaSet controller chooses, or take back those that have served."""
        found = await self._pods(name)
        if not victims:
            child = await self._kube.find_ours("Deployment", *name)
            if child is None or not pods.is_settled(found, int(child["spec"].get("replicas", 1))):
                return True
        return await write_costs(self._kube, pods.costs_to_write(found, victims))

    def tell(self, name: Name) -> None:
        """By the queue of passes."""
        self._tell(name)

    async def _pods(self, name: Name) -> list[pods.Manifest]:
        return list(await self._kube.select("Pod", name[0], f"{DEPLOYMENT_LABEL}={name[1]}"))


async def write_costs(kube: Kube, changes: Sequence[tuple[pods.Manifest, pods.Annotations]]) -> bool:
    """Whether all were written that could be: where the role does not allow it, Kubernetes chooses as it likes."""
    for pod, annotations in changes:
        try:
            await kube.annotate(pod, annotations)
        except KubeError as error:
            if error.status == 403:
                log.warning("which pod goes is left to Kubernetes: the operator may not patch pods: %s", error)
                return True
            if error.status not in {404, 409}:  # one that is gone costs nothing
                log.warning("the cost of pod %s was not written: %s", pod["metadata"]["name"], error)
                return False
    return True
