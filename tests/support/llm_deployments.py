"""What the operator's tests share: a manifest, a pass of the reconciler, a whole operator in the background."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from kube_fixture import ControlPlane, Kube
from octavo_operator.autoscale.decisions import Decisions
from octavo_operator.kube import connect
from octavo_operator.main import Operator
from octavo_operator.reconcile import Key, Reconciler
from octavo_operator.render import RenderSettings
from octavo_operator.settings import OperatorSettings
from octavo_operator.workqueue import Retry

Object = dict[str, Any]

IMAGE = "registry.example/octavo-server:1"
PULL_IMAGE = "registry.example/octavo-operator:1"
SETTINGS = RenderSettings(IMAGE, PULL_IMAGE, "octavo-system")
NOW = "2026-01-01T00:00:00Z"
API = "octavo.dev/v1alpha1"
KIND = "LLMDeployment"


def llm_deployment(name: str = "demo", **spec: Any) -> Object:
    """A manifest of the built-in model, with what is in `spec` besides."""
    return {
        "apiVersion": API,
        "kind": KIND,
        "metadata": {"name": name},
        "spec": {"model": {"source": {"builtin": {"name": "demo"}}}} | spec,
    }


def rendered(objects: list[Object], kind: str) -> Object:
    """The only object of this kind, but for what asks which commit a branch is."""
    labels = "app.kubernetes.io/component", "model-revision"
    (found,) = [each for each in objects if each["kind"] == kind and labels not in each["metadata"]["labels"].items()]
    return found


@dataclass
class Passes:
    """Passes of the reconciler over the objects of one namespace, on the road that faults are on."""

    reconciler: Reconciler
    namespace: str

    async def once(self, name: str = "demo") -> None:
        """One pass. Raises Retry as the reconciler does."""
        await self.reconciler(Key(self.namespace, name))

    async def until_done(self, name: str = "demo", most: int = 8) -> None:
        """Passes until one ends without a Retry."""
        for _ in range(most - 1):
            with contextlib.suppress(Retry):
                return await self.once(name)
        return await self.once(name)


@contextlib.asynccontextmanager
async def reconciling(plane: ControlPlane, namespace: str, decisions: Decisions | None = None) -> AsyncIterator[Passes]:
    """A new reconciler with a connection of its own: it knows nothing of any earlier one, but for its decisions."""
    async with connect(plane.kubeconfig) as api:
        yield Passes(Reconciler(api, SETTINGS, lambda: NOW, decisions=decisions), namespace)


class RunningOperator:
    """An operator on an event loop of its own: when kopf ends, it cancels whatever was started after it on its loop."""

    def __init__(self, settings: OperatorSettings) -> None:
        self.operator = Operator(settings)
        self.result: Future[int] = Future()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def is_leading(self) -> bool:
        return self.operator.is_leading.is_set()

    def stop(self) -> None:
        """What SIGTERM does."""
        if not self.result.done():
            self._loop.call_soon_threadsafe(self._stop.set)

    def counted(self, result: str) -> float:
        """How many passes ended with "done", "retry" or "error"."""
        value = self.operator.metrics.registry.get_sample_value("octavo_operator_reconciles_total", {"result": result})
        return value or 0.0

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                result = runner.run(self.operator.run(self._stop))
                runner.run(_cut_connections())
            self.result.set_result(result)
        except BaseException as error:
            self.result.set_exception(error)


async def _cut_connections() -> None:
    """kopf leaves TLS connections half closed: with the process they would end, here they would be warned about."""
    transports: Any = getattr(asyncio.get_running_loop(), "_transports", {})
    for transport in list(transports.values()):
        transport.abort()
    await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def operating(plane: ControlPlane, *namespaces: str, **settings: Any) -> AsyncIterator[RunningOperator]:
    """A whole operator inside the block, kopf and all; it has to end in good order after it."""
    images = {"default_image": IMAGE, "pull_image": PULL_IMAGE}
    chosen: dict[str, Any] = {"leader_elect": False, "probe_port": None} | images | settings
    running = RunningOperator(OperatorSettings(namespaces=namespaces, kubeconfig=plane.kubeconfig, **chosen))
    try:
        yield running
    finally:
        running.stop()
        async with asyncio.timeout(20):
            assert await asyncio.wrap_future(running.result) == 0


async def conditions(kube: Kube, name: str = "demo") -> dict[str, tuple[str, str, str]]:
    """(status, reason, message) of each condition."""
    status = (await kube.get(API, KIND, name)).get("status", {})
    return {each["type"]: (each["status"], each["reason"], each["message"]) for each in status.get("conditions", [])}


async def until_condition(kube: Kube, kind: str, status: str, name: str = "demo", reason: str = "") -> None:
    """Wait for a condition to have a status, and a reason where one is given."""

    async def reached() -> bool:
        found = (await conditions(kube, name)).get(kind, ("", "", ""))
        return found[0] == status and found[1].startswith(reason)

    await kube.until(reached, 30, f"{kind} of {name} to be {status} {reason}")
