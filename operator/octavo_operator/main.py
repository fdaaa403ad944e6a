"""The operator as a process: connect, wait to lead, watch, reconcile; stop on a signal, end at once when superseded."""

import asyncio
import logging
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final
from uuid import uuid4

from octavo_common.names import API_GROUP, KIND
from octavo_operator import handlers
from octavo_operator.autoscale.decisions import Decisions
from octavo_operator.autoscale.run import autoscale
from octavo_operator.cached import OPTIONAL, WATCHED, CachedKube, informers
from octavo_operator.dispatch import Dispatcher
from octavo_operator.election import Election, LeadershipLostError, Timing
from octavo_operator.informer import Informer
from octavo_operator.kube import Kube, KubeError, connect
from octavo_operator.probes import Metrics, probe_server
from octavo_operator.reconcile import Key, Reconciler
from octavo_operator.render import RenderSettings
from octavo_operator.settings import OperatorSettings
from octavo_operator.store import Store
from octavo_operator.workqueue import Retry, WorkQueue

_NAMESPACE_FILE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_STOP_SECONDS: Final = 10.0
_LIST_SECONDS: Final = 30.0
"""For the first lists: a namespace whose Role is missing holds up no other for longer."""

log = logging.getLogger(__name__)


def run_operator(settings: OperatorSettings) -> int:
    """Run until SIGTERM or SIGINT. The exit status: 0 when told to stop, 1 when another operator took over.

    Raises:
        KubeError: there is no cluster to connect to.
        OSError: the probe port is taken.
    """
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
    if settings.log_level != "debug":
        logging.getLogger("kopf").setLevel(logging.WARNING)
    return asyncio.run(_until_signalled(settings))


async def _until_signalled(settings: OperatorSettings) -> int:
    stop = asyncio.Event()

    def on_signal() -> None:
        log.info("stopping")
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    return await Operator(settings).run(stop)


