"""The requests that are measured on. Each is made the same from the same seed."""

import random
import re
from dataclasses import dataclass
from typing import Final

MOST_TOKEN_ID: Final = 10_000


@dataclass(frozen=True, slots=True)
class Ask:
    """A request of a workload: it gets exactly `max_tokens` tokens."""

    prompt: list[int]
    max_tokens: int
    temperature: float = 0.0


@dataclass(frozen=True, slots=True)
class Lengths:
    """Least and greatest number of tokens, each number between as likely."""

    least: int
    most: int

    @classmethod
    def parse(cls, text: str) -> "Lengths":
        """ "512" or "100-1024". Raises ValueError that says what is allowed."""
        parts = text.split("-")
        try:
            least, most = int(parts[0]), int(parts[-1])
        except ValueError:
            least = most = 0
        if len(parts) > 2 or not 1 <= least <= most:
            raise ValueError(f"{text!r} is no number of tokens, such as 512, and no range of them, such as 100-1024")
        return cls(least, most)

    def __str__(self) -> str:
        return str(self.least) if self.least == self.most else f"{self.least}-{self.most}"


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests that are all there at once."""

    name: str
    requests: int
    input_tokens: Lengths
    output_tokens: Lengths
    temperature: float

    def asks(self, seed: int, vocab_size: int) -> list[Ask]:
        """First every prompt, length and then ids; then every answer's length."""
        draw = random.Random(seed)
        top = min(MOST_TOKEN_ID, vocab_size - 1)
        prompts = [
            [draw.randint(0, top) for _ in range(draw.randint(self.input_tokens.least, self.input_tokens.most))]
            for _ in range(self.requests)
        ]
        return [
            Ask(prompt, draw.randint(self.output_tokens.least, self.output_tokens.most), self.temperature)
            for prompt in prompts
        ]


WORKLOADS: Final = {
    "a": Workload("a", 256, Lengths(100, 1024), Lengths(100, 1024), 0.6),
    "b": Workload("b", 512, Lengths(512, 512), Lengths(256, 256), 0.0),
}


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """Requests whose prompts begin alike and go on differently; all there at once, greedy."""

    requests: int = 64
    shared_tokens: int = 4096
    own_tokens: int = 64
    output_tokens: int = 16

    def asks(self, draw: random.Random, vocab_size: int) -> list[Ask]:
        """With another beginning each time."""
        shared = random_prompt(draw, self.shared_tokens, vocab_size)
        return [
            Ask(shared + random_prompt(draw, self.own_tokens, vocab_size), self.output_tokens)
            for _ in range(self.requests)
        ]


def parse_prompts(text: str) -> tuple[int, int]:
    """ "32x2048" → (32, 2048). Raises ValueError that says what is allowed."""
    found = re.fullmatch(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,7})", text.strip())
    if found is None:
        raise ValueError(f"{text!r} is no COUNTxTOKENS, such as 32x2048")
    return int(found[1]), int(found[2])


def random_prompt(draw: random.Random, length: int, vocab_size: int) -> list[int]:
    """Token ids that no earlier prompt begins with."""
    top = min(MOST_TOKEN_ID, vocab_size - 1)
    return [draw.randint(0, top) for _ in range(length)]
