"""Where each tensor stands in a safetensors file.

A file is 8 bytes with the header's length, the header in JSON, and the tensors' bytes. The library checks all of it
when it opens a file (lengths, shapes, that tensors fill the file without a gap), but does not tell offsets; so the
header is read once more here, and what is taken from it is checked again: the file may have been replaced in between.
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import torch
from safetensors import SafetensorError, safe_open

from octavo_server.errors import ModelError

DTYPES: Final = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_MOST_HEADER_BYTES: Final = 100_000_000  # the library's own bound


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file, row-major from byte `offset`. dtype: as the file calls it, known or not.

    state: `state_of` the file when its header was read.
    """

    path: Path
    name: str
    dtype: str
    shape: list[int]
    offset: int
    state: tuple[int, int]

    @property
    def num_bytes(self) -> int:
        """Of a known dtype."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


class CheckpointFile:
    """An open safetensors file."""

    def __init__(self, path: Path) -> None:
        """Raises ModelError if it is no readable safetensors file."""
        self.path = path
        try:
            self._file: Any = safe_open(path, framework="pt", device="cpu")
            self.tensors = _stored_tensors(path, set(self._file.keys()))  # type: ignore[no-untyped-call]
        except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
            raise ModelError(f"{path} is no readable safetensors file ({error}); download it again") from error

    def __enter__(self) -> Self:
        self._file.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.__exit__(*exception)

    def read(self, name: str) -> torch.Tensor:
        """One tensor, memory-mapped. Raises ModelError."""
        try:
            tensor: torch.Tensor = self._file.get_tensor(name)
        except SafetensorError as error:
            raise ModelError(f"{name} cannot be read ({error}); download the checkpoint again") from error
        return tensor


def state_of(file: Any) -> tuple[int, int]:
    """Size and time of the last change: another one tells that the file is not what it was."""
    found = os.fstat(file.fileno())
    return found.st_size, found.st_mtime_ns


def _stored_tensors(path: Path, names: set[str]) -> dict[str, StoredTensor]:
    """By name; `names` are those that the library found. Raises OSError, ValueError, TypeError or KeyError."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _MOST_HEADER_BYTES:
            raise ValueError(f"a header of {length} bytes")
        header = json.loads(file.read(length))
        state = state_of(file)
    header.pop("__metadata__", None)
    if set(header) != names:
        raise ValueError("its header changed while it was read")
    return {name: _stored_tensor(path, name, entry, 8 + length, state) for name, entry in header.items()}


def _stored_tensor(path: Path, name: str, entry: dict[str, Any], begin: int, state: tuple[int, int]) -> StoredTensor:
    """begin: of all tensors' bytes in the file."""
    first, end = (begin + int(offset) for offset in entry["data_offsets"])
    tensor = StoredTensor(path, name, entry["dtype"], [int(size) for size in entry["shape"]], first, state)
    if not begin <= first <= end <= state[0]:
        raise ValueError(f"{name} stands outside of the file")
    if tensor.dtype in DTYPES and tensor.num_bytes != end - first:
        raise ValueError(f"{name} has {end - first} bytes, not the {tensor.num_bytes} of its shape and type")
    return tensor
