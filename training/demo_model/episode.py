"""An episode is one small task: what the user says and what a right answer is. A conversation is a chain of them.

The split into training and held-out prompts is by construction: what makes a task this task and no other (the word
to spell, the numbers to add, the wording of a request) is its key, and the key's hash alone decides the side. A
generator draws until the key is on the side it was asked for, so no held-out prompt can occur in training.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]
HELD_OUT_ONE_IN = 12
# prompts that a demonstration is likely to type, always in training
ALWAYS_TRAINED = {
    "tellmeajoke",
    "whatisakvcache",
    "hello",
    "hi",
    "whoareyou",
    "whatcanyoudo",
    "whatisatoken",
    "whatisattention",
    "whatispaging",
}


def is_held_out(key: str) -> bool:
    """The side of the split that `key` is on; case, blanks and punctuation do not matter, so no near-copy leaks."""
    plain = re.sub(r"[\W_]+", "", key.lower()) or key
    return plain not in ALWAYS_TRAINED and zlib.crc32(plain.encode()) % HELD_OUT_ONE_IN == 0


@dataclass
class Episode:
    """Messages that end with the reference answer, and how an answer is graded (`grading.py`)."""

    skill: str
    messages: list[Message]
    grader: str
    expected: Any


@dataclass
class Context:
    """What the conversation so far has established; generators read and update it."""

    rng: random.Random
    held_out: bool = False
    me: str = "Octavo"
    facts: dict[str, tuple[str, str]] = field(default_factory=dict)  # question subject -> (value, answer)
    last_fact: str = ""
    tools: list[dict[str, Any]] = field(default_factory=list)
    last_joke: str = ""
    tokens_left: int = 10_000

    def draw(self, make: Callable[[], tuple[str, str]]) -> str:
        """The value of the first (key, value) of `make` whose key is on this context's side of the split."""
        for _ in range(2000):
            key, value = make()
            if is_held_out(key) == self.held_out:
                return value
        raise RuntimeError("this generator has no key on the wanted side of the split")

    def draw_same(self, make: Callable[[], str]) -> str:
        """`draw` for what is its own key."""

        def both() -> tuple[str, str]:
            text = make()
            return text, text

        return self.draw(both)


def turn(skill: str, user: str, answer: str, grader: str, expected: Any) -> Episode:
    """The most common episode: one question, one answer."""
    return Episode(
        skill, [{"role": "user", "content": user}, {"role": "assistant", "content": answer}], grader, expected
    )
