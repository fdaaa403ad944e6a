"""Small tokenizers of the families that published models use, trained on a few lines of text when a test asks."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

TEXT: Final = [
    "The quick brown fox jumps over the lazy dog, again and again.",
    "A page of the cache holds sixteen tokens; a block table says where.",
    "Grüße aus Köln – naïve café, Straße, 価格は百円です。你好，世界！",
    "Привет, мир! 🙂👍🏽 emoji and tabs\tand\nnew lines.",
    "def add(a, b):\n    return a + b\n\n{'json': [1, 2.5, null]}",
    "user assistant system tool hello hello hello world world",
]
SPECIAL: Final = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
CHATML: Final = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_level_bpe(vocab_size: int = 400) -> Tokenizer:
    """As in Llama 3 and Qwen."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT * 3, trainer)
    tokenizer.add_tokens(["<tool_call>"])
    return tokenizer


def _byte_fallback_bpe(normalizer: normalizers.Normalizer, decoder: decoders.Decoder) -> Tokenizer:
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False)
    trained.train_from_iterator(TEXT[:2] * 3, trainer)
    model = json.loads(trained.to_str())["model"]
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += [piece for piece in model["vocab"] if piece not in SPECIAL]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizer
    tokenizer.decoder = decoder
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def llama2_like() -> Tokenizer:
    """Byte fallback, a space put before the text and taken off again."""
    return _byte_fallback_bpe(
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
        decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        ),
    )


def gemma_like() -> Tokenizer:
    """Byte fallback, without the space."""
    decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return _byte_fallback_bpe(normalizers.Replace(" ", "▁"), decoder)


def metaspace_unigram() -> Tokenizer:
    """As SentencePiece unigram models become."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(TEXT * 3, trainer)
    return tokenizer


FAMILIES: Final[dict[str, Callable[[], Tokenizer]]] = {
    "byte-level BPE": byte_level_bpe,
    "byte fallback, prefix space": llama2_like,
    "byte fallback": gemma_like,
    "metaspace unigram": metaspace_unigram,
}


def save(tokenizer: Tokenizer, directory: Path, **config: Any) -> Path:
    """Write `tokenizer.json` and a `tokenizer_config.json` with the given entries into a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    named = {"bos_token": "<s>", "eos_token": "<|im_end|>", "unk_token": "<unk>"}
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **named, **config})
    )
    return directory


def families(base: Path) -> Iterator[tuple[str, Path]]:
    """Each family's name and a directory with it."""
    for name, make in FAMILIES.items():
        yield name, save(make(), base / name.replace(" ", "-"))
