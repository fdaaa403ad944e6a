"""The structural schema of a custom resource: unknown fields, defaults, and validation (but no CEL)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema

Schema = Mapping[str, Any]

# The root's metadata, apiVersion and kind belong to every object, whatever its schema says of them.
ROOT_FIELDS = frozenset({"apiVersion", "kind", "metadata"})


def prune(value: Any, schema: Schema, path: str = "") -> list[str]:
    """Remove in place what the schema does not know. Return the paths of what was removed."""
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        return []
    removed: list[str] = []
    if isinstance(value, dict):
        known, more = schema.get("properties", {}), schema.get("additionalProperties")
        for name in list(value):
            here = f"{path}.{name}" if path else name
            if not path and name in ROOT_FIELDS:
                continue
            if name in known:
                removed += prune(value[name], known[name], here)
            elif isinstance(more, Mapping):
                removed += prune(value[name], more, here)
            elif not more:
                del value[name]
                removed.append(here)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            removed += prune(item, schema.get("items", {}), f"{path}[{index}]")
    return removed


def default(value: Any, schema: Schema) -> None:
    """Fill in place what is absent, or null and not nullable, where the schema has a default for it."""
    if isinstance(value, dict):
        for name, field in schema.get("properties", {}).items():
            absent = name not in value or (value[name] is None and not field.get("nullable"))
            if "default" in field and absent:
                value[name] = _copy(field["default"])
            if name in value:
                default(value[name], field)
        more = schema.get("additionalProperties")
        if isinstance(more, Mapping):
            for name in value.keys() - schema.get("properties", {}).keys():
                default(value[name], more)
    elif isinstance(value, list):
        for item in value:
            default(item, schema.get("items", {}))


def validator(schema: Schema) -> jsonschema.Draft202012Validator:
    """For `faults`. Made once a schema: one with a pod template in it is large."""
    return jsonschema.Draft202012Validator(_json_schema(schema))


def faults(value: Any, validator: jsonschema.Draft202012Validator) -> Iterator[tuple[str, str]]:
    """The path of each field that the schema refuses, and why."""
    for error in sorted(validator.iter_errors(value), key=lambda error: [str(part) for part in error.absolute_path]):
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path).lstrip(".")
        if error.validator == "required":
            missing = sorted(set(error.validator_value) - set(error.instance))
            yield from ((f"{path}.{name}".lstrip("."), "Required value") for name in missing)
        else:
            yield path, error.message


def _json_schema(schema: Any) -> Any:
    """OpenAPI 3.0 as Kubernetes restricts it, in the words of JSON Schema 2020-12."""
    if not isinstance(schema, Mapping):
        return schema
    out = {name: _converted(name, value) for name, value in schema.items() if not name.startswith("x-kubernetes")}
    if schema.get("x-kubernetes-int-or-string"):
        out["type"] = ["integer", "string"]
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if out.pop(exclusive, False):
            out[exclusive] = out.pop(bound)
    if schema.get("nullable") and "type" in out:
        types = out["type"] if isinstance(out["type"], list) else [out["type"]]
        out["type"] = [*types, "null"]
        if "enum" in out:
            out["enum"] = [*out["enum"], None]
    return out


def _converted(name: str, value: Any) -> Any:
    if name == "properties":
        return {field: _json_schema(schema) for field, schema in value.items()}
    if name in {"items", "additionalProperties", "not"}:
        return _json_schema(value)
    if name in {"allOf", "anyOf", "oneOf"}:
        return [_json_schema(schema) for schema in value]
    return value


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _copy(item) for name, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value
