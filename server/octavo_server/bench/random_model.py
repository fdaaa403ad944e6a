"""Model directories without a published model: config.json, a tokenizer for its vocabulary, perhaps random weights.

With `--load-format random` a server needs no weights; to time how weights are read, there must be some.
"""

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, product
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from octavo_common.json_fields import ModelConfigError, read_json_object
from octavo_common.model_config import ModelConfig, parse_model_config
from octavo_server.errors import ModelError
from octavo_server.model_files import INDEX_FILE
from octavo_server.worker.models.decoder import Decoder, weight_places

_SPECIAL: Final = ("<|begin|>", "<|end|>")  # the tokens 0 and 1
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"
_SHARD_BYTES: Final = 4 * 2**30
_NOISE_BYTES: Final = 64 * 2**20
_WRITERS: Final = 16
_STD: Final = 0.02
_DTYPES: Final = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


def read_shape(path: Path) -> ModelConfig:
    """The shape that a config.json describes. Raises ModelError that names field, what it holds and what is allowed."""
    try:
        return parse_model_config(read_json_object(path))
    except ModelConfigError as error:
        raise ModelError(f"{path}: {error}") from error


def write_model(config: Path, directory: Path, *, weights: bool = False) -> ModelConfig:
    """Writes `config` as config.json into `directory`, with a tokenizer, and weights if they are asked for.

    Raises ModelError if no server could run the shape.
    """
    shape = read_shape(config)
    directory.mkdir(parents=True, exist_ok=True)
    if not (directory / "config.json").is_file() or not config.samefile(directory / "config.json"):
        shutil.copyfile(config, directory / "config.json")
    _write_json(directory / "generation_config.json", {"eos_token_id": list(shape.eos_token_ids)})
    write_tokenizer(directory, shape.vocab_size)
    if weights:
        write_weights(directory, shape)
    return shape


def has_weights(directory: Path, shape: ModelConfig) -> bool:
    """Whether there is a checkpoint of this shape already: then it need not be written again."""
    return (directory / INDEX_FILE).is_file() and read_shape(directory / "config.json") == shape


def write_tokenizer(directory: Path, vocab_size: int) -> None:
    """A byte-level tokenizer of that many tokens: two special ones, the 256 bytes, and made-up words with a space.

    It has no merges: a text becomes its bytes, but each token has a text, so that each one generated is streamed.
    Raises ModelError if the vocabulary has no room for the bytes.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < len(_SPECIAL) + len(alphabet):
        raise ModelError(f"vocab_size is {vocab_size}; a byte-level tokenizer needs {len(_SPECIAL) + len(alphabet)}")
    tokens = [*_SPECIAL, *alphabet]
    tokens += islice(_words(), vocab_size - len(tokens))
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL])
    tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
    named = {"bos_token": _SPECIAL[0], "eos_token": _SPECIAL[1], "tokenizer_class": "PreTrainedTokenizerFast"}
    _write_json(directory / "tokenizer_config.json", named)


def _words() -> Iterator[str]:
    """ "Ġ" is the space of byte-level tokens."""
    for length in range(1, 6):
        for letters in product(_LETTERS, repeat=length):
            yield "Ġ" + "".join(letters)


def write_weights(directory: Path, shape: ModelConfig) -> int:
    """Safetensors shards and their index; the bytes written.

    The matrices repeat one piece of noise, so that 15 GB are written as fast as the file system takes them.
    """
    tensors = tensor_shapes(shape)
    dtype: torch.dtype = getattr(torch, shape.dtype)
    noise = _noise(dtype)
    shards = _shards(tensors, dtype.itemsize)
    names = [f"model-{index + 1:05}-of-{len(shards):05}.safetensors" for index in range(len(shards))]
    where, total = dict[str, str](), 0
    with ThreadPoolExecutor(_WRITERS) as writers:
        jobs = []
        for name, shard in zip(names, shards, strict=True):
            header, offsets, size = _layout(shard, tensors, shape.dtype)
            path = directory / name
            path.write_bytes(len(header).to_bytes(8, "little") + header)
            os.truncate(path, size)
            for tensor, begin in offsets.items():
                count = dtype.itemsize * math.prod(tensors[tensor])
                source = _bytes(torch.ones(tensors[tensor], dtype=dtype)) if "norm" in tensor else noise
                for start in range(0, count, len(source)):
                    jobs.append(writers.submit(_write_at, path, begin + start, source[: count - start]))
                where[tensor] = name
                total += count
        for job in jobs:
            job.result()
    _write_json(directory / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": where})
    return total


def tensor_shapes(shape: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The tensors that a checkpoint of this shape has, by their names there."""
    places = weight_places(Decoder(shape, torch.bfloat16, torch.device("meta")))
    if shape.tie_word_embeddings:
        del places["lm_head.weight"]
    return {name: tuple(place.shape) for name, place in places.items()}


def _shards(tensors: Mapping[str, tuple[int, ...]], element_bytes: int) -> list[list[str]]:
    shards, room = list[list[str]](), 0
    for name, shape in tensors.items():
        size = element_bytes * math.prod(shape)
        if size > room:
            shards.append([])
            room = _SHARD_BYTES
        shards[-1].append(name)
        room -= size
    return shards


def _layout(shard: list[str], tensors: Mapping[str, tuple[int, ...]], dtype: str) -> tuple[bytes, dict[str, int], int]:
    """(the JSON header, where each tensor begins in the file, the file's size)."""
    entries, end = dict[str, Any](), 0
    for name in shard:
        size = getattr(torch, dtype).itemsize * math.prod(tensors[name])
        entries[name] = {"dtype": _DTYPES[dtype], "shape": list(tensors[name]), "data_offsets": [end, end + size]}
        end += size
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    begin = 8 + len(header)
    return header, {name: begin + entry["data_offsets"][0] for name, entry in entries.items()}, begin + end


def _noise(dtype: torch.dtype) -> memoryview:
    generator = torch.Generator().manual_seed(0)
    return _bytes(torch.empty(_NOISE_BYTES // dtype.itemsize, dtype=dtype).normal_(std=_STD, generator=generator))


def _bytes(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.view(torch.uint8).numpy().tobytes())


def _write_at(path: Path, begin: int, source: memoryview) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        done = 0
        while done < len(source):
            done += os.pwrite(descriptor, source[done:], begin + done)
    finally:
        os.close(descriptor)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
