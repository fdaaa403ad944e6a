"""Two states of an object as a unified diff, without what only the API server cares for, and without secrets. Pure."""

import copy
import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import yaml

from octavo_operator.drift import DIGEST_ANNOTATION

Manifest = dict[str, Any]

_OF_THE_SERVER: Final = ("managedFields", "resourceVersion", "uid", "generation", "creationTimestamp", "selfLink")
_OF_TOOLS: Final = (DIGEST_ANNOTATION, "kubectl.kubernetes.io/last-applied-configuration")
"""The first changes with everything else; the second is the whole object once more, values of variables included."""
_SECRET: Final = re.compile(r"key|token|secret|password|passwd|credential", re.IGNORECASE)
_MASKS: Final = ("*** (before)", "*** (after)")


def unified_diff(title: str, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> str:
    """The difference as `diff -u` shows it; empty where there is none. None: there is no such object."""
    old, new = _shown(before), _shown(after)
    _mask(old, new)
    was, will = (_yaml(each).splitlines(keepends=True) for each in (old, new))
    return "".join(difflib.unified_diff(was, will, fromfile=f"live/{title}", tofile=f"planned/{title}"))


def within(wanted: Any, live: Any) -> Any:
    """Of `live` only what `wanted` speaks of."""
    if isinstance(wanted, dict) and isinstance(live, dict):
        return {key: within(value, live[key]) for key, value in wanted.items() if key in live}
    if isinstance(wanted, list) and isinstance(live, list) and len(wanted) == len(live):
        return [within(*each) for each in zip(wanted, live, strict=True)]
    return live


def _shown(given: Mapping[str, Any] | None) -> Manifest:
    if given is None:
        return {}
    shown = copy.deepcopy({name: value for name, value in given.items() if name != "status"})
    metadata = {name: value for name, value in shown.get("metadata", {}).items() if name not in _OF_THE_SERVER}
    if "annotations" in metadata:
        kept = {name: value for name, value in metadata["annotations"].items() if name not in _OF_TOOLS}
        metadata["annotations"] = kept
        if not kept:
            del metadata["annotations"]
    if "ownerReferences" in metadata:
        metadata["ownerReferences"] = [{**each, "uid": "…"} for each in metadata["ownerReferences"]]
    return shown | {"metadata": metadata}


def _mask(old: Manifest, new: Manifest) -> None:
    """Values that variables with such a name are given as they stand; whether they differ is still to be seen."""
    before = dict(_variables(old, ()))
    after = dict(_variables(new, ()))
    for path in before.keys() | after.keys():
        found = [each for each in (before.get(path), after.get(path)) if each is not None]
        differ = len(found) == 2 and found[0]["value"] != found[1]["value"]
        for variable, mask in zip((before.get(path), after.get(path)), _MASKS, strict=True):
            if variable is not None:
                variable["value"] = mask if differ else "***"


def _variables(node: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Manifest]]:
    """What has a name and a value, by where it stands."""
    if isinstance(node, dict):
        if isinstance(node.get("value"), str) and _SECRET.search(str(node.get("name", ""))):
            yield path, node
        for name, value in node.items():
            yield from _variables(value, (*path, name))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            named = value.get("name") if isinstance(value, dict) else None
            yield from _variables(value, (*path, str(named if named is not None else index)))


def _yaml(given: Manifest) -> str:
    return yaml.safe_dump(given, sort_keys=True, allow_unicode=True, width=120) if given else ""
