"""YAML as kubectl reads it: no key twice, no dates, JSON's numbers, keys that are strings."""

import json
import math
import re
from collections.abc import Hashable
from typing import Any

import yaml

_FLOAT = re.compile(r"^([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$")
_INT = re.compile(r"^[-+]?(0b[01_]+|0o?[0-7_]+|0x[0-9a-fA-F_]+|0|[1-9][0-9_]*)$")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader where it differs from the parser in kubectl."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a string", key_node.start_mark)
            if key_node.tag != "tag:yaml.org,2002:merge" and key_node.value in seen:
                message = f"key {key_node.value!r} is there twice"
                raise yaml.constructor.ConstructorError(None, None, message, key_node.start_mark)
            seen.add(key_node.value)
        return {str(key): value for key, value in super().construct_mapping(node, deep=deep).items()}

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        return int(re.sub(r"^([-+]?)0([0-7_]+)$", r"\g<1>0o\2", node.value), 0)

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float | int:
        value = super().construct_yaml_float(node)
        if not math.isfinite(value):
            raise yaml.constructor.ConstructorError(
                None, None, f"{node.value} is not a number of JSON", node.start_mark
            )
        return int(value) if value.is_integer() else value  # written as JSON, 2.0 is 2


# Resolvers are tried in order of the first character: take over PyYAML's, less dates, its float (1e3 is text there) and
# its int (1:30 is 90 there).
_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag not in {f"tag:yaml.org,2002:{kind}" for kind in ("timestamp", "int", "float")}
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)


def load_documents(text: str) -> list[Any]:
    """Every document of a YAML (so also JSON) text; all that is in it could be written as JSON.

    Raises:
        yaml.YAMLError: with line and column where there are any.
    """
    documents = list(yaml.load_all(text, Loader=_Loader))
    try:
        json.dumps(documents)
    except (TypeError, ValueError, RecursionError) as error:
        raise yaml.YAMLError(f"it has no form in JSON: {error}") from error
    return documents
