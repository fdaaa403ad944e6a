"""Watches a cluster for the replicas of its LLMDeployments: one list, then a watch, and again where that breaks.

The gateway's Role: `llmdeployments` and `endpointslices`, each list, watch.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
from kubernetes.aio import client, config
from kubernetes.aio.config.config_exception import ConfigException

from octavo_common.errors import ConfigError
from octavo_common.names import API_GROUP, API_VERSION, DEPLOYMENT_LABEL, PLURAL
from octavo_gateway.discovery import Publish
from octavo_gateway.slices import Manifest, fleet_of, wishes_of

log = logging.getLogger(__name__)

REQUEST_SECONDS: Final = 15.0
WATCH_SECONDS: Final = 570
SILENT_SECONDS: Final = 150.0  # the API server sends a bookmark each minute
TOGETHER_SECONDS: Final = 0.02  # changes that come within this are published as one
PAUSES: Final = (0.2, 10.0)
_JSON: Final = "application/json"
_LONGEST_LINE: Final = 16 * 2**20


class WatchError(Exception):
    """The API server refused, or did not answer."""


class EndpointSlices:
    """The LLMDeployments of some namespaces, and their pods; of all namespaces where none is named."""

    def __init__(self, namespaces: Sequence[str], kubeconfig: Path | None = None) -> None:
        self._places = [f"namespaces/{namespace}/" for namespace in dict.fromkeys(namespaces)] or [""]
        self._kubeconfig = kubeconfig
        self._changed = asyncio.Event()
        self._kept: dict[str, dict[tuple[str, str], Manifest]] = {}

    async def run(self, publish: Publish) -> None:
        """Publish what is there once all of it is known, and what changes, until cancelled.

        Raises:
            ConfigError: there is no cluster to be found.
        """
        async with _api(self._kubeconfig) as api, asyncio.TaskGroup() as group:
            for within in self._places:
                pods = f"/apis/discovery.k8s.io/v1/{within}endpointslices"
                models = f"/apis/{API_GROUP}/{API_VERSION}/{within}{PLURAL}"
                for path, selector in ((pods, DEPLOYMENT_LABEL), (models, "")):
                    group.create_task(self._follow(api, path, selector))
            await self._publish(publish)

    async def _publish(self, publish: Publish) -> None:
        while True:
            await self._changed.wait()
            await asyncio.sleep(TOGETHER_SECONDS)
            self._changed.clear()
            if len(self._kept) < 2 * len(self._places):  # a part of the fleet would pass for all of it
                continue
            slices = [each for path, kept in self._kept.items() if path.endswith("slices") for each in kept.values()]
            models = [each for path, kept in self._kept.items() if path.endswith(PLURAL) for each in kept.values()]
            publish(fleet_of(models, slices), wishes_of(models))

    async def _follow(self, api: client.ApiClient, path: str, selector: str) -> None:
        """Keep what is at `path`, until cancelled. What goes wrong is tried again."""
        pause = PAUSES[0]
        while True:
            try:
                version = await self._list(api, path, selector)
                pause = PAUSES[0]
                while True:
                    version = await self._watch(api, path, selector, version)
            except (WatchError, aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                level = logging.WARNING if pause == PAUSES[0] else logging.DEBUG
                log.log(level, "%s is listed again: %s", path.rpartition("/")[2], error or type(error).__name__)
            await asyncio.sleep(pause)
            pause = min(2 * pause, PAUSES[1])

    async def _list(self, api: client.ApiClient, path: str, selector: str) -> str:
        kept: dict[tuple[str, str], Manifest] = {}
        query, following = {"labelSelector": selector, "limit": "500"}, ""
        while True:
            timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
            answer = await _get(api, path, query | ({"continue": following} if following else {}), timeout)
            page = json.loads(await answer.response.read())
            if answer.status != 200:
                raise WatchError(f"{answer.status} {page.get('message', '')}")
            kept |= {_key(each): each for each in page["items"]}
            following = page["metadata"].get("continue") or ""
            if not following:
                self._kept[path] = kept
                self._changed.set()
                return str(page["metadata"]["resourceVersion"])

    async def _watch(self, api: client.ApiClient, path: str, selector: str, version: str) -> str:
        """One watch, to its end; how far it came. A version that is too old is listed again."""
        query = {"labelSelector": selector, "watch": "true", "allowWatchBookmarks": "true", "resourceVersion": version}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=REQUEST_SECONDS, sock_read=SILENT_SECONDS)
        answer = await _get(api, path, query | {"timeoutSeconds": str(WATCH_SECONDS)}, timeout)
        try:
            if answer.status != 200:
                raise WatchError(str(answer.status))
            async for line in _lines(answer.response.content):
                event = json.loads(line)
                body = event["object"]
                if event["type"] == "ERROR":
                    raise WatchError(str(body.get("message", "")))
                version = body["metadata"]["resourceVersion"]
                if event["type"] == "BOOKMARK":
                    continue
                if event["type"] == "DELETED":
                    self._kept[path].pop(_key(body), None)
                else:
                    self._kept[path][_key(body)] = body
                self._changed.set()
        finally:
            answer.response.close()
        return version


def _key(item: Manifest) -> tuple[str, str]:
    return item["metadata"]["namespace"], item["metadata"]["name"]


async def _get(api: client.ApiClient, path: str, query: dict[str, str], timeout: aiohttp.ClientTimeout) -> Any:
    request = await api.param_serialize(
        "GET",
        path,
        query_params=[entry for entry in query.items() if entry[1]],
        header_params={"Accept": _JSON},
        auth_settings=["BearerToken"],
    )
    return await api.call_api(*request, _request_timeout=timeout)


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Lines of any length up to a bound: a reader's own limit is lower than what an object may have."""
    rest = b""
    while data := await content.readany():
        *lines, rest = (rest + data).split(b"\n")
        if len(rest) > _LONGEST_LINE:
            raise WatchError("an event without end")
        for line in lines:
            if line:
                yield line


@asynccontextmanager
async def _api(kubeconfig: Path | None) -> AsyncIterator[client.ApiClient]:
    """The API server of `kubeconfig`; without one that of the cluster that this runs in, else of KUBECONFIG."""
    settings = client.Configuration()
    try:
        if kubeconfig is not None:
            await config.load_kube_config(  # type: ignore[no-untyped-call]
                config_file=str(kubeconfig), client_configuration=settings
            )
        else:
            try:
                config.load_incluster_config(client_configuration=settings)  # type: ignore[no-untyped-call]
            except ConfigException:
                await config.load_kube_config(client_configuration=settings)  # type: ignore[no-untyped-call]
    except ConfigException as error:
        raise ConfigError(f"--namespace: neither a service account nor a kubeconfig: {error}") from error
    async with client.ApiClient(settings) as api:
        api.user_agent = "octavo-gateway"
        yield api
