"""Which of several operators acts: the one that holds a Lease.

As in client-go: a holder renews; others watch the Lease change and take it when it has stood still for its duration, by
their own monotonic clock, so that clocks need not agree. A holder that could not renew within the deadline, which is
shorter, has lost it: it must stop before another may start. Source of the algorithm: k8s.io/client-go, leaderelection.
"""

import asyncio
import logging
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic
from typing import Final

from octavo_operator.kube import Kube, KubeError, Manifest

LEASE_NAME: Final = "octavo-operator"

log = logging.getLogger(__name__)


class LeadershipLostError(Exception):
    """Another may be acting by now: this process must end at once."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds: how long a Lease is good for, until when it must be renewed, and how often that is tried."""

    duration: float = 15.0
    deadline: float = 10.0
    retry: float = 2.0


class Election:
    """One candidate, `identity`, for the Lease `octavo-operator` in `namespace`."""

    def __init__(self, kube: Kube, namespace: str, identity: str, timing: Timing | None = None) -> None:
        self._kube = kube
        self._namespace = namespace
        self._identity = identity
        self._timing = timing or Timing()
        self._seen = ("", 0.0)  # the Lease's resourceVersion, and when it was first seen here
        self._renewed = float("-inf")
        self._lease: Manifest | None = None  # as it was written last
        self._stands_by = False

    async def acquire(self) -> None:
        """Return as the holder. What fails on the way is tried again."""
        while True:
            try:
                async with asyncio.timeout(self._timing.deadline):
                    if await self._take():
                        log.info("leading as %s", self._identity)
                        return
            except (KubeError, TimeoutError) as error:
                log.warning("no Lease yet: %s", error or "timeout")
            await asyncio.sleep(self._timing.retry)

    async def hold(self) -> None:
        """Renew for as long as it lasts.

        Raises:
            LeadershipLostError: another holds the Lease, or it could not be renewed in time.
        """
        while True:
            await asyncio.sleep(self._timing.retry)
            try:
                async with asyncio.timeout(self._renewed + self._timing.deadline - monotonic()):
                    await self._renew()
            except TimeoutError as error:
                raise LeadershipLostError("the Lease could not be renewed in time") from error

    def may_act(self) -> bool:
        """Whether nobody else can hold the Lease yet: asked before every write, so that none comes late.

        The clock goes on while a process is stopped, or its machine asleep; its tasks do not.
        """
        return monotonic() < self._renewed + self._timing.deadline

    async def release(self) -> None:
        """Let others have it without a wait. Best effort: the end of the process does not depend on it."""
        try:
            async with asyncio.timeout(self._timing.retry):
                self._renewed = float("-inf")
                lease = await self._get()
                if lease is not None and _holder(lease) == self._identity:
                    await self._write(lease, holder="", duration=1)
        except (KubeError, TimeoutError) as error:
            log.warning("the Lease was not released: %s", error or "timeout")

    async def _take(self) -> bool:
        started = monotonic()
        lease = await self._get()
        if lease is None:
            metadata = {"name": LEASE_NAME, "namespace": self._namespace}
            lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": {}}
            wanted = self._written(lease, self._identity, self._timing.duration)
            self._lease = await self._kube.create("Lease", self._namespace, wanted)
        elif _holder(lease) in {"", self._identity} or self._stood_still(lease):
            await self._write(lease, self._identity, self._timing.duration)
        else:
            if not self._stands_by:
                self._stands_by = True
                log.info("standing by: the Lease %s in %s is held by %s", LEASE_NAME, self._namespace, _holder(lease))
            return False
        self._renewed = started
        return True

    async def _renew(self) -> None:
        while True:
            started = monotonic()
            try:
                # Nobody else writes it while all is well: it is read again only where that was wrong.
                lease = self._lease or await self._get()
                if lease is None or _holder(lease) != self._identity:
                    raise LeadershipLostError(f"the Lease is held by {lease and _holder(lease)}")
                await self._write(lease, self._identity, self._timing.duration)
            except KubeError as error:
                self._lease = None
                log.warning("the Lease was not renewed yet: %s", error)
                await asyncio.sleep(self._timing.retry)
            else:
                self._renewed = started
                return

    def _stood_still(self, lease: Manifest) -> bool:
        """Whether nobody has written it for as long as its holder asked for."""
        version = str(lease["metadata"]["resourceVersion"])
        if version != self._seen[0]:
            self._seen = (version, monotonic())
        duration = float(lease["spec"].get("leaseDurationSeconds") or self._timing.duration)
        return monotonic() - self._seen[1] >= duration

    async def _get(self) -> Manifest | None:
        return await self._kube.get("Lease", self._namespace, LEASE_NAME)

    async def _write(self, lease: Manifest, holder: str, duration: float) -> None:
        """With the resourceVersion that was read: of two that write at once one gets 409."""
        self._lease = await self._kube.replace("Lease", self._written(lease, holder, duration))

    def _written(self, lease: Manifest, holder: str, duration: float) -> Manifest:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = lease["spec"] | {"holderIdentity": holder, "renewTime": now, "leaseDurationSeconds": math.ceil(duration)}
        if _holder(lease) != holder:
            spec |= {"acquireTime": now, "leaseTransitions": int(spec.get("leaseTransitions") or 0) + 1}
        return lease | {"spec": spec}


def _holder(lease: Manifest) -> str:
    return str(lease["spec"].get("holderIdentity") or "")
