"""Keeps a Store as the API server has it: one list, then a watch from there on, and again where that breaks.

As in client-go: what vanished while there was no watch is missing from the next list, and told as deleted. Source of
the scheme: k8s.io/client-go, tools/cache, reflector.
"""

import asyncio
import logging
from collections.abc import Callable
from random import Random
from typing import Any, Final

from octavo_operator.kube import Kube, KubeError
from octavo_operator.store import Store, version_of

Manifest = dict[str, Any]

PAUSES: Final = (0.2, 10.0)
"""Seconds to wait before a list is tried again: at first, doubled each time up to the second."""
ABSENT_SECONDS: Final = 60.0
"""How often is asked for a kind that the cluster lacks."""

_RANDOM: Final = Random()

log = logging.getLogger(__name__)


class Informer:
    """One kind, in one namespace or (None) in all; the objects that `selector` means.

    `heard` is called for each object that is new, changed or (True) gone, after the store has it so. Where a kind is
    `optional` the cluster may lack it, or our role may: then `is_missing`, and `appeared` is called when it is no more.
    """

    def __init__(
        self,
        kube: Kube,
        kind: str,
        namespace: str | None,
        store: Store,
        heard: Callable[[Manifest, bool], None],
        *,
        selector: str = "",
        optional: bool = False,
        appeared: Callable[[], None] = lambda: None,
    ) -> None:
        self._kube = kube
        self.kind = kind
        self.namespace = namespace
        self._store = store
        self._heard = heard
        self._selector = selector
        self._optional = optional
        self._appeared = appeared
        self.synced = asyncio.Event()
        self.is_missing = False

    async def run(self) -> None:
        """Until cancelled. What goes wrong is tried again."""
        pause = PAUSES[0]
        while True:
            try:
                version = await self.relist()
                pause = PAUSES[0]
                while True:
                    version = await self._watch(version)
                    await _about(PAUSES[0])
            except KubeError as error:
                if self._optional and error.status in {403, 404}:
                    self.is_missing = True
                    self.synced.set()
                    await _about(ABSENT_SECONDS)
                    continue
                is_news = error.status != 410 and pause == PAUSES[0]
                level = logging.WARNING if is_news else logging.DEBUG
                log.log(level, "%ss are listed again: %s", self.kind, error)
                await _about(max(pause, min(error.retry_after, PAUSES[1])))
            pause = min(2.0 * pause, PAUSES[1])

    async def relist_until_done(self) -> None:
        """One list that succeeds, after however many that do not."""
        pause = PAUSES[0]
        while True:
            try:
                await self.relist()
                return
            except KubeError as error:
                log.warning("%ss are not listed yet: %s", self.kind, error)
            await _about(pause)
            pause = min(2.0 * pause, PAUSES[1])

    async def relist(self) -> str:
        """Bring the store up to date by a list; returns its version. Raises KubeError."""
        listed: set[tuple[str, str]] = set()
        version = ""
        async for page in self._kube.pages(self.kind, self.namespace, self._selector):
            version = page["metadata"]["resourceVersion"]
            for body in page["items"]:
                listed.add((body["metadata"]["namespace"], body["metadata"]["name"]))
                self._changed(body)
        for body in self._store.prune(self.namespace, listed, version_of({"metadata": {"resourceVersion": version}})):
            self._heard(body, True)
        was_missing, self.is_missing = self.is_missing, False
        self.synced.set()
        if was_missing:
            self._appeared()
        return version

    async def _watch(self, version: str) -> str:
        """One watch from `version` to its end, in good order or not; returns how far it came. Raises KubeError."""
        async for kind, body in self._kube.watch(self.kind, self.namespace, self._selector, version):
            version = body["metadata"]["resourceVersion"]
            if kind == "DELETED":
                if self._store.remove(body):
                    self._heard(body, True)
            elif kind != "BOOKMARK":
                self._changed(body)
        return version

    def _changed(self, body: Manifest) -> None:
        if self._store.put(body):
            self._heard(body, False)


async def _about(seconds: float) -> None:
    """Sleep, not in step with others."""
    await asyncio.sleep(seconds * _RANDOM.uniform(0.5, 1.0))
