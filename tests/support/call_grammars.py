"""Grammars of tool calls run by llguidance itself, over several kinds of tokenizer."""

import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

DEMO: Final = Path(__file__).resolve().parents[2] / "server" / "octavo_server" / "demo_model"
MARKERS: Final = (
    "<|python_tag|>", "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]", "<|python_start|>", "<|python_end|>",
)  # fmt: skip


class ByteTokens:
    """A tokenizer with a token for each byte, and one for the end."""

    eos_token_id = 256
    bos_token_id = None
    special_token_ids: Final = [256]
    tokens: Final = [*(bytes([byte]) for byte in range(256)), b"<|end|>"]

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


class Vocabulary:
    """A tokenizer as llguidance and as our formats see it. `token_ids`: its added tokens."""

    def __init__(self, tokenizer: LLTokenizer, token_ids: Mapping[str, int]) -> None:
        self.tokenizer = tokenizer
        self.token_ids = token_ids

    def matcher(self, grammar: str) -> LLMatcher:
        """Compiled; an error is the test's."""
        matcher = LLMatcher(self.tokenizer, grammar)
        if matcher.is_error():
            raise ValueError(f"{matcher.get_error()}\n{grammar}")
        return matcher

    def accepts(self, grammar: str, text: str) -> bool:
        """Whether an answer may be this text, tokenized as the tokenizer does, and end there."""
        matcher = self.matcher(grammar)
        tokens = self.tokenizer.tokenize_str(text, parse_special=True)
        return (
            matcher.validate_tokens(tokens) == len(tokens) and matcher.consume_tokens(tokens) and matcher.is_accepting()
        )

    def sample(self, grammar: str, seed: int, most: int = 300) -> str | None:
        """A random answer that the grammar allows; None if it has no end within `most` tokens, or llguidance's limits.

        Tokens that close something are likelier: else no string would ever end, nor an argument between tags.
        """
        matcher, rng, tokens = self.matcher(grammar), random.Random(seed), list[int]()
        end_tag = self.tokenizer.tokenize_str("\n</parameter>")
        for _ in range(most):
            if matcher.is_stopped():
                break
            if rng.random() < 0.1 and matcher.validate_tokens(end_tag) == len(end_tag):
                matcher.consume_tokens(end_tag)
                tokens += end_tag
            mask = matcher.compute_bitmask()
            allowed = [token for token in range(self.tokenizer.vocab_size) if mask[token // 8] >> token % 8 & 1]
            if self.tokenizer.eos_token in allowed and rng.random() < 0.3:
                break
            allowed = [token for token in allowed if token != self.tokenizer.eos_token]
            closing = [
                token for token in allowed if self.tokenizer.decode_bytes([token]) in (b'"', b"]", b"}", b"\n", b"<")
            ]
            tokens.append(rng.choice(closing if closing and rng.random() < 0.4 else allowed))
            if not matcher.consume_token(tokens[-1]):
                raise ValueError(matcher.get_error())
        else:
            return None
        if matcher.is_error():  # of its lexer: text full of what may begin a tag has very many states
            return None
        return bytes(self.tokenizer.decode_bytes(tokens)).decode(errors="replace")


def vocabularies() -> Iterator[tuple[str, Vocabulary]]:
    """Without any marker as a token; the demo model's; with all formats' markers as tokens, one of them not special."""
    yield "bytes", Vocabulary(LLTokenizer(TokenizerWrapper(ByteTokens())), {})
    demo: dict[str, Any] = json.loads((DEMO / "tokenizer.json").read_text())
    yield "demo", Vocabulary(LLTokenizer(json.dumps(demo)), _added(demo))
    entry = demo["added_tokens"][-1]
    demo["added_tokens"] += [
        {**entry, "id": entry["id"] + 1 + index, "content": marker, "special": marker != "[CALL_ID]"}
        for index, marker in enumerate(MARKERS)
    ]
    yield "markers", Vocabulary(LLTokenizer(json.dumps(demo)), _added(demo))


def _added(tokenizer: dict[str, Any]) -> dict[str, int]:
    return {entry["content"]: entry["id"] for entry in tokenizer["added_tokens"]}
