"""What a test asks the API server with: the official asynchronous client, taking and returning plain dicts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.dynamic import DynamicClient

Object = dict[str, Any]
T = TypeVar("T")

APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
MANAGER = "octavo-tests"


class Kube:
    """A client with a namespace of its own, which is where things are that do not say otherwise.

    Every call raises `kubernetes.aio.client.exceptions.ApiException`, with its `status`, where the server refuses.
    """

    def __init__(self, api: ApiClient, dynamic: Any, namespace: str) -> None:
        self.api = api
        self.dynamic = dynamic
        self.namespace = namespace

    @classmethod
    @contextlib.asynccontextmanager
    async def connect(cls, kubeconfig: Path, namespace: str = "default") -> AsyncIterator[Kube]:
        settings = Configuration()
        await config.load_kube_config(  # type: ignore[no-untyped-call]
            config_file=str(kubeconfig), client_configuration=settings
        )
        # The client's own cache file is named after the host: of an earlier server at the same port, that is.
        with tempfile.TemporaryDirectory(prefix="octavo-kube-client-") as folder:
            async with ApiClient(settings) as api:
                cache = str(Path(folder) / "discovery.json")
                dynamic = await DynamicClient(api, cache_file=cache)  # type: ignore[no-untyped-call]
                yield cls(api, dynamic, namespace)

    async def get(self, api_version: str, kind: str, name: str, namespace: str | None = None) -> Object:
        return await self._send("get", await self._path(api_version, kind, name, namespace))

    async def find(self, api_version: str, kind: str, name: str, namespace: str | None = None) -> Object | None:
        """None where there is none."""
        try:
            return await self.get(api_version, kind, name, namespace)
        except ApiException as error:
            if error.status != 404:
                raise
            return None

    async def list(
        self, api_version: str, kind: str, namespace: str | None = None, labels: str = "", fields: str = ""
    ) -> list[Object]:
        """`namespace` "" is all of them."""
        listed = await self.list_raw(api_version, kind, namespace, labels, fields)
        items: list[Object] = listed["items"]
        return [{"apiVersion": api_version, "kind": kind, **item} for item in items]

    async def list_raw(
        self, api_version: str, kind: str, namespace: str | None = None, labels: str = "", fields: str = ""
    ) -> Object:
        """The List object, with its resourceVersion."""
        path = await self._path(api_version, kind, None, namespace)
        return await self._send("get", path, query={"labelSelector": labels, "fieldSelector": fields})

    async def create(
        self, body: Object, *, dry_run: bool = False, manager: str = MANAGER, strict: bool = True
    ) -> Object:
        """`strict`: an unknown field is refused, not dropped. So it is by every other write here."""
        path = await self._path_of(body, named=False)
        return await self._send("post", path, body, query=_options(dry_run, manager, strict))

    async def replace(
        self, body: Object, *, subresource: str = "", dry_run: bool = False, manager: str = MANAGER
    ) -> Object:
        path = await self._path_of(body, subresource)
        return await self._send("put", path, body, query=_options(dry_run, manager, strict=True))

    async def patch(
        self, target: Object, change: Object, *, subresource: str = "", dry_run: bool = False, manager: str = MANAGER
    ) -> Object:
        """A merge patch of what `target` names."""
        path = await self._path_of(target, subresource)
        return await self._send("patch", path, change, MERGE, _options(dry_run, manager, strict=True))

    async def apply(
        self,
        body: Object,
        *,
        subresource: str = "",
        force: bool = True,
        dry_run: bool = False,
        manager: str = MANAGER,
    ) -> Object:
        """A server-side apply."""
        query = {**_options(dry_run, manager, strict=True), "force": str(force).lower()}
        return await self._send("patch", await self._path_of(body, subresource), body, APPLY, query)

    async def delete(self, target: Object, *, propagation: str = "Background", grace: int | None = None) -> None:
        """Of what is there: a missing one raises, as everywhere."""
        options = {"propagationPolicy": propagation} | ({} if grace is None else {"gracePeriodSeconds": grace})
        await self._send("delete", await self._path_of(target), options)

    async def delete_all(self, api_version: str, kind: str, labels: str = "", namespace: str | None = None) -> None:
        path = await self._path(api_version, kind, None, namespace)
        await self._send("delete", path, query={"labelSelector": labels})

    async def install_crd(self, crd: Object, timeout: float = 20) -> None:
        """Apply a CustomResourceDefinition and wait until its resource is served."""
        await self.apply(crd)
        spec, name = crd["spec"], crd["metadata"]["name"]
        versions = [version["name"] for version in spec["versions"] if version.get("served", True)]

        async def served() -> bool:
            found = await self.get("apiextensions.k8s.io/v1", "CustomResourceDefinition", name)
            listed = found.get("status", {}).get("conditions") or []
            conditions = {each["type"]: each["status"] for each in listed}
            if conditions.get("Established") != "True":
                return False
            for version in versions:
                path = f"/apis/{spec['group']}/{version}/{spec['names']['plural']}"
                await self._send("get", path, query={"limit": "1"})
            return True

        await self.until(served, timeout, f"{name} to be served", retry=(404, 503))

    async def watch(
        self,
        api_version: str,
        kind: str,
        namespace: str | None = None,
        *,
        since: str = "",
        labels: str = "",
        seconds: int = 30,
    ) -> AsyncIterator[tuple[str, Object]]:
        """One watch as the server gives it: (type, object) until it ends, ERROR events included, nothing retried."""
        path = await self._path(api_version, kind, None, namespace)
        query = {"watch": "true", "resourceVersion": since, "labelSelector": labels, "timeoutSeconds": str(seconds)}
        answer = await self._request("get", path, None, "", query)
        try:
            buffer = b""
            async for piece in answer.content.iter_any():
                *lines, buffer = (buffer + piece).split(b"\n")
                for line in lines:
                    event = json.loads(line)
                    yield event["type"], event["object"]
        finally:
            answer.close()

    async def until(
        self,
        check: Callable[[], Awaitable[T | None]],
        timeout: float = 20,
        what: str = "the condition",
        retry: tuple[int, ...] = (),
    ) -> T:
        """Poll until `check` returns something true, and return that. Raises TimeoutError, with the last value.

        API errors with a status in `retry` count as not yet; others are raised.
        """
        deadline = time.monotonic() + timeout
        last: object = None
        while time.monotonic() < deadline:
            try:
                found = await check()
                if found:
                    return found
                last = found
            except ApiException as error:
                if error.status not in retry:
                    raise
                last = error
            await asyncio.sleep(0.05)
        raise TimeoutError(f"waited {timeout} s for {what}; last seen: {last!r}")

    async def _path_of(self, target: Object, subresource: str = "", named: bool = True) -> str:
        metadata = target["metadata"]
        name = metadata["name"] if named else None
        path = await self._path(target["apiVersion"], target["kind"], name, metadata.get("namespace"))
        return f"{path}/{subresource}" if subresource else path

    async def _path(self, api_version: str, kind: str, name: str | None, namespace: str | None) -> str:
        resource = await self.dynamic.resources.get(api_version=api_version, kind=kind)
        where = self.namespace if namespace is None else namespace
        path: str = resource.path(name=name, namespace=where or None)
        return path

    async def _send(
        self, method: str, path: str, body: Object | None = None, content_type: str = "", query: Any = None
    ) -> Object:
        answer = await self._request(method, path, body, content_type, query or {})
        result: Object = await answer.json()
        return result

    async def _request(
        self, method: str, path: str, body: Object | None, content_type: str, query: dict[str, str]
    ) -> Any:
        pairs = [(name, value) for name, value in query.items() if value]
        more = {"content_type": content_type} if content_type else {}
        return await self.dynamic.request(method, path, body=body, query_params=pairs, serialize=False, **more)


def _options(dry_run: bool, manager: str, strict: bool) -> dict[str, str]:
    validation = "Strict" if strict else "Ignore"
    return {"dryRun": "All" if dry_run else "", "fieldManager": manager, "fieldValidation": validation}
