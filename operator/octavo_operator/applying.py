"""Writes what differs of one LLMDeployment's objects, and nothing else."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from octavo_operator import drift
from octavo_operator.children import Children
from octavo_operator.contests import Contests
from octavo_operator.events import Event, events_of_apply
from octavo_operator.kube import Kube, KubeError
from octavo_operator.observation import CHILD_TERMINATING, Problem

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Applying:
    """How one pass writes.

    Attributes:
        now: seconds since the epoch.
        expect_alive: raises where the LLMDeployment is gone; asked before anything is created.
        scaled_by: what decides the number of replicas, for the event that tells of it.
    """

    kube: Kube
    contests: Contests
    now: float
    expect_alive: Callable[[], Awaitable[None]]
    scaled_by: str

    async def bring_about(self, wanted: Sequence[Manifest], children: Children, actions: list[Event]) -> Problem | None:
        """Write what differs of `wanted`, stamped manifests, in their order; put what came back into `children`, and
        what was done into `actions`.

        Raises:
            KubeError: the API server does not answer, or would not have it now.
        """
        problem: Problem | None = None
        is_alive = False
        for manifest in wanted:
            kind, name = manifest["kind"], manifest["metadata"]["name"]
            if kind in children.missing:
                continue
            child = children.live[kind]
            if child is not None and "deletionTimestamp" in child["metadata"]:
                text = f"the {kind} is being deleted; it is made again when it is gone"
                problem = Problem(CHILD_TERMINATING, text)
                continue
            if child is not None and (drift.in_sync(manifest, child) or self.contests.is_settled(manifest, child)):
                continue
            if not self.contests.may_write(manifest, self.now):
                continue
            if child is None and not is_alive:
                await self.expect_alive()
                is_alive = True
            try:
                children.live[kind] = await self._write(manifest, child, actions)
            except KubeError as error:
                if not error.is_refusal:
                    raise
                return Problem("ApplyRefused", f"the API server refused {kind} {name}: {error.message}")
        return problem or self.contests.problem(wanted, self.now)

    async def _write(self, manifest: Manifest, child: Manifest | None, actions: list[Event]) -> Manifest:
        if child is None:
            made = await self.kube.create_by_apply(manifest)
            actions.append(Event("Normal", "Created", f"created {manifest['kind']} {manifest['metadata']['name']}"))
        else:
            made = await self.kube.update_by_apply(manifest, child["metadata"]["uid"])
            actions += events_of_apply(child, made, self.scaled_by)
            if made["metadata"]["resourceVersion"] == child["metadata"]["resourceVersion"]:
                self.contests.settle(manifest, made)
                return made
        self.contests.wrote(manifest, self.now)
        return made
