"""Reads a checkpoint: safetensors only, memory-mapped, every tensor cast once, straight into its place."""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open

from octavo_server.errors import ModelError
from octavo_server.model_files import weight_files

# Tables that old checkpoints carry though they follow from the config.
_DERIVED_SUFFIX: Final = ".rotary_emb.inv_freq"
_DTYPES: Final = ("F64", "F32", "F16", "BF16")
_NAMED_AT_MOST: Final = 5


def load_weights(directory: Path, places: Mapping[str, torch.Tensor], optional: Iterable[str] = ()) -> set[str]:
    """Fills the places from the checkpoint in `directory`.

    Args:
        directory: holds `model.safetensors`, or shards and their index.
        places: where each tensor goes, by its name in the checkpoint: tensors, or views into fused ones, of the
            tensor's shape; any float type, any device.
        optional: names among `places` that the checkpoint may lack.

    Returns:
        The optional names that the checkpoint has.

    Raises:
        ModelError: files are missing or broken, or the checkpoint's tensors are not exactly those of `places`.
    """
    allowed_absent = set(optional)
    with ExitStack() as stack:
        files = [_open(path, stack) for path in weight_files(directory)]
        where = {name: file for file in files for name in file.keys()}  # noqa: SIM118 (no mapping)
        _check_names(directory, set(where), set(places), allowed_absent)
        found = [name for name in places if name in where]
        _check_tensors({name: where[name].get_slice(name) for name in found}, places)
        for name in found:
            _copy(where[name], name, places[name])
    return allowed_absent & set(where)


def _open(path: Path, stack: ExitStack) -> Any:
    try:
        return stack.enter_context(safe_open(path, framework="pt", device="cpu"))
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is no readable safetensors file ({error}); download it again") from error


def _check_names(directory: Path, found: set[str], expected: set[str], optional: set[str]) -> None:
    missing = sorted(expected - optional - found)
    unexpected = sorted(name for name in found - expected if not name.endswith(_DERIVED_SUFFIX))
    problems = [
        f"{len(names)} {what}: {', '.join(names[:_NAMED_AT_MOST])}{', …' if len(names) > _NAMED_AT_MOST else ''}"
        for what, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ]
    if problems:
        raise ModelError(
            f"the tensors in {directory} are not those that its config.json describes; {'; '.join(problems)}. "
            "Check that config.json and weights belong together"
        )


def _check_tensors(slices: Mapping[str, Any], places: Mapping[str, torch.Tensor]) -> None:
    """Shapes and types, before anything is copied."""
    for name, found in slices.items():
        shape, expected = list(found.get_shape()), list(places[name].shape)
        if shape != expected:
            raise ModelError(
                f"{name} has shape {shape} in the checkpoint; config.json makes it {expected}. "
                "Check that config.json and weights belong together"
            )
        if found.get_dtype() not in _DTYPES:
            raise ModelError(f"{name} is of type {found.get_dtype()}; supported are {', '.join(_DTYPES)}")


def _copy(file: Any, name: str, place: torch.Tensor) -> None:
    try:
        place.copy_(file.get_tensor(name))
    except SafetensorError as error:
        raise ModelError(f"{name} cannot be read ({error}); download the checkpoint again") from error
