"""Server-side apply: who wrote which field, and what becomes of a field that its manager leaves out.

An object is unfolded first: a list whose elements have keys becomes a mapping by those keys, so that merging is the
same recursion everywhere. A path is the tuple of the keys down to a leaf, or to an element of such a list.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kube_fixture.emulator.errors import ApiError
from kube_fixture.emulator.resources import Object

Path = tuple[Any, ...]
Owners = dict[tuple[str, str, str], set[Path]]
"""(manager, operation, subresource) to the paths that it wrote."""

# By the name of the field, for the built-in resources; a custom resource's schema says it itself.
LIST_KEYS: Mapping[str, tuple[str, ...]] = {
    "conditions": ("type",),
    "containers": ("name",),
    "env": ("name",),
    "ephemeralContainers": ("name",),
    "hostAliases": ("ip",),
    "imagePullSecrets": ("name",),
    "initContainers": ("name",),
    "ownerReferences": ("uid",),
    "ports": ("containerPort", "port", "protocol"),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
    "volumeMounts": ("mountPath",),
    "volumes": ("name",),
}
# What identifies the object, or belongs to the server: nobody owns it.
UNOWNED = {("apiVersion",), ("kind",)} | {
    ("metadata", name)
    for name in ("name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp", "managedFields")
}


class Items(dict[Any, Any]):
    """A list whose elements are told apart by keys, as a mapping from those."""


def unfold(value: Any, schema: Mapping[str, Any] | None = None, field: str = "") -> Any:
    """`schema` is that of a custom resource; without one the names of fields decide."""
    if isinstance(value, dict):
        fields = (schema or {}).get("properties", {})
        more = (schema or {}).get("additionalProperties")
        more = more if isinstance(more, Mapping) else {}

        def below(name: str) -> Mapping[str, Any] | None:
            if schema is None or (field == "" and name == "metadata"):
                return None
            found: Mapping[str, Any] = fields.get(name, more)
            return found

        return {name: unfold(item, below(name), name) for name, item in value.items() if item is not None}
    if not isinstance(value, list):
        return value
    if schema is None:
        keys, is_set = LIST_KEYS.get(field), field == "finalizers"
    else:
        kind = schema.get("x-kubernetes-list-type")
        keys, is_set = (tuple(schema["x-kubernetes-list-map-keys"]) if kind == "map" else None), kind == "set"
    if is_set:
        return Items((item, item) for item in value)
    if keys and all(isinstance(item, dict) for item in value):
        inner = None if schema is None else schema.get("items", {})
        return Items((tuple(item.get(key) for key in keys), unfold(item, inner, "[]")) for item in value)
    return value


def fold(value: Any) -> Any:
    """The inverse of `unfold`."""
    if isinstance(value, Items):
        return [fold(item) for item in value.values()]
    if isinstance(value, dict):
        return {name: fold(item) for name, item in value.items()}
    return value


def paths(value: Any, path: Path = ()) -> set[Path]:
    """Of every leaf, and of every element of a list with keys, in an unfolded object."""
    if not isinstance(value, dict) or not value:
        return {path} if path else set()
    found: set[Path] = set()
    for name, item in value.items():
        here = (*path, name)
        found |= paths(item, here)
        if isinstance(value, Items):
            found.add(here)
    return found - UNOWNED


def lookup(value: Any, path: Path) -> Any:
    for name in path:
        if not isinstance(value, dict) or name not in value:
            return None
        value = value[name]
    return value


def written(old: Object, new: Object, schema: Mapping[str, Any] | None, owners: Owners, writer: str, sub: str) -> None:
    """Record a create, a PUT or a patch: what it changed is its writer's alone, what it removed is nobody's."""
    before, after = unfold(old, schema), unfold(new, schema)
    present = paths(after)
    changed = {path for path in present if lookup(before, path) != lookup(after, path)}
    for owner in list(owners):
        owners[owner] = (owners[owner] & present) - changed
    owners.setdefault((writer, "Update", sub), set()).update(changed)


def apply(
    live: Object,
    config: Object,
    schema: Mapping[str, Any] | None,
    owners: Owners,
    manager: str,
    sub: str,
    *,
    force: bool,
) -> Object:
    """What `live` becomes, and in `owners` who then owns what. Raises ApiError 409 where others own a changed field."""
    me = (manager, "Apply", sub)
    merged, wanted = unfold(live, schema), unfold(config, schema)
    named = paths(wanted)
    others = {
        owner: {path for path in owned & named if not _agree(lookup(merged, path), lookup(wanted, path))}
        for owner, owned in owners.items()
        if owner != me
    }
    contested = sorted({".".join(map(str, path)) for found in others.values() for path in found})
    if contested and not force:
        who = ", ".join(sorted(f'"{owner[0]}"' for owner, found in others.items() if found))
        causes = [{"reason": "FieldManagerConflict", "field": f".{path}", "message": who} for path in contested]
        message = f"Apply failed with {len(contested)} conflicts: conflicts with {who}: {', '.join(contested)}"
        raise ApiError(409, "Conflict", message, causes)
    for owner, taken in others.items():
        owners[owner] -= taken
    kept = named.union(*(owned for owner, owned in owners.items() if owner != me))
    for path in owners.get(me, set()) - named:
        # A mapping that is left out goes whole, with what the schema made up below it.
        depth = next(depth for depth in range(1, len(path) + 1) if not _has(wanted, path[:depth]))
        gone = path[:depth]
        _remove(merged, gone, {other[depth:] for other in kept if other[:depth] == gone})
    _merge(merged, wanted)
    owners[me] = named
    result: Object = fold(merged)
    return result


def _agree(live: Any, wanted: Any) -> bool:
    if isinstance(live, dict) and isinstance(wanted, dict):
        return not wanted or isinstance(live, Items) or live == wanted
    return bool(live == wanted)


def _has(value: Any, path: Path) -> bool:
    for name in path:
        if not isinstance(value, dict) or name not in value:
            return False
        value = value[name]
    return True


def _remove(value: Any, path: Path, kept: set[Path]) -> None:
    """Remove what is at `path`, but for the paths below it to keep."""
    *parents, name = path
    if () in kept or not _has(value, path):
        return
    for parent in parents:
        value = value[parent]
    if kept:
        _strip(value[name], kept)
    else:
        del value[name]


def _strip(value: Any, kept: set[Path]) -> None:
    if isinstance(value, dict):
        for name in list(value):
            below = {path[1:] for path in kept if path[:1] == (name,)}
            if not below:
                del value[name]
            elif () not in below:
                _strip(value[name], below)


def _merge(value: dict[Any, Any], wanted: Mapping[Any, Any]) -> None:
    for name, item in wanted.items():
        if isinstance(item, dict) and isinstance(value.get(name), dict):
            _merge(value[name], item)
        else:
            value[name] = item