class Operator:
    """One operator on the running event loop."""

    def __init__(self, settings: OperatorSettings) -> None:
        self._settings = settings
        self.queue: WorkQueue[Key] = WorkQueue()
        self.metrics = Metrics(self.queue.__len__)
        self.known: dict[Key, Any] = {}
        self.probe_port: int | None = None
        self.is_ready = False
        self.is_leading = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> int:
        """Until `stop` is set: 0; or until another leads: 1."""
        async with AsyncExitStack() as stack:
            kube = await stack.enter_async_context(connect(self._settings.kubeconfig))
            probes = probe_server(self._settings.probe_port, self.metrics, lambda: self.is_ready)
            self.probe_port = await stack.enter_async_context(probes)
            work = asyncio.create_task(self._work(kube, stop))
            stopped = asyncio.create_task(stop.wait())
            try:
                await asyncio.wait([work, stopped], return_when=asyncio.FIRST_COMPLETED)
                if not work.done() and self.is_leading.is_set():
                    # kopf watches `stop` too: its end is the end of the work.
                    await asyncio.wait([work], timeout=_STOP_SECONDS)
                return await _result(work)
            finally:
                stopped.cancel()

    async def _work(self, kube: Kube, stop: asyncio.Event) -> None:
        await _served(kube)
        self.is_ready = True
        async with self._leadership(kube) as election:
            self.is_leading.set()
            self.metrics.leading.set(1)
            log.info("acting in %s", ", ".join(self._settings.namespaces) or "all namespaces")
            await self._act(kube, stop, election)

    @asynccontextmanager
    async def _leadership(self, kube: Kube) -> AsyncIterator[Election | None]:
        """Yields what we lead by, to be held on to; None where nobody else is expected."""
        if not self._settings.leader_elect:
            yield None
            return
        namespace = self._settings.lease_namespace or _own_namespace()
        identity = f"{socket.gethostname()}_{uuid4().hex[:8]}"
        election = Election(kube, namespace, identity, Timing(*self._settings.lease_seconds))
        await election.acquire()
        try:
            yield election
        except LeadershipLostError:
            raise
        except BaseException:
            await election.release()
            raise
        else:
            await election.release()

    async def _act(self, kube: Kube, stop: asyncio.Event, election: Election | None) -> None:
        namespaces = self._settings.namespaces
        stores = {kind: Store() for kind in (KIND, *WATCHED, *OPTIONAL)}
        dispatch = Dispatcher(self.queue, self.known)
        deployments = [
            Informer(kube, KIND, namespace, stores[KIND], dispatch.deployment) for namespace in (namespaces or (None,))
        ]
        children = informers(kube, namespaces, stores, dispatch)
        may_write = election.may_act if election is not None else lambda: True
        cached = CachedKube(kube, stores, [*deployments, *children], dispatch.written, may_write)
        decisions, rendering = Decisions(), _render_settings(self._settings)
        reconciler = Reconciler(cached, rendering, _now, self.metrics.ledger, decisions)
        gateways = rendering.operator_namespace, self._settings.gateway_selector
        scaling = autoscale(cached, decisions, self.metrics.autoscaling, self._add, gateways)
        handle = self._measured(reconciler, cached)
        listing = [asyncio.create_task(each.relist_until_done()) for each in deployments]
        lasting = [each.run() for each in children]
        lasting += [self._worker(cached, handle) for _ in range(self._settings.workers)]
        lasting += [scaling, self._resync(deployments), *([election.hold()] if election is not None else [])]
        lasting += [handlers.watch(kube, stores[KIND], dispatch.deployment, namespaces, stop, partial(_served, kube))]
        tasks = [asyncio.create_task(each) for each in lasting]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self.queue.close()
            for task in (*tasks, *listing):
                task.cancel()
            await asyncio.gather(*tasks, *listing, return_exceptions=True)

    def _add(self, name: tuple[str, str]) -> None:
        self.queue.add(Key(*name))

    async def _worker(self, cached: CachedKube, handle: Callable[[Key], Awaitable[None]]) -> None:
        """One of those that pass over keys, once everything is listed, or as much as there will be for a while."""
        with suppress(TimeoutError):
            await asyncio.wait_for(cached.synced(), _LIST_SECONDS)
        await self.queue.work(handle)

    def _measured(
        self, reconciler: Callable[[Key], Awaitable[bool]], cached: CachedKube
    ) -> Callable[[Key], Awaitable[None]]:
        async def handle(key: Key) -> None:
            result, known = "error", self.known.get(key)
            try:
                if not cached.is_synced(key.namespace):
                    raise Retry(f"not every kind could be listed in {key.namespace} yet")
                with self.metrics.seconds.time():
                    is_there = await reconciler(key)
                if not is_there and self.known.get(key) == known:
                    self.known.pop(key, None)  # its DELETED was lost with a broken watch
                result = "done"
            except Retry:
                result = "retry"
                raise
            finally:
                self.metrics.reconciles.labels(result).inc()

        return handle

    async def _resync(self, deployments: Sequence[Informer]) -> None:
        """What no event told is found within one period: by one list, and passes that read what is at hand."""
        random, period = Random(), self._settings.resync_seconds
        while True:
            await asyncio.sleep(period)
            for each in deployments:
                try:
                    await each.relist()
                except KubeError as error:
                    log.warning("no resync now: %s", error)
            for key in list(self.known):
                self.queue.add_later(key, random.uniform(0.0, period / 2))


async def _served(kube: Kube) -> None:
    """Wait for API server and CRD: kopf watches only what is served when it starts."""
    told = False
    while True:
        try:
            if await kube.serves_our_api():
                return
            problem = f"{API_GROUP} is not served: install the CRD (octavo crd | kubectl apply --server-side -f -)"
        except KubeError as error:
            problem = str(error)
        if not told:
            log.warning("waiting: %s", problem)
            told = True
        await asyncio.sleep(2.0)


async def _result(work: "asyncio.Task[None]") -> int:
    work.cancel()
    try:
        await work
    except LeadershipLostError as error:
        log.error("ending: %s", error)
        return 1
    except asyncio.CancelledError:
        pass
    return 0


def _render_settings(settings: OperatorSettings) -> RenderSettings:
    namespace = settings.operator_namespace or _own_namespace()
    return RenderSettings(
        settings.default_image, settings.pull_image, namespace, settings.gateway_key_secret, settings.gateway_url
    )


def _own_namespace() -> str:
    with suppress(OSError):
        return _NAMESPACE_FILE.read_text().strip()
    return "default"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
