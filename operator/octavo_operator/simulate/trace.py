"""Requests to replay: two public formats, read by what is in them; superposed copies; arrivals shaped anew."""

import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Final, Literal, NamedTuple

Profile = Literal["trace", "flat", "diurnal", "burst"]
PROFILES: Final[tuple[Profile, ...]] = ("trace", "flat", "diurnal", "burst")
DIURNAL_SWING: Final = 0.8
"""By this share of the mean the rate of the profile `diurnal` goes up and down."""
DIURNAL_LENGTHS: Final = 3.0
"""A day of the profile `diurnal` is so many times as long as the trace: in an hour load would come faster than pods."""
BURST_FACTOR: Final = 3.0
"""By so much the rate of the profile `burst` is higher in a burst than between two."""
BURST_SECONDS: Final = (60.0, 240.0)
"""How long a burst lasts; between two of them it is four times as long on average."""
MAX_SHIFT_SECONDS: Final = 300.0
"""Copies of a trace are shifted by up to this much, the end coming in again at the beginning."""


class Arrival(NamedTuple):
    """A request: when, its prompt and answer in tokens, and blocks whose equal ids are equal prefixes.

    `salt` is added to the ids: copies of a trace share no prefix.
    """

    time: float
    prompt: int
    output: int
    blocks: tuple[int, ...] = ()
    salt: int = 0


class TraceError(ValueError):
    """A file that is no trace; says where and what was expected."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Arrivals in order of time, from 0, and the seconds that they stand for."""

    arrivals: tuple[Arrival, ...]
    seconds: float

    @property
    def rate(self) -> float:
        """Requests a second."""
        return len(self.arrivals) / self.seconds


def read_trace(path: Path) -> Trace:
    """A trace of either format: Azure's CSV or Mooncake's JSON lines, told by the first character.

    Raises:
        TraceError: it is neither, or a line is wrong.
        OSError: it cannot be read.
    """
    with path.open(encoding="utf-8") as lines:
        first = lines.readline()
        lines.seek(0)
        try:
            arrivals = list(_json_lines(lines) if first.lstrip().startswith("{") else _csv(lines))
        except UnicodeDecodeError as error:
            raise TraceError(f"{path}: no text: {error.reason}") from error
        except TraceError as error:
            raise TraceError(f"{path}: {error}") from error
    if len(arrivals) < 2 or max(arrivals).time <= min(arrivals).time:
        raise TraceError(f"{path}: a trace needs two requests and more, at different times")
    arrivals.sort(key=lambda each: each.time)
    begin, end = arrivals[0].time, arrivals[-1].time
    seconds = (end - begin) * len(arrivals) / (len(arrivals) - 1)
    return Trace(tuple(each._replace(time=each.time - begin) for each in arrivals), seconds)


def _json_lines(lines: Iterator[str]) -> Iterator[Arrival]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            blocks = tuple(int(each) for each in row.get("hash_ids") or ())
            yield _arrival(row["timestamp"] / 1000, row["input_length"], row["output_length"], blocks)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            expected = "an object with timestamp (ms), input_length, output_length"
            raise TraceError(f"line {number}: expected {expected}: {error}") from error


def _csv(lines: Iterator[str]) -> Iterator[Arrival]:
    header = [name.strip() for name in next(lines, "").split(",")]
    try:
        columns = [header.index(name) for name in ("TIMESTAMP", "ContextTokens", "GeneratedTokens")]
    except ValueError:
        raise TraceError(
            "line 1: neither a JSON object nor the columns TIMESTAMP, ContextTokens, GeneratedTokens"
        ) from None
    for number, line in enumerate(lines, 2):
        if not line.strip():
            continue
        cells = line.rstrip("\r\n").split(",")
        try:
            when, prompt, output = (cells[column].strip() for column in columns)
            yield _arrival(_seconds(when), int(prompt), int(output), ())
        except (IndexError, ValueError) as error:
            raise TraceError(f"line {number}: expected a time and two numbers of tokens: {error}") from error


