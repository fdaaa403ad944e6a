"""The emulator's HTTP: paths, discovery, lists and watches, and the verbs on the store.

Written on aiohttp, not on kmock: kmock answers a watch with everything there is as ADDED, whatever resourceVersion it
asks for, and has no 410, no subresources, no apply and one answer (a merge) to PUT and PATCH; a handler of its cannot
be cancelled when the client goes. All of its verbs would be replaced, and what is left is a port.
"""

from __future__ import annotations

import asyncio
import copy
import json
import re
from typing import Any

import yaml
from aiohttp import web

from kube_fixture.emulator import schema
from kube_fixture.emulator.apply import apply
from kube_fixture.emulator.discovery import discovery
from kube_fixture.emulator.errors import ApiError, bad_request, conflict, invalid, not_allowed
from kube_fixture.emulator.resources import Object, Resource
from kube_fixture.emulator.scale import scale_of, scaled
from kube_fixture.emulator.selectors import Matcher, matcher
from kube_fixture.emulator.store import Change, Store, Write

PATH = re.compile(
    r"/(?:api/(?P<core>v1)|apis/(?P<group>[^/]+)/(?P<version>[^/]+))"
    r"(?:/namespaces/(?P<namespace>[^/]+)(?=/(?!status$|finalize$)))?"
    r"/(?P<plural>[^/]+)(?:/(?P<name>[^/]+))?(?:/(?P<sub>[^/]+))?"
)
APPLY, MERGE = "application/apply-patch+yaml", "application/merge-patch+json"


