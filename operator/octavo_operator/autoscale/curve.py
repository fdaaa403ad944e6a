"""What a step takes, learned from what replicas tell: seconds = step + request · batch + prompt · prompt tokens in it.

Each pair of samples of a replica is one observation: the mean time between tokens is the length of a step, the sum of
those times over the time between the samples is the mean batch, and prompt tokens a second times that length are those
of a step. Least squares, older observations counting less, and what was believed before counting as a few observations:
while the load is always the same, nothing tells the constant part from the rest.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Final

from octavo_operator.autoscale.observation import Sample
from octavo_operator.autoscale.settings import Settings
from octavo_operator.autoscale.state import Learned

MIN_GAPS: Final = 50
"""Times between tokens that make a mean."""
FORGET_SECONDS: Final = 1800.0
"""Observations count 1/e after so long: the mix of requests changes over the day."""
PRIOR_WEIGHT: Final = 5.0
"""What was believed before counts as so many observations."""
FIRST_STEP_SHARE: Final = 0.6
"""Of the first time between tokens that was seen is believed to be the constant part, until loads have differed."""
LEAST_STEP_SHARE: Final = 0.2
"""… and this much of the shortest one at least: steps without any constant part are none that exist."""

Point = tuple[float, float, float]
"""Length of a step in seconds, requests in it, prompt tokens in it."""
SIZE: Final = 3


def point(old: Sample, new: Sample) -> Point | None:
    """The observation between two samples; None if they do not tell enough."""
    seconds = new.at - old.at
    gap_seconds = rise(old.inter_token_seconds_total, new.inter_token_seconds_total)
    gaps = rise(old.inter_token_count, new.inter_token_count)
    prompts = rise(old.computed_prompt_tokens_total, new.computed_prompt_tokens_total)
    if gap_seconds is None or gaps is None or prompts is None or seconds <= 0 or gaps < MIN_GAPS:
        return None
    length = gap_seconds / gaps
    return length, gap_seconds / seconds, prompts / seconds * length


def rise(old: float | None, new: float | None) -> float | None:
    """Of a counter; None where it is not told or was begun anew."""
    return None if old is None or new is None or new < old else new - old


def gather(sums: tuple[float, ...], points: Sequence[Point], fade: float) -> tuple[float, ...]:
    """The sums of squares, products and answers with new observations: 6 + 3 numbers, and the shortest length seen."""
    sums = sums or (0.0,) * 10
    faded = [value * fade for value in sums[:9]]
    shortest = sums[9] * (2 - fade)
    for length, batch, prompts in points:
        row = (1.0, batch, prompts)
        # Relative errors are alike, so long steps count less.
        weight = 1 / (length * length)
        index = 0
        for i in range(SIZE):
            for j in range(i, SIZE):
                faded[index] += weight * row[i] * row[j]
                index += 1
            faded[6 + i] += weight * row[i] * length
        shortest = min(shortest or length, length)
    return (*faded, shortest)


def fit(sums: tuple[float, ...], learned: Learned, settings: Settings) -> tuple[float, float, float]:
    """Seconds of a step, of a request in it, of a prompt token in it; none is negative."""
    before = (learned.step_seconds, learned.request_seconds, learned.prompt_seconds)
    if not sums or not sums[0]:
        return before
    shortest = sums[9]
    target = settings.targets.time_per_output_token_milliseconds / 1000
    first = before[0] or FIRST_STEP_SHARE * min(shortest, target / 2)
    mean_weight = max(sums[0] / 100, 1 / (target * target))
    matrix, answer = _system(sums)
    matrix[0][0] += PRIOR_WEIGHT * mean_weight
    answer[0] += PRIOR_WEIGHT * mean_weight * first
    best = _non_negative(matrix, answer)
    low = LEAST_STEP_SHARE * shortest
    step = best[0]
    if not low <= step <= shortest:
        # The constant part at its bound, the others as they fit best to it.
        step = min(max(step, low), shortest)
        rest = _non_negative([row[1:] for row in matrix[1:]], [answer[i] - matrix[i][0] * step for i in (1, 2)])
        best = [step, *rest]
    return step, best[1], best[2]


def _system(sums: tuple[float, ...]) -> tuple[list[list[float]], list[float]]:
    a, b, c, d, e, f = sums[:6]
    return [[a, b, c], [b, d, e], [c, e, f]], list(sums[6:9])


def _non_negative(matrix: list[list[float]], answer: list[float]) -> list[float]:
    """The best of the solutions in which some unknowns are left out and none is negative (there are few to try)."""
    size, best, most = len(answer), [0.0] * len(answer), 0.0
    for count in range(size, 0, -1):
        for chosen in combinations(range(size), count):
            found = _solve([[matrix[i][j] for j in chosen] for i in chosen], [answer[i] for i in chosen])
            if found is None or min(found) < 0:
                continue
            # What a solution explains of the squares: the larger, the smaller the error.
            explained = sum(answer[i] * value for i, value in zip(chosen, found, strict=True))
            if explained > most:
                most, best = explained, [0.0] * size
                for i, value in zip(chosen, found, strict=True):
                    best[i] = value
    return best


def _solve(matrix: list[list[float]], answer: list[float]) -> list[float] | None:
    """By elimination; None if it is (nearly) singular."""
    size = len(answer)
    rows = [[*row, right] for row, right in zip(matrix, answer, strict=True)]
    for i in range(size):
        pivot = max(range(i, size), key=lambda k: abs(rows[k][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        if abs(rows[i][i]) <= 1e-12 * max(1e-300, abs(matrix[i][i])):
            return None
        for k in range(size):
            if k != i:
                factor = rows[k][i] / rows[i][i]
                rows[k] = [left - factor * right for left, right in zip(rows[k], rows[i], strict=True)]
    return [rows[i][size] / rows[i][i] for i in range(size)]
