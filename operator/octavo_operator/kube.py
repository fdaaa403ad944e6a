"""The only module that talks to the API server. Reads and writes plain dicts; every request has a timeout."""

import hashlib
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

import aiohttp
from kubernetes.aio import client, config
from kubernetes.aio.config.config_exception import ConfigException

from octavo_common.names import API_GROUP, API_VERSION, FIELD_MANAGER, KIND, MANAGED_BY_LABEL
from octavo_operator.kinds import collection

Manifest = dict[str, Any]

REQUEST_SECONDS: Final = 15.0
WATCH_SECONDS: Final = 570
"""After which the API server is asked to end a watch, so that no lost connection is one for ever."""
SILENT_SECONDS: Final = 150.0
"""Of a watch, before it is taken for lost: the API server sends a bookmark each minute."""
PAGE: Final = 500
OURS: Final = f"{MANAGED_BY_LABEL}={FIELD_MANAGER}"
_APPLY: Final = "application/apply-patch+yaml"
_MERGE: Final = "application/merge-patch+json"
_JSON: Final = "application/json"
_LONGEST_EVENT: Final = 1024

log = logging.getLogger(__name__)


class KubeError(Exception):
    """The API server refused, or did not answer. `status` is HTTP's, 0 where there was no answer.

    `retry_after` are seconds that the server asked to wait.
    """

    def __init__(self, status: int, message: str, retry_after: float = 0.0) -> None:
        super().__init__(f"{status}: {message}" if status else message)
        self.status = status
        self.message = message
        self.retry_after = retry_after

    @property
    def is_refusal(self) -> bool:
        """Whether the same request would be refused again: the request is wrong, or not allowed."""
        return self.status in {400, 403, 422} or (self.status == 500 and "typed patch" in self.message)


@dataclass(frozen=True, slots=True)
class Connection:
    """What kopf, which brings its own client, must know to watch the same API server. `authorization` is the header."""

    server: str
    authorization: str | None
    ca_path: str | None
    ca_data: str | bytes | None
    insecure: bool
    certificate_path: str | None
    private_key_path: str | None
    proxy: str | None