class Emulator:
    """An API server for what Octavo's operator needs, and no more. `handle` answers any request to it."""

    def __init__(self) -> None:
        self.store = Store()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        try:
            path = PATH.fullmatch(request.path)
            if path is None:
                return web.json_response(discovery(request.path, self.store.resources.values()))
            return await self._resource(request, path)
        except ApiError as error:
            return web.json_response(error.status(), status=error.code)

    async def _resource(self, request: web.Request, path: re.Match[str]) -> web.StreamResponse:
        resource = self.store.resource(path["group"] or "", path["core"] or path["version"], path["plural"])
        namespace, name, sub = path["namespace"] or "", path["name"], path["sub"] or ""
        if (sub and sub not in resource.subresources) or (name and resource.namespaced and not namespace):
            raise ApiError(404, "NotFound", "the server could not find the requested resource")
        write = Write(
            manager=request.query.get("fieldManager") or request.headers.get("User-Agent", "unknown").split("/")[0],
            subresource=sub,
            dry_run="dryRun" in request.query,
            strict=request.query.get("fieldValidation") == "Strict",
        )
        body = self._decoded(await request.read())
        if name is None:
            return await self._collection(request, resource, namespace, body, write)
        if request.method in {"PUT", "PATCH"}:
            self._same(body, resource, namespace, name)
        if request.method == "PATCH" and request.content_type == APPLY:
            return self._apply(request, resource, namespace, name, body, write)
        held = self.store.get(resource, namespace, name)
        if request.method == "GET":
            return web.json_response(scale_of(resource, held) if sub == "scale" else held)
        if request.method == "PUT":
            return web.json_response(self._put(resource, held, body, write))
        if request.method == "PATCH":
            return web.json_response(self._patch(request, resource, held, body, write))
        if request.method == "DELETE" and not sub:
            return web.json_response(self._delete(resource, held, body, write))
        raise not_allowed()

    async def _collection(
        self, request: web.Request, resource: Resource, namespace: str, body: Object, write: Write
    ) -> web.StreamResponse:
        if request.method == "POST":
            self._same(body, resource, namespace, None)
            return web.json_response(self.store.create(resource, namespace, body, write), status=201)
        matches = matcher(request.query.get("labelSelector", ""), request.query.get("fieldSelector", ""))
        if request.method == "GET" and request.query.get("watch") in {"1", "true", "True"}:
            return await self._watch(request, resource, namespace, matches)
        listed = self._list(resource, namespace, matches)
        if request.method == "DELETE":
            for held in listed["items"]:
                self.store.delete(resource, held, write)
        elif request.method != "GET":
            raise not_allowed()
        return web.json_response(listed)

    def _put(self, resource: Resource, held: Object, body: Object, write: Write) -> Object:
        if write.subresource == "scale":
            return scale_of(resource, self.store.update(resource, held, scaled(resource, held, body), write))
        if not body.get("metadata", {}).get("resourceVersion") and not resource.unconditional_update:
            why = [("metadata.resourceVersion", "0: must be specified for an update")]
            raise invalid(resource.qualified_name, held["metadata"]["name"], why)
        return self.store.update(resource, held, body, write)

    def _patch(self, request: web.Request, resource: Resource, held: Object, body: Object, write: Write) -> Object:
        if request.content_type != MERGE:
            raise ApiError(415, "UnsupportedMediaType", f"the emulator takes {MERGE} and {APPLY}")
        if write.subresource == "scale":
            return self._put(resource, held, merge_patch(scale_of(resource, held), body), write)
        new = merge_patch(held, body)
        self._keeps_uid(resource, held, new.get("metadata", {}))
        return self.store.update(resource, held, new, write)

    def _apply(
        self, request: web.Request, resource: Resource, namespace: str, name: str, body: Object, write: Write
    ) -> web.Response:
        if not request.query.get("fieldManager"):
            raise bad_request("PatchOptions.meta.k8s.io is invalid: fieldManager: Required value: for apply patch")
        if body.get("metadata", {}).get("managedFields"):
            raise bad_request("metadata.managedFields must be nil")
        key = (*resource.key, namespace, name)
        held = self.store.objects.get(key)
        if held is None and write.subresource:
            self.store.get(resource, namespace, name)
        owners = copy.deepcopy(self.store.owners.get(key, {}))
        config = {part: value for part, value in body.items() if part == "status" or write.subresource != "status"}
        if resource.status and write.subresource != "status":
            config.pop("status", None)
        unknown = schema.prune(copy.deepcopy(config), resource.schema) if resource.schema else []
        if unknown:
            undeclared = "; ".join(f".{path}: field not declared in schema" for path in unknown)
            raise ApiError(500, "InternalError", f"failed to create typed patch object: {undeclared}")
        start: Object = copy.deepcopy(held) if held else {}
        force = request.query.get("force") in {"1", "true", "True"}
        merged = apply(start, config, resource.schema, owners, write.manager, write.subresource, force=force)
        if held is None:
            if body.get("metadata", {}).get("uid"):
                raise conflict(resource.qualified_name, name, "uid mismatch: no existing object was found")
            merged["metadata"] = {**merged.get("metadata", {}), "name": name}
            result = self.store.create(resource, namespace, merged, write)
        else:
            precondition = body.get("metadata", {})
            self._keeps_uid(resource, held, {**held["metadata"], **precondition})
            merged["metadata"] |= {part: precondition[part] for part in ("resourceVersion",) if part in precondition}
            result = self.store.update(resource, held, merged, write)
        if not write.dry_run and key in self.store.objects:
            self.store.owners[key] = owners
        return web.json_response(result, status=200 if held else 201)

    @staticmethod
    def _keeps_uid(resource: Resource, held: Object, metadata: Object) -> None:
        """In a patch another uid is an invalid change; in a PUT it is a conflict."""
        if metadata.get("uid") != held["metadata"]["uid"]:
            raise invalid(resource.qualified_name, held["metadata"]["name"], [("metadata.uid", "field is immutable")])

    def _delete(self, resource: Resource, held: Object, options: Object, write: Write) -> Object:
        for field, wanted in (options.get("preconditions") or {}).items():
            if held["metadata"].get(field) != wanted:
                raise conflict(resource.qualified_name, held["metadata"]["name"], f"precondition failed: {field}")
        left = self.store.delete(resource, held, write)
        if "deletionTimestamp" in left["metadata"]:
            return left
        details = {"name": held["metadata"]["name"], "group": resource.group, "kind": resource.plural}
        return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}

    def _list(self, resource: Resource, namespace: str, matches: Matcher) -> dict[str, Any]:
        return {
            "kind": f"{resource.kind}List",
            "apiVersion": resource.api_version,
            "metadata": {"resourceVersion": str(self.store.revision)},
            "items": [held for held in self.store.list(resource, namespace) if matches(held)],
        }

    async def _watch(
        self, request: web.Request, resource: Resource, namespace: str, matches: Matcher
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        await response.prepare(request)

        async def send(kind: str, what: Object) -> None:
            await response.write(json.dumps({"type": kind, "object": what}).encode() + b"\n")

        asked = request.query.get("resourceVersion", "")
        seen = int(asked) if asked.isdigit() else 0
        if not seen:
            seen = self.store.revision
            for held in [held for held in self.store.list(resource, namespace) if matches(held)]:
                await send("ADDED", held)
        seconds = float(request.query.get("timeoutSeconds") or 1800)
        try:
            async with asyncio.timeout(seconds):
                while True:
                    for change in self.store.since(seen):
                        seen = change.revision
                        if change.resource == resource.key and namespace in {"", _namespace(change)}:
                            kind = _event(change, matches)
                            if kind:
                                await send(kind, change.last)
                    if seen >= self.store.revision:
                        await self.store.news()
        except TimeoutError:
            pass
        except ApiError as expired:
            await send("ERROR", expired.status())
        return response

    @staticmethod
    def _decoded(body: bytes) -> Object:
        try:
            decoded = yaml.safe_load(body) if body[:1] not in {b"{", b""} else json.loads(body or b"{}")
        except (ValueError, yaml.YAMLError) as error:
            raise bad_request(f"the body could not be decoded: {error}") from None
        if not isinstance(decoded, dict):
            raise bad_request("the body is not an object")
        return decoded

    @staticmethod
    def _same(body: Object, resource: Resource, namespace: str, name: str | None) -> None:
        """Refuse an object that says it is another than the one in the path."""
        if body.get("kind", resource.kind) not in {resource.kind, "Scale"}:
            raise bad_request(f"the kind in the data ({body['kind']}) does not match {resource.kind}")
        metadata = body.get("metadata") or {}
        if resource.namespaced and not namespace:
            raise not_allowed()
        if namespace and metadata.get("namespace", namespace) != namespace:
            raise bad_request("the namespace of the provided object does not match the namespace sent on the request")
        if name is not None and metadata.get("name", name) != name:
            raise bad_request(f"the name of the object ({metadata['name']}) does not match that on the URL ({name})")


def merge_patch(value: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(value) if isinstance(value, dict) else {}
    for name, item in patch.items():
        if item is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), item)
    return merged


def _event(change: Change, matches: Matcher) -> str | None:
    """What a watch with a selector is told: an object that stops matching is DELETED for it."""
    before = change.before is not None and matches(change.before)
    after = change.after is not None and matches(change.after)
    if after:
        return "MODIFIED" if before else "ADDED"
    return "DELETED" if before else None


def _namespace(change: Change) -> str:
    return str(change.last["metadata"].get("namespace", ""))
