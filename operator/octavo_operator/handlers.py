"""Thin kopf handlers: kopf watches the LLMDeployments, and writes nothing anywhere.

What is made for them our own informers watch: kopf tells neither what vanished between two watches nor when a list is
over, and takes a millisecond of Python and some kilobytes for each object that it hears of.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from itertools import chain, repeat
from typing import Any, Final

import kopf

from octavo_common.names import API_GROUP, API_VERSION, PLURAL
from octavo_operator.kube import Kube
from octavo_operator.store import Store

Manifest = dict[str, Any]

_PAUSE_SECONDS: Final = 5.0

log = logging.getLogger(__name__)


async def watch(
    kube: Kube,
    store: Store,
    heard: Callable[[Manifest, bool], None],
    namespaces: Sequence[str],
    stop: asyncio.Event,
    served: Callable[[], Awaitable[None]],
) -> None:
    """Keep `store` as the API server has it, until `stop`, or a signal, which kopf takes for itself.

    What kopf gives up for is waited out: `served` waits for it.

    To be started after all other tasks: those that began later kopf takes for its own, and cancels when it ends.
    """
    while not stop.is_set():
        try:
            await kopf.operator(
                registry=_registry(kube, store, heard),
                settings=_settings(),
                standalone=True,
                namespaces=tuple(namespaces),
                clusterwide=not namespaces,
                stop_flag=stop,
            )
            return
        except Exception as error:  # an ERROR event, a definition that is gone: kopf ends for either
            log.warning("the watch of LLMDeployments has ended, and is begun again: %s", error)
        await asyncio.sleep(_PAUSE_SECONDS)
        await served()


def _registry(kube: Kube, store: Store, heard: Callable[[Manifest, bool], None]) -> kopf.OperatorRegistry:
    handlers = kopf.OperatorRegistry()

    async def on_event(event: Mapping[str, Any], **_: Any) -> None:
        body, gone = dict(event["object"]), event["type"] == "DELETED"
        if store.remove(body) if gone else store.put(body):
            heard(body, gone)

    async def login(**_: Any) -> kopf.ConnectionInfo:
        return await _connection_info(kube)

    kopf.on.login(registry=handlers)(login)
    kopf.on.event(API_GROUP, API_VERSION, PLURAL, registry=handlers)(on_event)
    return handlers


class _Backoffs:
    """Seconds between attempts of a request; without an end, as kopf gives up the whole operator at the end of them."""

    def __iter__(self) -> Iterator[float]:
        return chain((0.5, 1.0, 2.0, 4.0, 8.0), repeat(10.0))


def _settings() -> kopf.OperatorSettings:
    """kopf as a watcher and nothing else: no events posted, no scan of namespaces and CRDs."""
    result = kopf.OperatorSettings()
    result.posting.enabled = False
    result.scanning.disabled = True
    result.networking.error_backoffs = _Backoffs()
    return result


async def _connection_info(kube: Kube) -> kopf.ConnectionInfo:
    """What our client knows of the API server, in kopf's terms; asked for again when a token was refused."""
    known = await kube.connection()
    scheme, _, token = (known.authorization or "").partition(" ")
    return kopf.ConnectionInfo(
        server=known.server,
        ca_path=known.ca_path,
        ca_data=known.ca_data,
        insecure=known.insecure,
        scheme=scheme or None,
        token=token or None,
        certificate_path=known.certificate_path,
        private_key_path=known.private_key_path,
        proxy_url=known.proxy,
    )