def _seconds(text: str) -> float:
    """A wall-clock time or plain seconds; seven digits of a second are more than `datetime` takes."""
    try:
        return float(text)
    except ValueError:
        whole, _, fraction = text.partition(".")
        digits = "".join(char for char in fraction if char.isdigit())
        # Without a zone, differences must not depend on that of this machine.
        return datetime.fromisoformat(f"{whole}+00:00").timestamp() + (int(digits) / 10 ** len(digits) if digits else 0)


def _arrival(time: float, prompt: int, output: int, blocks: tuple[int, ...]) -> Arrival:
    if not math.isfinite(time) or prompt < 0 or output < 0:
        raise ValueError("times are finite and numbers of tokens at least 0")
    return Arrival(float(time), max(1, int(prompt)), max(1, int(output)), blocks)


def superpose(trace: Trace, scale: float, seed: int) -> Trace:
    """`scale` copies of a trace, each shifted in time; of a fraction, so many of the requests, drawn by chance."""
    if scale == 1:
        return trace
    draw = random.Random(f"{seed} superpose")
    result: list[Arrival] = []
    for copy in range(math.ceil(scale)):
        shift = draw.uniform(0.0, MAX_SHIFT_SECONDS) if copy else 0.0
        share = min(1.0, scale - copy)
        for each in trace.arrivals:
            if share >= 1.0 or draw.random() < share:
                time = (each.time + shift) % trace.seconds
                result.append(each._replace(time=time, salt=copy << 40))
    result.sort(key=lambda each: each.time)
    return Trace(tuple(result), trace.seconds)


def shape(trace: Trace, profile: Profile, seed: int, seconds: float | None = None) -> Trace:
    """The trace's requests in their order, at times drawn anew: Poisson with a rate that follows the profile.

    `flat`: the trace's mean rate. `diurnal`: a sine about it, from its lowest point over one period. `burst`: bursts of
    random length and distance. `trace` leaves the times alone. `seconds`: how long, if not as long as the trace, or
    `DIURNAL_LENGTHS` times that.
    """
    if seconds is None:
        seconds = trace.seconds * (DIURNAL_LENGTHS if profile == "diurnal" else 1.0)
    if profile == "trace":
        return trace if seconds == trace.seconds else _repeat(trace, seconds)
    draw = random.Random(f"{seed} {profile}")
    level = _level(profile, seconds, draw)
    rate, peak = trace.rate, max(level(seconds * step / 2048) for step in range(2049))
    result: list[Arrival] = []
    time = 0.0
    requests = _cycle(trace.arrivals)
    while (time := time + draw.expovariate(rate * peak)) < seconds:
        if draw.random() * peak < level(time):
            result.append(next(requests)._replace(time=time))
    return Trace(tuple(result), seconds)


def _repeat(trace: Trace, seconds: float) -> Trace:
    count = math.ceil(seconds / trace.seconds)
    rounds = (
        each._replace(time=each.time + number * trace.seconds) for number in range(count) for each in trace.arrivals
    )
    return Trace(tuple(each for each in rounds if each.time < seconds), seconds)


def _cycle(arrivals: Sequence[Arrival]) -> Iterator[Arrival]:
    while True:
        yield from islice(arrivals, len(arrivals))


def _level(profile: Profile, seconds: float, draw: random.Random) -> Callable[[float], float]:
    """The rate over time, its mean about 1."""
    if profile == "diurnal":
        return lambda time: 1 - DIURNAL_SWING * math.cos(2 * math.pi * time / seconds)
    if profile == "flat":
        return lambda time: 1.0
    bursts: list[tuple[float, float]] = []
    time = 0.0
    while time < seconds:
        time += draw.expovariate(1 / (4 * sum(BURST_SECONDS) / 2))
        length = draw.uniform(*BURST_SECONDS)
        bursts.append((time, time + length))
        time += length
    low = 1 / (0.8 + 0.2 * BURST_FACTOR)
    return lambda time: low * (BURST_FACTOR if any(begin <= time < end for begin, end in bursts) else 1.0)
