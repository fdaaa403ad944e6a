"""Thin kopf handlers: every event only says which key to look at. kopf watches, and writes nothing anywhere."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import chain, repeat
from typing import Any, Final

import kopf

from octavo_common.names import (
    API_GROUP,
    API_VERSION,
    CACHE_LABEL,
    DEPLOYMENT_LABEL,
    FIELD_MANAGER,
    MANAGED_BY_LABEL,
    PLURAL,
    REVISION_LABEL,
)
from octavo_operator.api import ManifestError, parse
from octavo_operator.kube import Kube
from octavo_operator.reconcile import Key
from octavo_operator.render import cache_name
from octavo_operator.workqueue import WorkQueue

CHILDREN: Final = (
    ("apps", "v1", "deployments"),
    ("", "v1", "services"),
    ("policy", "v1", "poddisruptionbudgets"),
    ("networking.k8s.io", "v1", "networkpolicies"),
    ("", "v1", "persistentvolumeclaims"),
    ("batch", "v1", "jobs"),
    ("", "v1", "pods"),
)
"""What every cluster has. Of other kinds kopf would wait for the definition; the resync looks after those."""


def registry(queue: WorkQueue[Key], known: dict[Key, Any], kube: Kube) -> kopf.OperatorRegistry:
    """Handlers that feed `queue`, and keep in `known` which LLMDeployments there are."""
    handlers = kopf.OperatorRegistry()

    async def on_deployment(event: Mapping[str, Any], **_: Any) -> None:
        metadata = event["object"]["metadata"]
        key, version = Key(metadata["namespace"], metadata["name"]), _version(event["object"])
        changed = known.get(key) != version
        if event["type"] == "DELETED":
            known.pop(key, None)
            add_sharers(key.namespace, version[2], urgent=False)
        else:
            known[key] = version
        queue.add(key, urgent=changed)

    async def on_child(event: Mapping[str, Any], **_: Any) -> None:
        metadata = event["object"]["metadata"]
        labels, namespace = metadata.get("labels", {}), metadata["namespace"]
        urgent = event["type"] == "DELETED"
        name = labels.get(DEPLOYMENT_LABEL) or labels.get(REVISION_LABEL)
        if name is not None:
            queue.add(Key(namespace, name), urgent=urgent)
        else:
            add_sharers(namespace, labels.get(CACHE_LABEL), urgent=urgent)

    def add_sharers(namespace: str, cache: str | None, *, urgent: bool) -> None:
        """What becomes of a shared cache is seen to by those that share it."""
        for key, (_, _, name) in known.items():
            if cache is not None and (key.namespace, name) == (namespace, cache):
                queue.add(key, urgent=urgent)

    async def login(**_: Any) -> kopf.ConnectionInfo:
        return await _connection_info(kube)

    kopf.on.login(registry=handlers)(login)
    kopf.on.event(API_GROUP, API_VERSION, PLURAL, registry=handlers)(on_deployment)
    for group, version, plural in CHILDREN:
        kopf.on.event(group, version, plural, registry=handlers, labels={MANAGED_BY_LABEL: FIELD_MANAGER})(on_child)
    return handlers


def _version(body: Mapping[str, Any]) -> tuple[str, int | None, str | None]:
    """What tells one state of an LLMDeployment from another, and the cache that it has a share in."""
    metadata, cache = body["metadata"], None
    if (body.get("spec") or {}).get("storage"):
        with suppress(ManifestError):
            cache = cache_name(parse(body))
    return metadata["uid"], metadata.get("generation"), cache


class _Backoffs:
    """Seconds between attempts of a request; without an end, as kopf gives up the whole operator at the end of them."""

    def __iter__(self) -> Iterator[float]:
        return chain((0.5, 1.0, 2.0, 4.0, 8.0), repeat(10.0))


def settings() -> kopf.OperatorSettings:
    """kopf as a watcher and nothing else: no events posted, no scan of namespaces and CRDs, only our children."""
    result = kopf.OperatorSettings()
    result.posting.enabled = False
    result.scanning.disabled = True
    result.networking.error_backoffs = _Backoffs()
    for group, version, plural in CHILDREN:
        result.watching.label_selectors[(group or version, plural)] = f"{MANAGED_BY_LABEL}={FIELD_MANAGER}"
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
