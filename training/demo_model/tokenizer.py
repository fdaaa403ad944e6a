"""Trains the byte-level BPE tokenizer on our own conversations: `python -m training.demo_model.tokenizer OUT.json`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from random import Random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from .chat_format import MARKUP_TOKENS, SPECIAL_TOKENS, render
from .conversations import conversation

VOCABULARY = 2048
SEED = 8
# Qwen's pattern: words with the blank before them, every digit on its own
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def corpus(conversations: int) -> Iterator[str]:
    """Rendered conversations from a fixed seed."""
    rng = Random(SEED)
    for _ in range(conversations):
        messages, tools = conversation(rng, 500)
        yield render(messages, tools)


def train_tokenizer(conversations: int = 6000) -> Tokenizer:
    """A tokenizer of `VOCABULARY` entries whose byte alphabet can encode any text."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    added = len(SPECIAL_TOKENS) + len(MARKUP_TOKENS)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - added,
        special_tokens=[],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(conversations), trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in MARKUP_TOKENS])
    return tokenizer


def main() -> None:
    """Trains and saves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--conversations", type=int, default=6000)
    arguments = parser.parse_args()
    train_tokenizer(arguments.conversations).save(str(arguments.out))


if __name__ == "__main__":
    main()
