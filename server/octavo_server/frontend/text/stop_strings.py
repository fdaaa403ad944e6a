"""Stop strings: an answer ends before the first of them, wherever the borders of tokens fall."""

from collections.abc import Sequence


class StopStrings:
    """Looks for stop strings in a text that arrives in pieces.

    The text ends at the first character that completes a stop string; of several completed there, the longest counts.
    Neither it nor a part of it is given out, unless it is to be `included`: text that may be the beginning of one is
    held back. How the text is cut into pieces makes no difference.
    """

    def __init__(self, stops: Sequence[str], *, included: bool = False) -> None:
        """Stop strings, none of them empty."""
        self._stops = tuple(stops)
        self._firsts = "".join({stop[0] for stop in stops})
        self._included = included
        self._held = ""
        self.found: str | None = None

    def add(self, text: str, *, may_end: bool = True) -> str:
        """Take a piece and return what can be given out; after `found` is set, nothing more.

        A stop string that is completed in a piece that may not end the text is none.
        """
        if not self._stops or not text:
            return text
        if self.found is not None:
            return ""
        if not self._held and not self._may_begin(text):
            return text
        held = self._held + text
        if may_end and (hits := self._completed(held, len(self._held))):
            end, _, self.found = min(hits)
            self._held = ""
            return held[: end if self._included else end - len(self.found)]
        keep = max(_overlap(held, stop) for stop in self._stops)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def _may_begin(self, text: str) -> bool:
        for first in self._firsts:  # noqa: SIM110 (for every token: `any` would take four times as long)
            if first in text:
                return True
        return False

    def _completed(self, text: str, begin: int) -> list[tuple[int, int, str]]:
        """(end, minus the length, stop string) of those that `text` completes behind its first `begin` characters."""
        starts = [(text.find(stop, max(0, begin - len(stop) + 1)), stop) for stop in self._stops]
        return [(at + len(stop), -len(stop), stop) for at, stop in starts if at >= 0]

    def end(self) -> str:
        """What was held back, when the text ended without a stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
