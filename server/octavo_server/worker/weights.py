"""Reads a checkpoint: safetensors only, every tensor cast once, straight into its place.

On the CPU out of a memory map, so that nothing is there twice; to a GPU by several threads (`weight_stream`).
"""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import torch

from octavo_server.errors import ModelError
from octavo_server.model_files import weight_files
from octavo_server.worker.checkpoint_file import DTYPES, CheckpointFile, StoredTensor
from octavo_server.worker.weight_stream import pieces_of, stream

# Tables that old checkpoints carry though they follow from the config.
_DERIVED_SUFFIX: Final = ".rotary_emb.inv_freq"
_NAMED_AT_MOST: Final = 5
_BACKBONE: Final = "model."
_HEAD: Final = "lm_head."


def load_weights(directory: Path, places: Mapping[str, torch.Tensor], optional: Iterable[str] = ()) -> set[str]:
    """Fills the places from the checkpoint in `directory`.

    Args:
        directory: holds `model.safetensors`, or shards and their index.
        places: where each tensor goes, by its name in the checkpoint: tensors, or views into fused ones, of the
            tensor's shape; any float type, any device. A checkpoint of a bare backbone leaves out their `model.`.
        optional: names among `places` that the checkpoint may lack.

    Returns:
        The optional names that the checkpoint has.

    Raises:
        ModelError: files are missing or broken, or the checkpoint's tensors are not exactly those of `places`.
    """
    allowed_absent = set(optional)
    with ExitStack() as stack:
        files = [stack.enter_context(CheckpointFile(path)) for path in weight_files(directory)]
        stored = {name: file for file in files for name in file.tensors}
        prefix = "" if any(name.startswith(_BACKBONE) for name in stored) else _BACKBONE
        where = {name if name.startswith(_HEAD) else prefix + name: (file, name) for name, file in stored.items()}
        _check_names(directory, set(where), set(places), allowed_absent)
        found = {name: where[name][0].tensors[where[name][1]] for name in places if name in where}
        _check_tensors(found, places)
        streamed = {name for name in found if places[name].device.type != "cpu" and places[name].is_contiguous()}
        for name in found:
            if name not in streamed:
                file, stored_name = where[name]
                places[name].copy_(file.read(stored_name))
        _stream([(found[name], places[name]) for name in streamed])
    return allowed_absent & set(where)


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


def _check_tensors(tensors: Mapping[str, StoredTensor], places: Mapping[str, torch.Tensor]) -> None:
    """Shapes and types, before anything is copied."""
    for name, found in tensors.items():
        expected = list(places[name].shape)
        if found.shape != expected:
            raise ModelError(
                f"{name} has shape {found.shape} in the checkpoint; config.json makes it {expected}. "
                "Check that config.json and weights belong together"
            )
        if found.dtype not in DTYPES:
            raise ModelError(f"{name} is of type {found.dtype}; supported are {', '.join(DTYPES)}")


def _stream(tensors: Iterable[tuple[StoredTensor, torch.Tensor]]) -> None:
    """Each into its place, in the order in which they stand in the files: so a disk reads on."""
    ordered = sorted(tensors, key=lambda entry: (entry[0].path, entry[0].offset))
    pieces = [piece for tensor, place in ordered for piece in pieces_of(tensor, place)]
    if pieces:
        stream(pieces, pieces[0].place.device)
