"""How much text a token can stand for at most, so that a text that cannot fit is refused before it is tokenized.

Known where a tokenizer loses no character: every byte has a token of its own, and what normalizes and splits the text
is of a kind whose shrinking is known. Elsewhere (unknown characters that fuse into one token or vanish, normalizers
that take text away) there is no such bound, and none is made up.
"""

import math
import re
from dataclasses import dataclass
from typing import Any, Final

from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

_NORMALIZERS: Final = {  # by how much each can shorten the UTF-8 of a text
    "ByteLevel": 1,
    "Prepend": 1,
    "NFC": 9,  # decomposing takes away two thirds of a character's bytes at most, composing as much of several
    "NFD": 3,
    "NFKC": 12,
    "NFKD": 4,
    "Lowercase": 3,
}
_SPLITTERS: Final = frozenset({"ByteLevel", "Digits", "Metaspace", "Punctuation", "Split", "UnicodeScripts"})
_SPACE: Final = re.compile(r"\s+")
_PIECE: Final = 256 * 1024  # characters


@dataclass(frozen=True, slots=True)
class TokenLength:
    """`ascii_bytes` and `bytes`: of UTF-8, the most that one token stands for in ASCII text and in any text.

    `swallows_space`: there are tokens that take all white space beside them, however much.
    """

    ascii_bytes: int
    bytes: int
    swallows_space: bool

    def least_tokens(self, *texts: str) -> int:
        """So many tokens they have at least, in whatever order they are joined; takes milliseconds a megabyte."""
        most = self.ascii_bytes if all(text.isascii() for text in texts) else self.bytes
        return math.ceil(sum(map(self._length, texts)) / most)

    def _length(self, text: str) -> int:
        """Bytes of UTF-8 that count; in pieces, between which others have their turn."""
        length = 0
        for begin in range(0, len(text), _PIECE):
            piece = text[begin : begin + _PIECE]
            counted = _SPACE.sub("", piece) if self.swallows_space else piece
            length += len(counted.encode("utf-8", "surrogatepass"))
        return length


def token_length(tokenizer: Tokenizer, spec: dict[str, Any]) -> TokenLength | None:
    """The bound for a tokenizer; None if it has none. `spec`: its `tokenizer.json`."""
    factor = _shrinking(_parts(spec["normalizer"], "normalizers"))
    splitters = _parts(spec["pre_tokenizer"], "pretokenizers")
    if factor is None or not all(_keeps_text(part) for part in splitters):
        return None
    byte_level = any(part["type"] == "ByteLevel" for part in [*splitters, *_parts(spec["normalizer"], "normalizers")])
    vocabulary = _vocabulary(spec["model"])
    if not _knows_every_byte(spec["model"], vocabulary, byte_level):
        return None
    added = [entry["content"] for entry in spec["added_tokens"]]
    if tokenizer.normalizer is not None:  # some are looked for in the text as it is then
        added += [tokenizer.normalizer.normalize_str(content) for content in added]
    longest = max(len(token) if byte_level else len(token.encode()) for token in vocabulary)
    longest = max([longest, *(len(content.encode()) for content in added)])
    swallows_space = any(entry["lstrip"] or entry["rstrip"] for entry in spec["added_tokens"])
    return TokenLength(longest, longest * factor, swallows_space)


def growth(spec: dict[str, Any]) -> int:
    """By how much what normalizes a text can lengthen it at most, where rules of its own replace parts of it."""
    factor = 1
    for part in _parts(spec["normalizer"], "normalizers"):
        if part["type"] == "Replace":
            replaced = len(part["pattern"].get("String", "")) or 1  # a regex may match a single character, or none
            factor *= max(1, math.ceil(len(part["content"]) / replaced))
    return factor


def _parts(part: dict[str, Any] | None, members: str) -> list[dict[str, Any]]:
    """A sequence's members, flat."""
    if part is None:
        return []
    return [one for each in part[members] for one in _parts(each, members)] if part["type"] == "Sequence" else [part]


def _shrinking(normalizers: list[dict[str, Any]]) -> int | None:
    factor = 1
    for part in normalizers:
        pattern = part.get("pattern", {}).get("String")
        if part["type"] == "Replace" and pattern and len(part["content"].encode()) >= len(pattern.encode()):
            continue
        if part["type"] not in _NORMALIZERS:
            return None
        factor *= _NORMALIZERS[part["type"]]
    return factor


def _keeps_text(splitter: dict[str, Any]) -> bool:
    return splitter["type"] in _SPLITTERS and splitter.get("behavior") != "Removed"


def _vocabulary(model: dict[str, Any]) -> frozenset[str]:
    """Pieces of the kinds of models whose unknown characters may become bytes; of others none."""
    if model["type"] == "BPE":
        return frozenset(model["vocab"])
    return frozenset(piece for piece, _ in model["vocab"]) if model["type"] == "Unigram" else frozenset()


def _knows_every_byte(model: dict[str, Any], vocabulary: frozenset[str], byte_level: bool) -> bool:
    if byte_level:
        return vocabulary.issuperset(ByteLevel.alphabet())
    return bool(model.get("byte_fallback")) and vocabulary.issuperset(f"<0x{byte:02X}>" for byte in range(256))
