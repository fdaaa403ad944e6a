"""How a model's hidden states become an embedding, by its files.

Sentence Transformers' layout: `modules.json` lists what comes after the transformer, `1_Pooling/config.json` says how
its states are pooled. A model without it is taken for a causal one, whose last token has seen all others: that token's
state, normalized, as vLLM has it. `config.json` says by `is_matryoshka` or `matryoshka_dimensions` whether shorter
embeddings mean anything; vLLM reads the same two.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal, get_args

from octavo_common.json_fields import FieldReader, ModelConfigError, read_json_list, read_json_object

Pooling = Literal["mean", "last", "cls"]
POOLINGS: Final[tuple[Pooling, ...]] = get_args(Pooling)

# As Sentence Transformers spells them: a flag for each in older files, one word in newer ones.
_FLAGS: Final[dict[str, Pooling]] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_cls_token": "cls",
}
_WORDS: Final[dict[str, Pooling]] = {"mean": "mean", "lasttoken": "last", "cls": "cls"}


@dataclass(frozen=True, slots=True)
class PoolingConfig:
    """`dimensions`: the lengths that an embedding may be cut to; None: any length. The whole is always allowed."""

    hidden_size: int
    pooling: Pooling = "last"
    normalize: bool = True
    dimensions: tuple[int, ...] | None = ()


def read_pooling_config(directory: Path) -> PoolingConfig:
    """What the files in `directory` say.

    Raises:
        ModelConfigError: a file is broken, or asks for what is not supported.
    """
    config = FieldReader(read_json_object(directory / "config.json"))
    dimensions = config.counts("matryoshka_dimensions")
    if dimensions is None:
        dimensions = None if config.flag("is_matryoshka") else ()
    hidden_size = config.count("hidden_size")
    if not (directory / "modules.json").is_file():
        return PoolingConfig(hidden_size, dimensions=dimensions)
    pooling, normalize = _read_modules(directory)
    return PoolingConfig(hidden_size, pooling, normalize, dimensions)


def _read_modules(directory: Path) -> tuple[Pooling, bool]:
    """(how it is pooled, whether it is normalized)."""
    pooling: Pooling = "last"
    normalize = False
    for module in read_json_list(directory / "modules.json"):
        name = str(module.get("type")).rpartition(".")[2] if isinstance(module, dict) else ""
        match name:
            case "Transformer":
                continue
            case "Pooling":
                pooling = _pooling_of(read_json_object(_inside(directory, module.get("path")) / "config.json"))
            case "Normalize":
                normalize = True
            case _:
                told = name or repr(module)[:200]
                supported = "supported are Transformer, Pooling and Normalize"
                raise ModelConfigError(f"modules.json names {told}, which is not supported; {supported}")
    return pooling, normalize


def _inside(directory: Path, path: object) -> Path:
    parts = PurePosixPath(path) if isinstance(path, str) else None
    if parts is None or parts.is_absolute() or ".." in parts.parts:
        raise ModelConfigError(f"modules.json: path is {path!r}; it must name a directory of the model's")
    return directory / parts


def _pooling_of(config: Mapping[str, Any]) -> Pooling:
    word = config.get("pooling_mode")
    if word in _WORDS:
        return _WORDS[word]
    on = [word] if word else [name for name, value in config.items() if name.startswith("pooling_mode_") and value]
    if len(on) == 1 and on[0] in _FLAGS:
        return _FLAGS[on[0]]
    raise ModelConfigError(
        f"the model's pooling is {', '.join(map(str, on)) or 'not told'}, which is not supported; supported is one of "
        f"{', '.join(_FLAGS)}"
    )
