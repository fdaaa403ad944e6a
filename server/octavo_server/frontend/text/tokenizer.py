"""The model's tokenizer: `tokenizer.json` through the `tokenizers` library, with the rules `transformers` adds to it.

What a text is surrounded with (a beginning of sequence) is decided by the file's post-processor alone, as in
transformers 5: `add_bos_token` of `tokenizer_config.json` is not looked at. That file names the special tokens, though.

For output, a tokenizer is a table from token ids to bytes: joined, the bytes of a sequence are the UTF-8 of its text.
That holds for the decoders of every supported family (byte-level; metaspace with or without byte fallback), so
streaming needs no windows of tokens that are decoded again and again. Other decoders are refused when the model is
loaded.
"""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal

from tokenizers import AddedToken, Tokenizer

from octavo_common.json_fields import ModelConfigError, read_json_object
from octavo_server.errors import ModelError, RequestError
from octavo_server.frontend.text.token_length import growth, token_length
from octavo_server.model_files import check_tokenizer_file

NAMED_TOKENS: Final = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_PER_TOKEN_DECODERS: Final = frozenset(
    {"ByteLevel", "ByteFallback", "Fuse", "Metaspace", "Replace", "Sequence", "Strip"}
)
_CACHED_WORDS: Final = 1_000
_MOST_GROWTH: Final = 16  # of a text by its normalizer; whoever wrote a model must not fill the memory
_BYTE_TOKEN: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TextTokenizer:
    """Text to token ids and back. Safe to use from several threads."""

    def __init__(self, directory: Path) -> None:
        """Read the tokenizer of a model directory.

        Raises:
            ModelError: there is no `tokenizer.json`, or it is of a kind that cannot be streamed.
        """
        self._tokenizer = _load(directory)
        self.config = read_tokenizer_config(directory)
        self.named_tokens = _named_tokens(directory, self.config)
        self._add_special_tokens()
        spec = json.loads(self._tokenizer.to_str())
        if (factor := growth(spec)) > _MOST_GROWTH:
            raise ModelError(f"tokenizer.json makes texts {factor} times as long; allowed is {_MOST_GROWTH} times")
        self._decoder_types = _decoder_types(spec["decoder"])
        self.token_length = token_length(self._tokenizer, spec)
        self._added_ids = frozenset(self._tokenizer.get_added_tokens_decoder())
        self.special_ids = self._find_special_ids()
        self._context = None if "ByteLevel" in self._decoder_types else self._find_context()
        self._bytes: dict[int, bytes] = {}
        self._whole: dict[frozenset[int], WholeTexts] = {}
        self._left_out: dict[frozenset[int], frozenset[int]] = {}

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of a text; with `add_special_tokens` as `tokenizer(text)` of transformers would give them.

        A chat template writes its own beginning of sequence, so rendered chats are encoded without.
        """
        # A batch of one: the library releases the GIL for batches. The fast variant leaves out the offsets.
        with _told_panics():
            (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return list(encoding.ids)

    def encode_part(
        self, text: str, most: int, side: Literal["left", "right"], *, add_special_tokens: bool
    ) -> list[int]:
        """The same of a text of which tokens are left out on one side, so that there are `most` with the special ones.

        Of special ones none is left out.
        """
        with _told_panics():
            (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
        added = self._tokenizer.num_special_tokens_to_add(False) if add_special_tokens else 0
        encoding.truncate(max(0, most - added), direction="right" if side == "right" else "left")
        return list(self._tokenizer.post_process(encoding, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: list[int], *, skip_special: bool = True) -> str:
        """The text of a whole sequence, special tokens left out or spelled."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=skip_special))

    def spelled(self, ids: list[int]) -> list[str]:
        """Each token as the vocabulary spells it; "" for an id that has none."""
        return [self._tokenizer.id_to_token(token_id) or "" for token_id in ids]

    def token_bytes(self, token_id: int) -> bytes:
        """UTF-8 of one token that follows others, special ones by their content; a part of a character may be alone.

        An id that the tokenizer has no token for (a padded embedding) has no bytes.
        """
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._token_bytes(token_id)
        return known

    def whole_texts(self, left_out: frozenset[int]) -> "WholeTexts":
        """The texts of tokens that are whole characters, nothing for those that are left out."""
        if (known := self._whole.get(left_out)) is None:
            known = self._whole.setdefault(left_out, WholeTexts(self, left_out))
        return known

    def left_out(self, kept: frozenset[int]) -> frozenset[int]:
        """The special tokens but for these: always the same object, whose hash is known."""
        if not kept:
            return self.special_ids
        if (known := self._left_out.get(kept)) is None:
            known = self._left_out.setdefault(kept, self.special_ids - kept)
        return known

    def added_tokens(self) -> dict[str, int]:
        """Ids of the tokens that stand beside the vocabulary, special or not, by their text."""
        return {token.content: token_id for token_id, token in self._tokenizer.get_added_tokens_decoder().items()}

    def first_bytes(self, token_id: int) -> bytes:
        """As `token_bytes`, for a token that opens a text: some decoders drop its leading space."""
        if self._context is None or token_id in self.special_ids:
            return self.token_bytes(token_id)
        alone = str(self._tokenizer.decode([token_id], skip_special_tokens=False))
        return self.token_bytes(token_id) if self._fallback_byte(token_id) is not None and alone else alone.encode()

    def _token_bytes(self, token_id: int) -> bytes:
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if token_id in self.special_ids:
            return str(token).encode()
        if self._context is None:
            # An added token stands for itself. (The library reads it as byte-level too, and garbles its accents.)
            return str(token).encode() if token_id in self._added_ids else _byte_level(token)
        byte = self._fallback_byte(token_id)
        if byte is not None:
            return byte
        context_id, context_text = self._context
        return str(self._tokenizer.decode([context_id, token_id], skip_special_tokens=False))[
            len(context_text) :
        ].encode()

    def _fallback_byte(self, token_id: int) -> bytes | None:
        match = _BYTE_TOKEN.fullmatch(self._tokenizer.id_to_token(token_id) or "")
        return bytes([int(match[1], 16)]) if match and "ByteFallback" in self._decoder_types else None

    def _add_special_tokens(self) -> None:
        """Make special what the configuration calls special, where the vocabulary has it."""
        declared = self.config.get("added_tokens_decoder")
        entries = (
            [entry for entry in declared.values() if isinstance(entry, dict)] if isinstance(declared, dict) else []
        )
        contents = [str(entry["content"]) for entry in entries if entry.get("special") and "content" in entry]
        present = [
            text for text in [*self.named_tokens.values(), *contents] if self._tokenizer.token_to_id(text) is not None
        ]
        self._tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in present])

    def _find_special_ids(self) -> frozenset[int]:
        """Ids that the library leaves out of a decoded text; asked of it: a token may be special in several ways."""
        decode = self._tokenizer.decode
        return frozenset(
            token_id
            for token_id in self._added_ids
            if decode([token_id], skip_special_tokens=False) and not decode([token_id], skip_special_tokens=True)
        )

    def _find_context(self) -> tuple[int, str]:
        """A plain token to put before another one, so that the other does not count as the first, and its text."""
        for token, token_id in sorted(
            self._tokenizer.get_vocab(with_added_tokens=False).items(), key=lambda entry: entry[1]
        ):
            text = str(self._tokenizer.decode([token_id], skip_special_tokens=False))
            doubled = str(self._tokenizer.decode([token_id, token_id], skip_special_tokens=False))
            if (
                text == token
                and token_id not in self.special_ids
                and text.isascii()
                and text.isalnum()
                and doubled == text * 2
            ):
                return token_id, text
        raise ModelError("tokenizer.json has no plain token: this kind of tokenizer is not supported")


