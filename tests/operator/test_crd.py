"""The CRD: the file is what the models say, the schema is structural, and everything is bounded and told."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from octavo_operator.api.base import ApiModel
from octavo_operator.api.crd import crd_yaml, custom_resource_definition

Schema = dict[str, Any]
FILE = Path(__file__).parents[2] / "crds" / "octavo.dev_llmdeployments.yaml"


def version() -> Schema:
    (only,) = custom_resource_definition()["spec"]["versions"]
    schema: Schema = only
    return schema


def nodes(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield from nodes(schema[key], f"{path}[]")


def fields() -> list[tuple[str, Schema]]:
    properties = version()["schema"]["openAPIV3Schema"]["properties"]
    return [node for part in ("spec", "status") for node in nodes(properties[part], part)]


def test_the_file_is_what_the_models_say() -> None:
    assert FILE.read_text() == crd_yaml(), "run `make crd`"


def test_the_schema_is_structural() -> None:
    text = crd_yaml()
    for foreign in ("$ref", "$defs", "anyOf", "additionalProperties: false", "title:", "examples:", "const:", "&id"):
        assert foreign not in text
    assert [path for path, node in fields() if "type" not in node and "x-kubernetes-int-or-string" not in node] == []


def test_every_string_list_map_and_number_is_bounded() -> None:
    needed = {"string": {"maxLength", "enum"}, "array": {"maxItems"}, "integer": {"maximum"}}
    for path, node in fields():
        wanted = needed.get(node.get("type", ""), set())
        assert not wanted or wanted & set(node), path
        if node.get("type") == "integer":
            assert "minimum" in node, path
        if "additionalProperties" in node:
            assert "maxProperties" in node, path


def test_every_field_is_described_and_tells_its_default() -> None:
    for path, node in fields():
        if path.endswith("[]"):
            continue
        assert len(node.get("description", "")) > 10, path
        if "default" in node and node.get("type") != "object":
            assert "Default: " in node["description"], path


def test_every_list_says_how_it_is_merged() -> None:
    for path, node in fields():
        if node.get("type") == "array":
            assert node["x-kubernetes-list-type"] in {"map", "set", "atomic"}, path
            for key in node.get("x-kubernetes-list-map-keys", []):
                assert key in node["items"]["required"], path


def test_every_rule_of_the_models_is_in_the_crd() -> None:
    def rules(model: Any) -> Iterator[str]:
        yield from (rule.cel for rule in model.__dict__.get("rules", ()))
        for child in model.__subclasses__():
            yield from rules(child)

    root = version()["schema"]["openAPIV3Schema"]
    found = [rule["rule"] for _, node in nodes(root) for rule in node.get("x-kubernetes-validations", ())]
    assert set(found) == set(rules(ApiModel))


def test_names_columns_and_subresources() -> None:
    spec = custom_resource_definition()["spec"]
    assert spec["names"]["shortNames"] == ["llmd"] and spec["names"]["categories"] == ["all", "octavo"]
    columns = [column["name"] for column in version()["additionalPrinterColumns"] if not column.get("priority")]
    assert columns == ["Ready", "Desired", "Model", "URL", "Age"]
    assert set(version()["subresources"]) == {"status", "scale"}


def test_patterns_mean_the_same_to_every_reader() -> None:
    """RE2, Rust and Python differ over look-around, back-references, \\d and \\w; none of that is used."""
    for path, node in fields():
        pattern = node.get("pattern", "^$")
        re.compile(pattern)
        assert pattern.startswith("^") and pattern.endswith("$"), path
        assert not re.search(r"\\[dwsbDWSB1-9]|\(\?", pattern), path
