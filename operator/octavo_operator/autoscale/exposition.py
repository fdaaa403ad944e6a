"""Prometheus' text format, read for a few metrics of many: what nobody asks for is not parsed. Pure."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

LONGEST_LINE: Final = 4096
"""Characters; a label's value has a few hundred at most."""
MOST_LINES: Final = 20_000

Values = Mapping[str, list[tuple[Mapping[str, str], float]]]
"""By the name of a sample (`x_total`, `x_sum`): labels and value of each that was told."""


class ExpositionError(ValueError):
    """What was told is no exposition, or more than is looked at."""


class Wanted:
    """Which samples are read: those of `names`, in full."""

    def __init__(self, names: Iterable[str]) -> None:
        alternatives = "|".join(map(re.escape, sorted(names)))
        self._lines = re.compile(rf"^(?:{alternatives})(?=[{{ \t])[^\n]*$".encode(), re.MULTILINE)

    def read(self, body: bytes) -> Values:
        """The samples in `body`; names that are not told are missing.

        Raises:
            ExpositionError: a line of theirs is malformed or too long, or there are too many.
        """
        found: dict[str, list[tuple[Mapping[str, str], float]]] = {}
        text = "\n".join(self._matching(body))
        try:
            for family in text_string_to_metric_families(text + "\n"):
                for sample in family.samples:
                    found.setdefault(sample.name, []).append((sample.labels, sample.value))
        except (ValueError, KeyError, IndexError) as error:
            raise ExpositionError(f"not Prometheus' text format: {error}") from error
        return found

    def _matching(self, body: bytes) -> Iterator[str]:
        for count, match in enumerate(self._lines.finditer(body)):
            if count >= MOST_LINES or len(match[0]) > LONGEST_LINE:
                raise ExpositionError("more was told than is looked at")
            yield match[0].decode(errors="replace")
