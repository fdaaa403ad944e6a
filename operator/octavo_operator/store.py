"""What the API server was last heard to hold of one kind. A cache, and so a hint: what creates looks again, live.

Objects are kept as JSON text, a tenth of what the same takes as dicts, and whoever reads one gets a copy of its own.
Whichever way an object comes, by a list, a watch or the answer to a write, the newest version of it stays.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from octavo_common.names import CACHE_LABEL, DEPLOYMENT_LABEL, REVISION_LABEL

Manifest = dict[str, Any]
Name = tuple[str, str]
"""Namespace and name."""

INDEXED: Final = (DEPLOYMENT_LABEL, CACHE_LABEL, REVISION_LABEL)


@dataclass(frozen=True, slots=True)
class _Entry:
    uid: str
    version: int
    labels: tuple[tuple[str, str], ...]  # those of INDEXED
    text: bytes


class Store:
    """The objects of one kind."""

    def __init__(self) -> None:
        self._objects: dict[str, dict[str, _Entry]] = {}  # by namespace, then by name
        self._labelled: dict[tuple[str, str, str], set[str]] = {}  # names by namespace, label and value

    def __len__(self) -> int:
        return sum(len(each) for each in self._objects.values())

    def put(self, body: Manifest) -> bool:
        """Keep `body`. Whether that is news: an older version, or the same one, is not."""
        metadata = body["metadata"]
        namespace, name = metadata["namespace"], metadata["name"]
        before, version = self._objects.get(namespace, {}).get(name), version_of(body)
        if before is not None and before.version >= version:
            return False
        if before is not None:
            self._drop(namespace, name)
        labels = metadata.get("labels") or {}
        indexed = tuple((key, labels[key]) for key in INDEXED if key in labels)
        self._objects.setdefault(namespace, {})[name] = _Entry(metadata["uid"], version, indexed, _text(body))
        for key, value in indexed:
            self._labelled.setdefault((namespace, key, value), set()).add(name)
        return True

    def remove(self, body: Manifest) -> bool:
        """Forget this very object, not one that has taken its name since. Whether it was there."""
        metadata = body["metadata"]
        known = self._objects.get(metadata["namespace"], {}).get(metadata["name"])
        if known is None or known.uid != metadata["uid"]:
            return False
        self._drop(metadata["namespace"], metadata["name"])
        return True

    def mark_deleted(self, body: Manifest) -> None:
        """Keep this very object as one that is being deleted, until it is heard to be gone."""
        metadata = body["metadata"]
        namespace, name = metadata["namespace"], metadata["name"]
        known = self._objects.get(namespace, {}).get(name)
        if known is not None and known.uid == metadata["uid"]:
            marked = body | {"metadata": {"deletionTimestamp": "1970-01-01T00:00:00Z"} | metadata}
            self._objects[namespace][name] = replace(known, text=_text(marked))

    def prune(self, namespace: str | None, listed: set[Name], version: int) -> list[Manifest]:
        """Forget what a list of this version, of one namespace or all, does not hold, and return it."""
        spaces = list(self._objects) if namespace is None else [namespace]
        gone = [
            (space, name)
            for space in spaces
            for name, entry in self._objects.get(space, {}).items()
            if (space, name) not in listed and entry.version <= version
        ]
        bodies = [self.get(*each) for each in gone]
        for each in gone:
            self._drop(*each)
        return [body for body in bodies if body is not None]

    def get(self, namespace: str, name: str) -> Manifest | None:
        """A copy, None where there is none."""
        entry = self._objects.get(namespace, {}).get(name)
        return _body(entry) if entry is not None else None

    def select(self, namespace: str, selector: str = "") -> list[Manifest]:
        """Copies of those whose labels `selector` means ("key" or "key=value", of INDEXED); all if empty; by name."""
        key, given, value = selector.partition("=")
        entries = self._objects.get(namespace, {})
        if given:
            return [_body(entries[name]) for name in sorted(self._labelled.get((namespace, key, value), ()))]
        found = (name for name, entry in entries.items() if not key or any(key == label for label, _ in entry.labels))
        return [_body(entries[name]) for name in sorted(found)]

    def __iter__(self) -> Iterator[Name]:
        return iter([(namespace, name) for namespace, names in self._objects.items() for name in names])

    def _drop(self, namespace: str, name: str) -> None:
        entry = self._objects[namespace].pop(name)
        if not self._objects[namespace]:
            del self._objects[namespace]
        for key, value in entry.labels:
            names = self._labelled[namespace, key, value]
            names.discard(name)
            if not names:
                del self._labelled[namespace, key, value]


def version_of(body: Manifest) -> int:
    """An object's version, or a list's, as a number: of one kind a greater one is newer (Kubernetes, KEP-5504)."""
    version = body["metadata"].get("resourceVersion") or "0"
    return int(version) if version.isdigit() else 0


def _text(body: Manifest) -> bytes:
    """Without managedFields, which nobody here reads and which are half of most objects."""
    metadata = {key: value for key, value in body["metadata"].items() if key != "managedFields"}
    return json.dumps(body | {"metadata": metadata}, separators=(",", ":")).encode()


def _body(entry: _Entry) -> Manifest:
    body: Manifest = json.loads(entry.text)
    return body