class Kube:
    """A connection to one API server. While `may_write` says no, nothing but a Lease is written: a KubeError."""

    def __init__(self, api: client.ApiClient, may_write: Callable[[], bool] = lambda: True) -> None:
        self.api = api
        self._may_write = may_write

    async def connection(self) -> Connection:
        """Where the API server is and how to identify to it, with a token that is still good."""
        known = self.api.configuration
        return Connection(
            server=known.host,
            authorization=await known.get_api_key_with_prefix("BearerToken", alias="authorization"),
            ca_path=known.ssl_ca_cert,
            ca_data=known.ca_cert_data,
            insecure=not known.verify_ssl,
            certificate_path=known.cert_file,
            private_key_path=known.key_file,
            proxy=known.proxy,
        )

    async def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """One object, None where there is none."""
        return await self.get_live(kind, namespace, name)

    async def get_live(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """The same, from the API server itself, whatever is remembered."""
        try:
            return await self._request("GET", f"{collection(kind, namespace)}/{name}")
        except KubeError as error:
            if error.status == 404:
                return None
            raise

    async def find(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """The same by a list of one, for kinds that the operator's Role lets it list but not get.

        Raises a KubeError, 404, where the cluster has no such kind.
        """
        found = await self._list(kind, namespace, {"fieldSelector": f"metadata.name={name}"})
        return found[0] if found else None

    async def find_ours(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """The same of an object that carries our label: nobody else's is looked for."""
        query = {"fieldSelector": f"metadata.name={name}", "labelSelector": OURS}
        found = await self._list(kind, namespace, query)
        return found[0] if found else None

    async def select(self, kind: str, namespace: str, selector: str = "") -> list[Manifest]:
        """The objects of a kind whose labels `selector` means, all of them when it is empty; by name."""
        found = await self._list(kind, namespace, {"labelSelector": selector} if selector else {})
        return sorted(found, key=lambda each: str(each["metadata"]["name"]))

    async def pages(self, kind: str, namespace: str | None, selector: str) -> AsyncIterator[Manifest]:
        """All objects of a kind, in one namespace or (None) in all, as lists of some hundreds; all of one version."""
        query = {"labelSelector": selector} if selector else {}
        following = ""
        while True:
            more = {"continue": following} if following else {}
            page = await self._request("GET", collection(kind, namespace), query=query | more | {"limit": str(PAGE)})
            # The items of a list do not say what they are; the list does.
            page["items"] = [{"apiVersion": page["apiVersion"], "kind": kind} | each for each in page["items"]]
            yield page
            following = page["metadata"].get("continue") or ""
            if not following:
                return

    async def watch(
        self, kind: str, namespace: str | None, selector: str, version: str
    ) -> AsyncIterator[tuple[str, Manifest]]:
        """What happens to a kind after `version`, as (ADDED, MODIFIED, DELETED or BOOKMARK, object), until it breaks.

        Raises:
            KubeError: the watch could not begin, or cannot go on from here: 410 where `version` is too old.
        """
        query = {"watch": "true", "allowWatchBookmarks": "true", "resourceVersion": version}
        query |= {"timeoutSeconds": str(WATCH_SECONDS)} | ({"labelSelector": selector} if selector else {})
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=REQUEST_SECONDS, sock_read=SILENT_SECONDS)
        answer = await self._send("GET", collection(kind, namespace), None, _JSON, query, timeout)
        try:
            if answer.status >= 300:
                raise _error(answer.status, await _body(answer), answer.headers.get("Retry-After", ""))
            async for line in _lines(answer.response.content):
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise KubeError(int(event["object"].get("code") or 0), str(event["object"].get("message", "")))
                yield event["type"], event["object"]
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            log.debug("a watch of %s broke: %s", kind, error)
        finally:
            connection = answer.response.connection
            if connection is not None and connection.transport is not None:
                connection.transport.abort()  # a close in good order would wait for the other side's
            answer.response.close()

    async def create_by_apply(self, manifest: Manifest) -> Manifest:
        """Server-side apply of an object that was not there.

        Unforced: should a stranger's have appeared meanwhile, the conflict over its fields raises a KubeError with 409.
        """
        return await self._apply(manifest, force=False)

    async def update_by_apply(self, manifest: Manifest, uid: str) -> Manifest:
        """Forced server-side apply of the object with this uid; if it is gone, nothing is made: a KubeError, 409."""
        pinned = manifest | {"metadata": manifest["metadata"] | {"uid": uid}}
        return await self._apply(pinned, force=True)

    async def preview(self, manifest: Manifest, manager: str) -> Manifest:
        """What a forced server-side apply by `manager` would give; nothing is changed."""
        return await self._apply(manifest, force=True, manager=manager, dry_run=True)

    async def delete(self, live: Manifest) -> None:
        """Delete this very object, and what it owns after it; 409 if another has taken its name. Gone is gone."""
        metadata = live["metadata"]
        path = f"{collection(live['kind'], metadata['namespace'])}/{metadata['name']}"
        body = {"propagationPolicy": "Background", "preconditions": {"uid": metadata["uid"]}}
        try:
            await self._request("DELETE", path, body)
        except KubeError as error:
            if error.status != 404:
                raise

    async def patch_status(self, live: Manifest, patch: Manifest) -> Manifest:
        """Merge `patch` into the status of this very LLMDeployment; 409 if another has taken its name."""
        metadata = live["metadata"]
        path = f"{collection(KIND, metadata['namespace'])}/{metadata['name']}/status"
        body = {"metadata": {"uid": metadata["uid"]}, "status": patch}
        return await self._request("PATCH", path, body, _MERGE, {"fieldManager": FIELD_MANAGER})

    async def annotate(self, live: Mapping[str, Any], annotations: Mapping[str, str | None]) -> Manifest:
        """Merge annotations into this very object's, None takes one away; 409 if another has taken its name."""
        metadata = live["metadata"]
        path = f"{collection(live['kind'], metadata['namespace'])}/{metadata['name']}"
        body = {"metadata": {"uid": metadata["uid"], "annotations": dict(annotations)}}
        return await self._request("PATCH", path, body, _MERGE, {"fieldManager": FIELD_MANAGER})

    async def record(self, live: Manifest, kind: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        """An Event about an LLMDeployment; what is told again is counted on the first. Best effort: one that is lost is
        logged, and hinders nothing.
        """
        event = event_of(live, kind, reason, message)
        metadata = event["metadata"]
        try:
            try:
                await self.create("Event", metadata["namespace"], event)
            except KubeError as error:
                if error.status != 409:
                    raise
                # By its name it says the same of the same object.
                again = {"lastTimestamp": event["lastTimestamp"]}
                path = f"{collection('Event', metadata['namespace'])}/{metadata['name']}"
                told = await self._request("PATCH", path, again, _MERGE, {"fieldManager": FIELD_MANAGER})
                counted = {"count": int(told.get("count") or 1) + 1}
                await self._request("PATCH", path, counted, _MERGE, {"fieldManager": FIELD_MANAGER})
        except KubeError as error:
            log.warning("an event of %s/%s was lost: %s", metadata["namespace"], live["metadata"]["name"], error)

    async def create(self, kind: str, namespace: str, body: Manifest) -> Manifest:
        """A new object, under the name that `body` says; 409 where there is one."""
        return await self._request("POST", collection(kind, namespace), body, query={"fieldManager": FIELD_MANAGER})

    async def replace(self, kind: str, body: Manifest) -> Manifest:
        """An object as a whole; 409 where its resourceVersion is not the one in `body`."""
        metadata = body["metadata"]
        path = f"{collection(kind, metadata['namespace'])}/{metadata['name']}"
        return await self._request("PUT", path, body, query={"fieldManager": FIELD_MANAGER})

    async def serves_our_api(self) -> bool:
        """Whether the CRD is installed and served."""
        try:
            await self._request("GET", f"/apis/{API_GROUP}/{API_VERSION}")
        except KubeError as error:
            if error.status == 404:
                return False
            raise
        return True

    async def _apply(
        self, manifest: Manifest, *, force: bool, manager: str = FIELD_MANAGER, dry_run: bool = False
    ) -> Manifest:
        metadata = manifest["metadata"]
        path = f"{collection(manifest['kind'], metadata['namespace'])}/{metadata['name']}"
        query = {"fieldManager": manager, "force": str(force).lower(), "fieldValidation": "Strict"}
        query |= {"dryRun": "All"} if dry_run else {}
        return await self._request("PATCH", path, manifest, _APPLY, query)

    async def _list(self, kind: str, namespace: str, query: Mapping[str, str]) -> list[Manifest]:
        listed = await self._request("GET", collection(kind, namespace), query=query)
        return [{"apiVersion": listed["apiVersion"], "kind": kind} | item for item in listed["items"]]

    async def _request(
        self,
        method: str,
        path: str,
        body: Manifest | None = None,
        content_type: str = _JSON,
        query: Mapping[str, str] | None = None,
    ) -> Manifest:
        """Raises KubeError for every answer but success, and where there is none."""
        if method != "GET" and not self._may_write():
            raise KubeError(0, "nothing is written: the Lease may be another's by now")
        timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
        answer = await self._send(method, path, body, content_type, query, timeout)
        text = await _body(answer)
        if answer.status >= 300:
            raise _error(answer.status, text, answer.headers.get("Retry-After", ""))
        result: Manifest = json.loads(text)
        return result

    async def _send(
        self,
        method: str,
        path: str,
        body: Manifest | None,
        content_type: str,
        query: Mapping[str, str] | None,
        timeout: aiohttp.ClientTimeout,
    ) -> Any:
        """The head of an answer, whatever its status. Raises KubeError where there is none."""
        request = await self.api.param_serialize(
            method,
            path,
            query_params=list((query or {}).items()),
            header_params={"Accept": _JSON, "Content-Type": content_type},
            body=body,
            auth_settings=["BearerToken"],
        )
        try:
            return await self.api.call_api(*request, _request_timeout=timeout)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _silence(error) from error


@asynccontextmanager
async def connect(kubeconfig: Path | None = None) -> AsyncIterator[Kube]:
    """The API server of `kubeconfig`; without one that of the cluster that this runs in, else of KUBECONFIG.

    Raises:
        KubeError: there is none of them.
    """
    settings = client.Configuration()
    try:
        if kubeconfig is not None:
            await config.load_kube_config(  # type: ignore[no-untyped-call]
                config_file=str(kubeconfig), client_configuration=settings
            )
        else:
            await _load_default_config(settings)
    except ConfigException as error:
        raise KubeError(0, f"no cluster: neither a service account nor a kubeconfig: {error}") from error
    async with client.ApiClient(settings) as api:
        api.user_agent = FIELD_MANAGER
        yield Kube(api)


def current_namespace(kubeconfig: Path | None = None) -> str:
    """The namespace of the kubeconfig's current context, "default" where it names none.

    Raises:
        KubeError: there is no kubeconfig, or no current context in it.
    """
    try:
        _, current = config.list_kube_config_contexts(  # type: ignore[no-untyped-call]
            str(kubeconfig) if kubeconfig is not None else None
        )
    except ConfigException as error:
        raise KubeError(0, f"no cluster: {error}") from error
    return str(current["context"].get("namespace") or "default")


async def _load_default_config(settings: client.Configuration) -> None:
    try:
        config.load_incluster_config(client_configuration=settings)  # type: ignore[no-untyped-call]
    except ConfigException:
        await config.load_kube_config(client_configuration=settings)  # type: ignore[no-untyped-call]


async def _body(answer: Any) -> bytes:
    try:
        text: bytes = await answer.read()
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise _silence(error) from error
    return text


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Whole lines, however long: an object has up to some megabytes."""
    rest: list[bytes] = []
    async for piece in content.iter_any():
        *lines, last = piece.split(b"\n")
        if lines:
            yield b"".join([*rest, lines[0]])
            rest = []
            for line in lines[1:]:
                yield line
        if last:
            rest.append(last)


def _silence(error: BaseException) -> KubeError:
    return KubeError(0, f"no answer from the API server: {error or type(error).__name__}")


def event_of(live: Manifest, kind: Literal["Normal", "Warning"], reason: str, message: str) -> Manifest:
    """The Event that tells this of an LLMDeployment, under a name that stands for what it tells."""
    metadata, now = live["metadata"], datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    about = {"apiVersion": live["apiVersion"], "kind": live["kind"]}
    about |= {key: metadata[key] for key in ("name", "namespace", "uid", "resourceVersion")}
    message = message if len(message) <= _LONGEST_EVENT else message[: _LONGEST_EVENT - 1] + "…"
    told = hashlib.sha256(json.dumps([metadata["uid"], kind, reason, message]).encode()).hexdigest()[:16]
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{metadata['name']}.{told}", "namespace": metadata["namespace"]},
        "involvedObject": about,
        "type": kind,
        "reason": reason,
        "message": message,
        "source": {"component": FIELD_MANAGER},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }


def _error(status: int, text: bytes, retry_after: str) -> KubeError:
    try:
        message = str(json.loads(text)["message"])
    except (ValueError, TypeError, KeyError):
        message = text.decode(errors="replace")[:500]
    return KubeError(status, message, float(retry_after) if retry_after.isdigit() else 0.0)