@contextlib.contextmanager
def _told_panics() -> Iterator[None]:
    """Where the library gives up (a pattern of the model's that backtracks without end) it raises a BaseException.

    Raises:
        RequestError: it did.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise RequestError("the model's tokenizer cannot take this text apart", code="tokenizer_failed") from error


class WholeTexts(dict[int, str | None]):
    """Texts of the tokens that are whole characters, None of the others; found out when first asked for.

    A table, because it is asked for every token of every answer.
    """

    def __init__(self, tokenizer: TextTokenizer, left_out: frozenset[int]) -> None:
        """`left_out`: tokens that add no text."""
        super().__init__()
        self._tokenizer, self._left_out = tokenizer, left_out

    def __missing__(self, token_id: int) -> str | None:
        try:
            text = "" if token_id in self._left_out else self._tokenizer.token_bytes(token_id).decode()
        except UnicodeDecodeError:
            text = None
        self[token_id] = text
        return text


def read_tokenizer_config(directory: Path) -> dict[str, Any]:
    """`tokenizer_config.json` as a dict; empty where there is none.

    Raises:
        ModelError: the file is not a JSON object.
    """
    return _read_json(directory / "tokenizer_config.json")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path) if path.is_file() else {}
    except ModelConfigError as error:
        raise ModelError(str(error)) from error


def _load(directory: Path) -> Tokenizer:
    check_tokenizer_file(directory)
    path = directory / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise ModelError(f"{path} cannot be read: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # The library keeps how it cut words, in each thread for itself. The 10,000 that it would keep may be 256 characters
    # long, by whatever requests say: 80 MiB a thread, to save a few per cent of the time. There is no public way.
    if (resize := getattr(tokenizer.model, "_resize_cache", None)) is not None:
        resize(_CACHED_WORDS)
    return tokenizer


def _named_tokens(directory: Path, config: dict[str, Any]) -> dict[str, str]:
    """bos_token, eos_token and so on, as the chat template sees them. Each is a string or an object with `content`."""
    # The older file counts, and counts first, where the newer one does not list the added tokens.
    older = {} if "added_tokens_decoder" in config else _read_json(directory / "special_tokens_map.json")
    named = {}
    for name in NAMED_TOKENS:
        value = older.get(name, config.get(name))
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str):
            named[name] = content
    return named


def _decoder_types(decoder: dict[str, Any] | None) -> frozenset[str]:
    """The kinds of decoder in use; all must map each token to its bytes whatever surrounds it (but for the first)."""
    parts = [decoder, *decoder.get("decoders", ())] if decoder is not None else []
    types = frozenset(str(part["type"]) for part in parts)
    trims_the_end = any(part["type"] == "Strip" and part.get("stop", 0) for part in parts)
    if not types or types - _PER_TOKEN_DECODERS or trims_the_end:
        found = ", ".join(sorted(types)) or "none"
        raise ModelError(
            f"tokenizer.json has a decoder that is not supported ({found}); byte-level and metaspace ones are"
        )
    return types


def _byte_table() -> dict[str, int]:
    """Byte-level BPE writes each byte as a printable character: itself where it is one, else one from 256 upwards.

    The mapping of GPT-2 (Radford et al., 2019).
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in table.values())
    return table | {chr(256 + index): byte for index, byte in enumerate(others)}


_BYTES_OF_CHARACTERS: Final = _byte_table()


def _byte_level(token: str) -> bytes:
    """Bytes of a byte-level token; one with characters outside the table stands for itself."""
    try:
        return bytes(_BYTES_OF_CHARACTERS[character] for character in token)
    except KeyError:
        return token.encode()
