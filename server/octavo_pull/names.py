"""Which files are fetched, and under which names: what serving reads, and nothing that leads out of the directory."""

from collections.abc import Collection, Iterable
from pathlib import PurePosixPath
from typing import Final

from octavo_pull.errors import RefusedError

MOST_FILES: Final = 10_000
LONGEST_NAME: Final = 1024
LONGEST_PART: Final = 255

WEIGHTS: Final = ".safetensors"
PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_ENDINGS: Final = (".json", ".jinja", ".tiktoken")
_TEXTS: Final = ("merges.txt", "vocab.txt", "tokenizer.model", "sentencepiece.bpe.model", "spiece.model")
_LICENCES: Final = ("license", "licence", "notice", "use_policy")


def safe_name(name: str) -> str:
    """`name` without a leading "./".

    Raises:
        RefusedError: it would lie outside the directory, or is no name of a file.
    """
    plain = name[2:] if name.startswith("./") else name
    parts = plain.split("/")
    unsafe = "\\" in plain or not plain.isprintable() or any(part in ("", ".", "..") for part in parts)
    if unsafe or len(plain.encode()) > LONGEST_NAME or any(len(part.encode()) > LONGEST_PART for part in parts):
        raise RefusedError(f"the source has a file named {plain[:100]!r}, which is no name inside a directory")
    return plain


def is_wanted(name: str) -> bool:
    """Whether serving may read a file of this name; weights in folders are other models' or other frameworks'."""
    path = PurePosixPath(name)
    last = path.name.lower()
    if any(part.startswith(".") for part in path.parts):
        return False
    if last.endswith(WEIGHTS):
        return len(path.parts) == 1
    return last.endswith(_ENDINGS) or last in _TEXTS or last.startswith(_LICENCES)


def choose(names: Iterable[str], where: str) -> list[str]:
    """Those of `names` that are fetched.

    Raises:
        RefusedError: a name leads elsewhere, there are too many, or no model is among them.
    """
    found = [safe_name(name) for name in names]
    wanted = sorted({name for name in found if is_wanted(name)})
    whole = [name for name in wanted if not name.startswith("consolidated")]
    if any(name.endswith(WEIGHTS) for name in whole):
        wanted = whole  # the same weights once more, in the layout of another library
    if len(wanted) > MOST_FILES:
        raise RefusedError(f"{where} has {len(wanted)} files; {MOST_FILES} are allowed")
    check_model(wanted, found, where)
    return wanted


def check_model(wanted: Collection[str], found: Collection[str], where: str) -> None:
    """Raises RefusedError if config.json, weights or a tokenizer are not among the files that are fetched."""
    if not any(name.endswith(WEIGHTS) for name in wanted):
        pickles = sorted(name for name in found if name.lower().endswith(PICKLES))
        if pickles:
            raise RefusedError(
                f"{where} has no safetensors, only {', '.join(pickles[:3])}; pickles can run code, none is fetched"
            )
        raise RefusedError(f"{where} has no *.safetensors")
    for name in ("config.json", "tokenizer.json"):
        if name not in wanted:
            raise RefusedError(f"{where} has no {name}")
