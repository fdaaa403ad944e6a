"""How an answer's tokens become its text."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TextOptions:
    """What ends the text, whether that is part of it, and whether special tokens are; those in `kept` always are.

    A stop string that is complete before the answer has more than `min_tokens` tokens does not end it.
    """

    stops: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True
    min_tokens: int = 0
    kept: frozenset[int] = frozenset()
