"""From text to `LLMDeployment`, refusing what `kubectl apply` would refuse, with the path of the field."""

import difflib
import json
from collections.abc import Mapping
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from octavo_common.names import API_GROUP, API_VERSION, KIND
from octavo_operator.api.errors import FieldError, ManifestError
from octavo_operator.api.resource import LLMDeployment
from octavo_operator.api.yaml_loader import describe, load_documents

_API_VERSION = f"{API_GROUP}/{API_VERSION}"

_LONGEST_PATTERN = 80

_EXPECTED = {
    "int_type": "an integer",
    "string_type": "a string",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}


def load_manifest(text: str) -> LLMDeployment:
    """The one LLMDeployment in a YAML or JSON text, validated; other kinds in the same text are left alone.

    Raises:
        ManifestError: not YAML, a key twice, no LLMDeployment or several, or a field that the CRD would refuse.
    """
    try:
        documents = load_documents(text)
    except yaml.YAMLError as error:
        raise ManifestError([FieldError("", f"not valid YAML: {describe(error)}")]) from error
    objects = [document for document in documents if document is not None]
    ours = [item for item in objects if isinstance(item, dict) and item.get("kind") == KIND]
    if len(ours) == 1:
        return parse(ours[0])
    if len(objects) == 1 and not ours:
        return parse(objects[0])  # says what is wrong with the only document there is
    found = f"{len(ours)} of kind {KIND} among {len(objects)} documents"
    raise ManifestError([FieldError("", f"exactly one {KIND} is needed; found {found}")])


def parse(document: Any) -> LLMDeployment:
    """The object as it came from the API server or a YAML file.

    Raises:
        ManifestError: with every field that is wrong.
    """
    if not isinstance(document, Mapping):
        raise ManifestError(
            [FieldError("", f"must be a mapping with apiVersion, kind, metadata and spec, not {_given(document)}")]
        )
    if document.get("kind") != KIND:
        raise ManifestError([FieldError("kind", f"must be {KIND}, not {_given(document.get('kind'))}")])
    if document.get("apiVersion") != _API_VERSION:
        raise ManifestError(
            [FieldError("apiVersion", f"must be {_API_VERSION}, not {_given(document.get('apiVersion'))}")]
        )
    try:
        return LLMDeployment.model_validate(document)
    except ValidationError as error:
        raise ManifestError([_field_error(details) for details in error.errors(include_url=False)]) from error


def _field_error(details: ErrorDetails) -> FieldError:
    location, context = list(details["loc"]), details.get("ctx", {})
    kind, given = details["type"], details["input"]
    if kind == "rule":
        path = ".".join(filter(None, [_path(location), context["field"]]))
        return FieldError(path, context["text"])
    if kind == "extra_forbidden":
        return FieldError(_path(location), f"unknown field; {_suggestion(location)}")
    if kind == "missing":
        return FieldError(_path(location), "is required")
    if kind in _EXPECTED:
        return FieldError(_path(location), f"must be {_EXPECTED[kind]}, not {_given(given)}")
    if kind == "string_pattern_mismatch" and (example := _example(location)) is not None:
        # A short pattern says itself what is wrong.
        pattern = f"match {context['pattern']}, like" if len(context["pattern"]) <= _LONGEST_PATTERN else "look like"
        return FieldError(_path(location), f"must {pattern} {example}, not {_given(given)}")
    message = details["msg"].replace(" after validation", "")
    for start in ("Input should be ", "String should ", "List should ", "Dictionary should "):
        if message.startswith(start):
            message = ("must be " if start.startswith("Input") else "must ") + message.removeprefix(start)
    is_long = isinstance(given, Mapping | list | tuple)
    # Of what can be long the message itself tells what is wrong inside.
    return FieldError(_path(location), message if is_long else f"{message}, not {_given(given)}")


def _path(location: list[int | str]) -> str:
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier():
            path += f".{part}" if path else part
        else:
            path += f"[{json.dumps(part)}]"
    return path


def _given(value: Any) -> str:
    """What the user wrote, short and on one line; of what can be long, its kind alone."""
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, str):
        value = value[:100]
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "…"


def _example(location: list[int | str]) -> str | None:
    """That of the field, where it has one."""
    model: Any = LLMDeployment
    for part in location[:-1]:
        model = _child(model, part) if hasattr(model, "model_fields") else None
    fields = model.model_fields.values() if hasattr(model, "model_fields") else ()
    found = next((info for info in fields if info.alias == location[-1]), None)
    return str(found.examples[0]) if found is not None and found.examples else None


def _suggestion(location: list[int | str]) -> str:
    model: Any = LLMDeployment
    for part in location[:-1]:
        model = _child(model, part)
    allowed = [str(info.alias) for info in model.model_fields.values()]
    close = difflib.get_close_matches(str(location[-1]), allowed, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(sorted(allowed))}"


def _child(model: Any, part: int | str) -> Any:
    """The model at the end of one step of a location; list indices stay where they are."""
    if isinstance(part, int):
        return model
    annotation = next((info.annotation for info in model.model_fields.values() if info.alias == part), None)
    return _model_in(annotation)


def _model_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, UnionType, list) or get_args(annotation):
        return next((found for found in map(_model_in, get_args(annotation)) if found is not None), None)
    return None
