"""Checkpoints copied by threads, held against what the safetensors library itself reads."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from octavo_server.errors import ModelError
from octavo_server.worker import weight_stream
from octavo_server.worker.checkpoint_file import CheckpointFile, StoredTensor
from octavo_server.worker.weight_stream import pieces_of, stream

CPU = torch.device("cpu")
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def read(tensors: list[StoredTensor], places: dict[str, torch.Tensor], threads: int = 3, piece: int = 64) -> None:
    stream([part for one in tensors for part in pieces_of(one, places[one.name], piece)], CPU, threads)


def noise(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threads", [1, 5])
def test_every_type_arrives_as_the_library_reads_it(tmp_path: Path, wanted: torch.dtype, threads: int) -> None:
    shapes = [(), (1,), (7,), (33, 5), (2, 3, 4), (0, 4)]
    stored = {f"{d}{n}": noise(*shape, dtype=d) for d in DTYPES for n, shape in enumerate(shapes)}
    path = tmp_path / "a.safetensors"
    save_file(stored, path, metadata={"format": "pt"})
    tensors = CheckpointFile(path).tensors
    places = {name: torch.full(tensor.shape, torch.nan, dtype=wanted) for name, tensor in stored.items()}
    read(list(tensors.values()), places, threads)
    for name, truth in load_file(path).items():
        assert torch.equal(places[name], truth.to(wanted)), name


def test_parts_of_a_fused_tensor_from_several_files_find_their_places(tmp_path: Path) -> None:
    parts = [noise(rows, 24, dtype=torch.float16) for rows in (16, 4, 4)]
    fused, tensors, places = torch.zeros(24, 24), list[StoredTensor](), dict[str, torch.Tensor]()
    for name, part, place in zip("qkv", parts, fused.split([16, 4, 4]), strict=True):
        save_file({name: part}, tmp_path / f"{name}.safetensors")
        tensors.append(CheckpointFile(tmp_path / f"{name}.safetensors").tensors[name])
        places[name] = place
    read(tensors, places, piece=100)
    assert torch.equal(fused, torch.cat(parts).float())


@pytest.mark.parametrize("in_place", [False, True])
def test_a_file_that_is_replaced_after_its_header_was_read_is_not_taken_for_the_old_one(
    tmp_path: Path, in_place: bool
) -> None:
    """The tensor stands elsewhere in the new one: what is at its old place would be taken for weights."""
    path, value = tmp_path / "a.safetensors", noise(64, dtype=torch.float32)
    save_file({"value": value}, path)
    tensors = CheckpointFile(path).tensors
    new = tmp_path / "b.safetensors"
    save_file({"another": noise(90, dtype=torch.float64), "value": value}, new)
    if in_place:
        path.write_bytes(new.read_bytes())
    else:
        new.replace(path)
    with pytest.raises(ModelError, match=r"a\.safetensors changed while it was read"):
        read(list(tensors.values()), {"value": torch.zeros(64)})


def test_a_tensor_beyond_four_gigabytes_is_found(tmp_path: Path) -> None:
    path, value = tmp_path / "large.safetensors", noise(40, dtype=torch.float32)
    hole = 5 * 2**30
    header = {
        "hole": {"dtype": "U8", "shape": [hole], "data_offsets": [0, hole]},
        "value": {"dtype": "F32", "shape": [40], "data_offsets": [hole, hole + 160]},
    }
    head = json.dumps(header).encode().ljust(160)
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        file.seek(8 + len(head) + hole)  # sparse: nothing is written in between
        file.write(value.numpy().tobytes())
    place = torch.zeros(40)
    read([CheckpointFile(path).tensors["value"]], {"value": place})
    assert torch.equal(place, value)


def test_pieces_cover_a_tensor_once_in_whole_elements() -> None:
    tensor = StoredTensor(Path("x"), "x", "F64", [10, 10], 1000, (1800, 0))
    pieces = pieces_of(tensor, torch.zeros(10, 10), 100)
    assert all(piece.num_bytes <= 96 and piece.num_bytes % 8 == 0 for piece in pieces)
    ends = [piece.offset + piece.num_bytes for piece in pieces]
    assert [piece.offset for piece in pieces] == [1000, *ends[:-1]] and ends[-1] == 1800


@pytest.mark.parametrize("threads", [1, 4])
def test_a_file_that_became_shorter_is_named_by_its_tensor(tmp_path: Path, threads: int) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(500), "b": torch.zeros(500)}, path)
    tensors = list(CheckpointFile(path).tensors.values())
    os.truncate(path, path.stat().st_size - 4)
    with pytest.raises(ModelError, match=r"b cannot be read.*ends too early.*download the checkpoint again"):
        read(tensors, {"a": torch.zeros(500), "b": torch.zeros(500)}, threads)


def test_a_file_that_vanished_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(5)}, path)
    tensors = list(CheckpointFile(path).tensors.values())
    path.unlink()
    with pytest.raises(ModelError, match=r"a\.safetensors cannot be read"):
        read(tensors, {"a": torch.zeros(5)})


def test_after_a_failure_no_thread_goes_on_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(100_000)}, path)
    calls: list[int] = []

    def fail(_file: int, _buffers: Any, offset: int) -> int:
        calls.append(offset)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(weight_stream.os, "preadv", fail)
    with pytest.raises(ModelError, match="Input/output error"):
        read(list(CheckpointFile(path).tensors.values()), {"a": torch.zeros(100_000)}, threads=3)
    assert len(calls) <= 3


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"dtype": "F32", "shape": [4], "data_offsets": [0, 32]}, "32 bytes, not the 16"),
        ({"dtype": "F32", "shape": [8], "data_offsets": [8, 40]}, "outside of the file"),
        ({"dtype": "F32", "shape": [8], "data_offsets": [32, 0]}, "outside of the file"),
        ({"dtype": "F32", "shape": [8]}, "data_offsets"),
        ({"dtype": "F32", "shape": "8", "data_offsets": [0, "x"]}, "no readable"),
    ],
)
def test_a_header_replaced_after_the_library_has_checked_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: dict[str, Any], told: str
) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(8)}, path)
    real = json.loads
    monkeypatch.setattr("octavo_server.worker.checkpoint_file.json.loads", lambda text: real(text) | {"a": entry})
    with pytest.raises(ModelError, match=f"{told}.*download it again"):
        CheckpointFile(path)


def test_a_tensor_that_came_after_the_librarys_look_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(8)}, path)
    monkeypatch.setattr("octavo_server.worker.checkpoint_file.json.loads", lambda _text: {"b": {}})
    with pytest.raises(ModelError, match="changed while it was read"):
        CheckpointFile(path)
