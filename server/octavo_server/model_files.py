"""Which files a model directory must hold, and the remedy where one is missing. Without torch, for both processes."""

import json
from pathlib import Path
from typing import Final

from octavo_common.pulled_model import missing_part
from octavo_server.errors import ModelError

SINGLE_FILE: Final = "model.safetensors"
INDEX_FILE: Final = "model.safetensors.index.json"
_PICKLES: Final = ("*.bin", "*.pth", "*.pt", "*.ckpt")


def check_model_directory(directory: Path, *, weights: bool = True) -> None:
    """Sees to it that all is there that serving needs: config, weights, tokenizer. Opens none of them but the index.

    weights: False where they are not read.

    Raises:
        ModelError: what is missing, and what to do.
    """
    check_config_file(directory)
    if weights:
        weight_files(directory)
    check_tokenizer_file(directory)


def check_config_file(directory: Path) -> None:
    """Raises ModelError if there is no such directory, no config.json in it, or only a part of what was pulled."""
    if (missing := missing_part(directory)) is not None:
        raise ModelError(f"{directory} {missing}; run `octavo pull` to its end")
    if not directory.is_dir():
        raise ModelError(f"no model directory at {directory}; give a directory in Hugging Face layout")
    if not (directory / "config.json").is_file():
        raise ModelError(f"config.json is missing in {directory}; give a directory in Hugging Face layout")


def check_tokenizer_file(directory: Path) -> None:
    """Raises ModelError if there is no tokenizer.json."""
    if (directory / "tokenizer.json").is_file():
        return
    if (directory / "tokenizer.model").is_file():
        raise ModelError(
            f"{directory} has only tokenizer.model (SentencePiece), but tokenizer.json is needed; convert it with "
            "transformers: AutoTokenizer.from_pretrained(directory, use_fast=True).save_pretrained(directory)"
        )
    raise ModelError(f"tokenizer.json is missing in {directory}")


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of the model: the single one, or else the shards that its index names.

    Raises:
        ModelError: there are none, a shard is missing, or the index is broken. Pickles are never opened.
    """
    single = directory / SINGLE_FILE
    if single.is_file():
        return [single]
    if (directory / INDEX_FILE).is_file():
        return [directory / name for name in _shard_names(directory)]
    pickles = sorted(path.name for pattern in _PICKLES for path in directory.glob(pattern))
    if pickles:
        raise ModelError(
            f"{directory} has no safetensors, only {', '.join(pickles[:3])}; pickles can run code, none is opened. "
            "Convert with transformers: AutoModelForCausalLM.from_pretrained(directory).save_pretrained(new_directory)"
        )
    raise ModelError(f"no weights in {directory}: neither {SINGLE_FILE} nor {INDEX_FILE} is there")


def _shard_names(directory: Path) -> list[str]:
    """Names of all shards of the index, each a file beside it."""
    try:
        weight_map = json.loads((directory / INDEX_FILE).read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{INDEX_FILE} in {directory} is broken: {error!r}; download it again") from error
    if not names:
        raise ModelError(f"{INDEX_FILE} in {directory} names no shard; download it again")
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelError(f"{INDEX_FILE} names {name!r}; a shard must be a .safetensors file beside the index")
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise ModelError(
            f"{len(missing)} of {len(names)} shards are missing in {directory}: {', '.join(missing[:5])}; "
            "download them again"
        )
    return names
