"""The objects, their versions, and the log of changes that watches read: what a write does, whoever asks for it."""

from __future__ import annotations

import asyncio
import bisect
import copy
import re
import secrets
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime

from kube_fixture.emulator import schema
from kube_fixture.emulator.apply import Owners, written
from kube_fixture.emulator.errors import ApiError, bad_request, conflict, invalid, not_found
from kube_fixture.emulator.resources import BUILT_IN, CRD, Object, Resource, defined_by

OLDEST_REVISION = 100
LOG_LENGTH = 10_000
NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")

Key = tuple[str, str, str, str]
"""group, plural, namespace (empty for a cluster's own), name"""


@dataclass(frozen=True)
class Change:
    """One entry of the log: the object as it became, or was when deleted, and as it was before."""

    revision: int
    resource: tuple[str, str]
    before: Object | None
    after: Object | None
    last: Object


@dataclass(frozen=True)
class Write:
    """How a request wants to write: as whom, to which subresource, for real or not, and how strictly."""

    manager: str
    subresource: str = ""
    dry_run: bool = False
    strict: bool = False


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Store:
    """Everything here is synchronous, so that each request is atomic on its event loop."""

    def __init__(self) -> None:
        self.revision = OLDEST_REVISION
        self.oldest = OLDEST_REVISION
        self.objects: dict[Key, Object] = {}
        self.owners: dict[Key, Owners] = {}
        self.log: list[Change] = []
        self.resources: dict[tuple[str, str, str], Resource] = {}
        self._news = asyncio.Event()
        for resource in BUILT_IN:
            self._register(resource)
        for name in ("default", "kube-system"):
            self.create(self.resource("", "v1", "namespaces"), "", {"metadata": {"name": name}}, Write("emulator"))

    def resource(self, group: str, version: str, plural: str) -> Resource:
        try:
            return self.resources[group, version, plural]
        except KeyError:
            raise ApiError(404, "NotFound", "the server could not find the requested resource") from None

    def since(self, revision: int) -> list[Change]:
        """What changed after `revision`. Raises ApiError 410 where that is no longer known."""
        if revision < self.oldest:
            raise ApiError(410, "Expired", f"too old resource version: {revision} ({self.oldest})")
        return self.log[bisect.bisect_right(self.log, revision, key=lambda change: change.revision) :]

    async def news(self) -> None:
        """Return at the next change."""
        await self._news.wait()

    def get(self, resource: Resource, namespace: str, name: str) -> Object:
        try:
            return self.objects[(*resource.key, namespace, name)]
        except KeyError:
            raise not_found(resource.qualified_name, name) from None

    def list(self, resource: Resource, namespace: str) -> list[Object]:
        """Those of all namespaces where `namespace` is empty."""
        return [
            found
            for (group, plural, where, _), found in sorted(self.objects.items())
            if (group, plural) == resource.key and namespace in {"", where}
        ]

    def create(self, resource: Resource, namespace: str, body: Object, write: Write) -> Object:
        new = copy.deepcopy(body)
        metadata = new.setdefault("metadata", {})
        if metadata.get("resourceVersion"):
            raise bad_request("resourceVersion should not be set on objects to be created")
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = metadata["generateName"] + secrets.token_hex(3)[:5]
        name = metadata.get("name", "")
        if not NAME.fullmatch(name) or len(name) > 253:
            raise invalid(resource.qualified_name, name, [("metadata.name", "a lowercase RFC 1123 subdomain")])
        key = (*resource.key, namespace, name)
        if key in self.objects:
            raise ApiError(409, "AlreadyExists", f'{resource.qualified_name} "{name}" already exists')
        if namespace:
            home = self.get(self.resource("", "v1", "namespaces"), "", namespace)
            if "deletionTimestamp" in home["metadata"]:
                raise ApiError(403, "Forbidden", f"namespace {namespace} is being terminated")
        metadata |= {"uid": str(uuid.uuid4()), "creationTimestamp": now()}
        for field in ("deletionTimestamp", "managedFields", "generation", "selfLink"):
            metadata.pop(field, None)
        if resource.generation:
            metadata["generation"] = 1
        if resource.namespaced:
            metadata["namespace"] = namespace
        if resource.status:
            new.pop("status", None)
            if not resource.custom:
                new["status"] = {"phase": "Pending"} if resource.plural == "pods" else {}
        if resource.plural == "deployments":
            new.setdefault("spec", {}).setdefault("replicas", 1)
        self._admit(resource, new, write)
        return self._store(resource, key, None, new, write)

    def update(self, resource: Resource, old: Object, new: Object, write: Write) -> Object:
        """Replace `old` by `new`, less what the request may not change: all but the status, or the status alone."""
        new = copy.deepcopy(new)
        was, metadata = old["metadata"], new.setdefault("metadata", {})
        version, uid = metadata.get("resourceVersion"), metadata.get("uid")
        if version and version != was["resourceVersion"]:
            why = "the object has been modified; please apply your changes to the latest version and try again"
            raise conflict(resource.qualified_name, was["name"], why)
        if uid and uid != was["uid"]:
            raise conflict(resource.qualified_name, was["name"], f"uid {uid} is not {was['uid']}")
        if write.subresource == "status":
            new = {**copy.deepcopy(old), "status": new.get("status")}
            if new["status"] is None:
                del new["status"]
        else:
            for field in ("name", "namespace", "uid", "creationTimestamp", "generation", "deletionTimestamp"):
                metadata.pop(field, None)
                if field in was:
                    metadata[field] = was[field]
            metadata.pop("managedFields", None)
            if resource.status:
                new.pop("status", None)
                if "status" in old:
                    new["status"] = old["status"]
        new["metadata"]["resourceVersion"] = was["resourceVersion"]
        self._admit(resource, new, write)
        if new == old:
            return old
        if resource.generation and _desired(resource, new) != _desired(resource, old):
            new["metadata"]["generation"] += 1
        return self._store(resource, self._key(resource, old), old, new, write)

    def delete(self, resource: Resource, old: Object, write: Write) -> Object:
        """Remove it, or mark it as to be deleted while it has finalizers."""
        if old["metadata"].get("finalizers"):
            if "deletionTimestamp" in old["metadata"]:
                return old
            marked = copy.deepcopy(old)
            marked["metadata"] |= {"deletionTimestamp": now(), "deletionGracePeriodSeconds": 0}
            if resource.generation:
                marked["metadata"]["generation"] += 1
            return self._store(resource, self._key(resource, old), old, marked, write)
        if not write.dry_run:
            self._remove(resource, self._key(resource, old), old)
        return old

    def _admit(self, resource: Resource, new: Object, write: Write) -> None:
        name = new["metadata"]["name"]
        new |= {"apiVersion": resource.api_version, "kind": resource.kind}
        if resource == CRD and not all(new.get("spec", {}).get(field) for field in ("group", "names", "versions")):
            raise invalid(resource.qualified_name, name, [("spec", "group, names and versions are required")])
        if resource.schema is None:
            return
        unknown = schema.prune(new, resource.schema)
        if unknown and write.strict:
            fields = ", ".join(f'unknown field "{path}"' for path in unknown)
            raise bad_request(f"strict decoding error: {fields}")
        schema.default(new, resource.schema)
        wrong = list(schema.faults(new, resource.validator))
        if wrong:
            raise invalid(resource.qualified_name, name, wrong)

    def _store(self, resource: Resource, key: Key, old: Object | None, new: Object, write: Write) -> Object:
        if write.dry_run:
            return new
        self.revision += 1
        new["metadata"]["resourceVersion"] = str(self.revision)
        self.objects[key] = new
        owners = self.owners.setdefault(key, {})
        written(old or {}, new, resource.schema, owners, write.manager, write.subresource)
        self._note(Change(self.revision, resource.key, old, new, new))
        if resource == CRD and old is None:
            conditions = [{"type": kind, "status": "True"} for kind in ("NamesAccepted", "Established")]
            established = {**new, "status": {"conditions": conditions}}
            new = self.update(resource, new, established, Write("emulator", subresource="status"))
        if resource == CRD:
            for served in defined_by(new):
                self._register(served)
        if "deletionTimestamp" in new["metadata"] and not new["metadata"].get("finalizers"):
            self._remove(resource, key, new)
        return new

    def _remove(self, resource: Resource, key: Key, old: Object) -> None:
        contents: list[Key] = []
        if resource.plural == "namespaces":
            contents = [found for found in self.objects if found[2] == old["metadata"]["name"]]
        elif resource == CRD:
            names = (old["spec"]["group"], old["spec"]["names"]["plural"])
            contents = [found for found in self.objects if found[:2] == names]
            self.resources = {name: known for name, known in self.resources.items() if known.key != names}
        for inner in contents:
            self._drop(inner[:2], inner, self.objects[inner])
        self._drop(resource.key, key, old)

    def _drop(self, resource: tuple[str, str], key: Key, old: Object) -> None:
        del self.objects[key]
        self.owners.pop(key, None)
        self.revision += 1
        last = {**old, "metadata": {**old["metadata"], "resourceVersion": str(self.revision)}}
        self._note(Change(self.revision, resource, old, None, last))

    def _note(self, change: Change) -> None:
        self.log.append(change)
        if len(self.log) > LOG_LENGTH:
            self.oldest = self.log[LOG_LENGTH // 2].revision
            del self.log[: LOG_LENGTH // 2 + 1]
        self._news.set()
        self._news = asyncio.Event()

    def _register(self, resource: Resource) -> None:
        self.resources[resource.group, resource.version, resource.plural] = resource

    @staticmethod
    def _key(resource: Resource, held: Object) -> Key:
        return (*resource.key, held["metadata"].get("namespace", ""), held["metadata"]["name"])


def _desired(resource: Resource, held: Object) -> Object:
    """What a generation counts changes of."""
    unwanted = {"metadata", "status"} if resource.status else {"metadata"}
    return {name: value for name, value in held.items() if name not in unwanted}
