"""The rules of `podTemplate` and of label selectors: what the API server would refuse the Deployment for, and what the
operator has taken for itself. As in `rules`.
"""

from typing import Any, Final

from octavo_operator.api.base import Rule, matches
from octavo_operator.api.rules import DOTS
from octavo_operator.api.types import QUALIFIED_NAME

LABELS_OF_THE_OPERATOR: Final = r"^(octavo[.]dev/.*|app[.]kubernetes[.]io/(name|instance|component|managed-by))$"
VOLUMES_OF_THE_OPERATOR: Final = ("tmp", "model", "compile-cache", "api-keys", "gateway-key", "credentials")
CONTAINERS_OF_THE_OPERATOR: Final = ("server", "pull")
MOUNTS_OF_THE_OPERATOR: Final = r"^/(tmp|octavo)(/|$)"
LONGEST_PREFIX: Final = 253
"""Of a qualified name, before its slash."""

SELECTOR_REQUIREMENT: Final = (
    Rule(
        cel="(self.operator in ['In', 'NotIn']) == (has(self.values) && size(self.values) > 0)",
        message="In and NotIn need values, Exists and DoesNotExist have none",
        holds=lambda r: (r.operator in {"In", "NotIn"}) == bool(r.values),
        field="values",
    ),
)

TOLERATION: Final = (
    Rule(
        cel="has(self.key) || (has(self.operator) && self.operator == 'Exists')",
        message="without a key the operator must be Exists: every taint is tolerated",
        holds=lambda t: t.key is not None or t.operator == "Exists",
        field="operator",
    ),
    Rule(
        cel="!has(self.operator) || self.operator != 'Exists' || !has(self.value) || self.value == ''",
        message="with the operator Exists there is no value",
        holds=lambda t: t.operator != "Exists" or not t.value,
        field="value",
    ),
    Rule(
        cel="!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
        message="is for the effect NoExecute alone",
        holds=lambda t: t.toleration_seconds is None or t.effect == "NoExecute",
        field="tolerationSeconds",
    ),
)

VOLUME_MOUNT: Final = (
    Rule(
        cel=f"!self.mountPath.matches('{DOTS}')",
        message="must not hold a part that is '.' or '..'",
        holds=lambda m: not matches(DOTS, m.mount_path),
        field="mountPath",
    ),
    Rule(
        cel="!has(self.subPath) || !(self.subPath.startsWith('/') || "
        "self.subPath.split('/').exists(part, part == '..'))",
        message="must be a path inside the volume, without a leading slash and without '..'",
        holds=lambda m: m.sub_path is None or not (m.sub_path.startswith("/") or ".." in m.sub_path.split("/")),
        field="subPath",
    ),
)


def _map_keys(field: str, what: str) -> Rule:
    """Keys of labels, annotations and node selectors: the API server would refuse the Deployment for a bad one."""
    return Rule(
        cel=f"!has(self.{field}) || self.{field}.all(key, size(key) <= 317 && key.indexOf('/') <= {LONGEST_PREFIX} "
        f"&& key.matches('{QUALIFIED_NAME}'))",
        message=f"every key of {what} must be a qualified name, such as team or example.com/team",
        holds=lambda t: all(is_qualified(key) for key in _mapping(t, field)),
        field=field,
    )


def is_qualified(key: str) -> bool:
    """Whether a label or an annotation may have this key."""
    return len(key) <= 317 and key.find("/") <= LONGEST_PREFIX and matches(QUALIFIED_NAME, key)


def _mapping(template: Any, field: str) -> dict[str, str]:
    python_name = {"nodeSelector": "node_selector", "matchLabels": "match_labels"}.get(field, field)
    mapping: dict[str, str] = getattr(template, python_name)
    return mapping


SELECTOR: Final = (_map_keys("matchLabels", "matchLabels"),)

POD_TEMPLATE: Final = (
    _map_keys("labels", "labels"),
    _map_keys("annotations", "annotations"),
    _map_keys("nodeSelector", "nodeSelector"),
    Rule(
        cel=f"!has(self.labels) || !self.labels.exists(key, key.matches('{LABELS_OF_THE_OPERATOR}'))",
        message="labels under octavo.dev/ and app.kubernetes.io/{name,instance,component,managed-by} are taken",
        holds=lambda t: not any(matches(LABELS_OF_THE_OPERATOR, key) for key in t.labels),
        field="labels",
    ),
    Rule(
        cel=f"!has(self.volumes) || !self.volumes.exists(volume, volume.name in {list(VOLUMES_OF_THE_OPERATOR)})",
        message=f"the volume names {', '.join(VOLUMES_OF_THE_OPERATOR)} are the operator's",
        holds=lambda t: not any(volume.name in VOLUMES_OF_THE_OPERATOR for volume in t.volumes),
        field="volumes",
    ),
    Rule(
        cel="!has(self.volumeMounts) || self.volumeMounts.all(mount, "
        "has(self.volumes) && self.volumes.exists(volume, volume.name == mount.name))",
        message="every mount must name a volume of podTemplate.volumes",
        holds=lambda t: {mount.name for mount in t.volume_mounts} <= {volume.name for volume in t.volumes},
        field="volumeMounts",
    ),
    Rule(
        cel="!has(self.volumeMounts) || "
        f"!self.volumeMounts.exists(mount, mount.mountPath.matches('{MOUNTS_OF_THE_OPERATOR}'))",
        message="/tmp and /octavo are mounted by the operator",
        holds=lambda t: not any(matches(MOUNTS_OF_THE_OPERATOR, mount.mount_path) for mount in t.volume_mounts),
        field="volumeMounts",
    ),
    Rule(
        cel="!has(self.initContainers) || "
        f"!self.initContainers.exists(container, container.name in {list(CONTAINERS_OF_THE_OPERATOR)})",
        message=f"the container names {' and '.join(CONTAINERS_OF_THE_OPERATOR)} are the operator's",
        holds=lambda t: not any(each.name in CONTAINERS_OF_THE_OPERATOR for each in t.init_containers),
        field="initContainers",
    ),
)
