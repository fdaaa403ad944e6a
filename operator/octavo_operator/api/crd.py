"""The CustomResourceDefinition, made from the models: a structural schema, without $ref, anyOf or titles.

Source of the format: Kubernetes, apiextensions.k8s.io/v1. `octavo crd` prints it, `crds/` keeps it.
"""

import json
from collections.abc import Iterator
from typing import Any

import yaml

from octavo_common.names import API_GROUP, API_VERSION, KIND, PLURAL
from octavo_operator.api.base import ApiModel, Rule
from octavo_operator.api.resource import LLMDeployment

Schema = dict[str, Any]

_PRINTER_COLUMNS = (
    ("Ready", "integer", ".status.readyReplicas", "Pods that take requests.", 0),
    ("Desired", "integer", ".status.desiredReplicas", "Pods wanted.", 0),
    ("Model", "string", ".status.model", "Name that clients ask for.", 0),
    ("URL", "string", ".status.url", "Base URL for OpenAI clients inside the cluster.", 0),
    ("Reason", "string", '.status.conditions[?(@.type=="Ready")].reason', "Why it is ready, or not.", 1),
    ("Age", "date", ".metadata.creationTimestamp", "", 0),
)


def custom_resource_definition() -> Schema:
    """The CRD as the dict that is applied."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{API_GROUP}"},
        "spec": {
            "group": API_GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["llmd"],
                "categories": ["all", "octavo"],
            },
            "versions": [_version()],
        },
    }


def crd_yaml() -> str:
    """The CRD as the text of the file in `crds/`."""
    header = "# Made by `octavo crd` from octavo_operator/api; do not edit.\n"
    text = yaml.dump(
        custom_resource_definition(), Dumper=_WithoutAnchors, sort_keys=False, width=120, allow_unicode=True
    )
    return header + text


class _WithoutAnchors(yaml.SafeDumper):
    """Writes a list that stands in two places twice, instead of once and an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _version() -> Schema:
    return {
        "name": API_VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": _root()},
        "subresources": {
            "status": {},
            "scale": {
                "specReplicasPath": ".spec.replicas",
                "statusReplicasPath": ".status.replicas",
                "labelSelectorPath": ".status.selector",
            },
        },
        "additionalPrinterColumns": [
            {"name": name, "type": kind, "jsonPath": path}
            | ({"description": description} if description else {})
            | ({"priority": priority} if priority else {})
            for name, kind, path, description, priority in _PRINTER_COLUMNS
        ],
    }


def _root() -> Schema:
    whole = LLMDeployment.model_json_schema(by_alias=True)
    structural = _Structural(whole["$defs"])
    standard: Schema = {name: {"type": "string"} for name in ("apiVersion", "kind")} | {"metadata": {"type": "object"}}
    return {
        "description": whole["description"],
        "type": "object",
        "required": ["spec"],
        "properties": standard | {name: structural.convert(whole["properties"][name]) for name in ("spec", "status")},
        "x-kubernetes-validations": [_validation(rule) for rule in LLMDeployment.rules],
    }


def _validation(rule: Rule) -> Schema:
    # A fieldPath may lead to fields of the schema only, and metadata has none there: its message
    # names the field instead.
    if rule.field is not None and rule.field.startswith("metadata"):
        return {"rule": rule.cel, "message": f"{rule.field}: {rule.message}"}
    path = {"fieldPath": f".{rule.field}"} if rule.field else {}
    return {"rule": rule.cel, "message": rule.message} | path


class _Structural:
    """Turns pydantic's JSON schema into a structural one, by walking it with its definitions at hand."""

    _KEPT = (
        *("type", "enum", "pattern", "format", "minLength", "maxLength", "minimum", "maximum"),
        *("minItems", "maxItems", "maxProperties"),
    )

    def __init__(self, definitions: dict[str, Schema]) -> None:
        self._definitions = definitions

    def convert(self, schema: Schema) -> Schema:
        """One node and all below it."""
        schema = self._resolved(schema)
        result: Schema = {"description": _description(schema)} if "description" in schema else {}
        result |= {key: schema[key] for key in self._KEPT if key in schema}
        if "const" in schema:
            result["enum"] = [schema["const"]]
        if schema.get("type") == "integer":
            result["format"] = "int32" if schema["maximum"] < 2**31 else "int64"
        result |= {key: value for key, value in schema.items() if key.startswith("x-kubernetes-")}
        if "properties" in schema:
            result["properties"] = {name: self.convert(child) for name, child in schema["properties"].items()}
        if "required" in schema:
            result["required"] = schema["required"]
        if "items" in schema:
            result["items"] = self.convert(schema["items"])
        if isinstance(schema.get("additionalProperties"), dict):
            result["additionalProperties"] = self.convert(schema["additionalProperties"])
        return result | _default(schema, result) | _validations(schema)

    def _resolved(self, schema: Schema) -> Schema:
        """Without anyOf (only null stands beside a type) and $ref; what stands beside a $ref wins over its target."""
        options = [option for option in schema.get("anyOf", ()) if option.get("type") != "null"]
        if options:
            (only,) = options
            return self._resolved(only | {key: value for key, value in schema.items() if key != "anyOf"})
        if "$ref" in schema:
            name = schema["$ref"].removeprefix("#/$defs/")
            beside = {key: value for key, value in schema.items() if key != "$ref"}
            return self._resolved(self._definitions[name] | {"model": name} | beside)
        return schema


def _description(schema: Schema) -> str:
    """The field's own words, then its default and an example."""
    text = " ".join(schema["description"].split())
    default = schema.get("default")
    if isinstance(default, str | int) and default != "":
        text += f" Default: {json.dumps(default) if isinstance(default, bool) else default}."
    if schema.get("examples"):
        text += f" Example: {schema['examples'][0]}"
    return text


def _default(schema: Schema, result: Schema) -> Schema:
    """Values as they are, and an object of the defaults below it: rules are checked against it as it stands here."""
    default = schema.get("default")
    if isinstance(default, list) and default:
        return {"default": [_given(item) for item in default]}
    if isinstance(default, dict):
        below = {key: child["default"] for key, child in result.get("properties", {}).items() if "default" in child}
        return {"default": below} if below else {}
    return {"default": default} if default not in (None, [], "") else {}


def _given(value: Any) -> Any:
    """An item of a default without what is empty in it; an object that is given is kept, empty or not."""
    if not isinstance(value, dict):
        return value
    return {key: _given(child) for key, child in value.items() if child not in (None, [], {})}


def _validations(schema: Schema) -> Schema:
    model = next((each for each in _subclasses(ApiModel) if each.__name__ == schema.get("model")), ApiModel)
    return {"x-kubernetes-validations": [_validation(rule) for rule in model.rules]} if model.rules else {}


def _subclasses(model: type[ApiModel]) -> Iterator[type[ApiModel]]:
    for child in model.__subclasses__():
        yield child
        yield from _subclasses(child)
