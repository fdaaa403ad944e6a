"""Whether a live object still is what was rendered, so that nothing is written when nothing changed. Pure.

The API server adds defaults, and others own fields of the same object; so what is compared is only what we applied.
A field that we no longer render is not seen that way: the digest of what was applied last, kept in an annotation, is.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from octavo_common.names import FIELD_MANAGER, LABEL_PREFIX

Manifest = dict[str, Any]

DIGEST_ANNOTATION: Final = f"{LABEL_PREFIX}applied-sha256"
_MERGE_KEYS: Final = ("name", "mountPath", "containerPort", "uid", "topologyKey", "key")
_ATOMIC: Final = frozenset({"selector", "podSelector", "namespaceSelector", "labelSelector"})
"""Mappings that are ours whole: one label more would mean other pods."""
_QUANTITY: Final = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(m|k|[MGTPE]|[KMGTPE]i)?")
_SUFFIXES: Final = {"m": Decimal("0.001"), "k": Decimal(1000)} | {
    suffix: Decimal(base) ** (power + 1)
    for base, letters in ((1000, ("k", "M", "G", "T", "P", "E")), (1024, ("Ki", "Mi", "Gi", "Ti", "Pi", "Ei")))
    for power, suffix in enumerate(letters)
}


def stamped(rendered: Manifest) -> Manifest:
    """`rendered` with its own digest in an annotation."""
    told = hashlib.sha256(json.dumps(rendered, sort_keys=True).encode()).hexdigest()
    metadata = rendered["metadata"]
    annotations = metadata.get("annotations", {}) | {DIGEST_ANNOTATION: told}
    return rendered | {"metadata": metadata | {"annotations": annotations}}


def digest(live: Manifest) -> str | None:
    """What an object says of what was applied last."""
    annotations: Manifest = live["metadata"].get("annotations", {})
    return annotations.get(DIGEST_ANNOTATION)


def in_sync(wanted: Manifest, live: Manifest) -> bool:
    """Whether `live` holds all that `wanted`, a stamped object, says."""
    return _holds(wanted, live, path=())


def controller_uid(live: Mapping[str, Any]) -> str | None:
    """The uid of the object that controls `live`, None where there is none."""
    references = live["metadata"].get("ownerReferences", [])
    return next((str(reference["uid"]) for reference in references if reference.get("controller")), None)


def is_orphan(live: Manifest, labels: dict[str, str]) -> bool:
    """Whether `live` was made by an operator of ours for this very deployment, and has lost its owner."""
    found = live["metadata"].get("labels", {})
    mine = {"app.kubernetes.io/managed-by": FIELD_MANAGER} | labels
    return not live["metadata"].get("ownerReferences") and mine.items() <= found.items()


def _holds(wanted: Any, live: Any, path: tuple[str, ...]) -> bool:
    if live is None:
        return wanted in (None, "", 0, False, [], {})  # the API server leaves zero values out
    if path and path[-1] in _ATOMIC:
        return bool(wanted == live)
    if isinstance(wanted, dict) and isinstance(live, dict):
        return all(_holds(value, live.get(key), (*path, key)) for key, value in wanted.items())
    if isinstance(wanted, list) and isinstance(live, list):
        return _list_holds(wanted, live, path)
    if wanted == live and isinstance(wanted, bool) == isinstance(live, bool):
        return True
    return _is_quantity(path) and _amount(wanted) == _amount(live) is not None


def _list_holds(wanted: list[Any], live: list[Any], path: tuple[str, ...]) -> bool:
    """Items of a list map are found by their key, wherever others have put theirs; other lists are ours whole."""
    key = next((key for key in _MERGE_KEYS if all(isinstance(item, dict) and key in item for item in wanted)), None)
    if key is None or path[-1] in {"tolerations", "matchExpressions", "nodeSelectorTerms"}:
        return len(wanted) == len(live) and all(_holds(w, v, path) for w, v in zip(wanted, live, strict=True))
    return all(any(item.get(key) == each.get(key) and _holds(item, each, path) for each in live) for item in wanted)


def _is_quantity(path: tuple[str, ...]) -> bool:
    return len(path) > 1 and (path[-2] in {"requests", "limits"} or path[-1] in {"sizeLimit", "divisor"})


def _amount(value: Any) -> Decimal | None:
    """A quantity's value: 500m and 0.5 are the same, and the API server rewrites one as the other."""
    match = _QUANTITY.fullmatch(str(value))
    return Decimal(match[1]) * _SUFFIXES.get(match[2] or "", Decimal(1)) if match else None
