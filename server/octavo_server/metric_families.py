"""How the metrics of one server are made: all with the labels `model_name` and `engine`, in one registry."""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Final

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # nothing reads those second series

LABELS: Final = ("model_name", "engine")
ENGINE: Final = "0"

# vLLM's, so that its dashboards and alerts fit.
TTFT_BUCKETS: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0),
    *(80.0, 160.0, 640.0, 2560.0),
)
TOKEN_BUCKETS: Final = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
REQUEST_BUCKETS: Final = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0),
    *(1920.0, 7680.0),
)
STEP_TOKEN_BUCKETS: Final = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
CHOICES_BUCKETS: Final = (1, 2, 5, 10, 20)
PREEMPTIONS_BUCKETS: Final = (1, 2, 3, 4, 5, 10, 20)

# Ours: from a decode of a small model to a step with a whole prompt on a slow CPU; and what the host decides in.
STEP_BUCKETS: Final = (
    *(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0),
    *(10.0, 30.0),
)
SCHEDULE_BUCKETS: Final = (0.00005, 0.0001, 0.0002, 0.0004, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)


def length_buckets(longest: int) -> list[int]:
    """1, 2, 5, 10, 20, 50, … up to `longest` tokens."""
    buckets = []
    scale = 1
    while scale <= longest:
        buckets += [scale * step for step in (1, 2, 5) if scale * step <= longest]
        scale *= 10
    return buckets


class Histogram(Collector):
    """Counts of values up to bounds: to the scraper like the library's, at a fraction of its cost.

    No lock and no search through the buckets one by one, since values come with every token, and in one thread.
    """

    def __init__(self, name: str, text: str, buckets: Sequence[float], values: Sequence[str]) -> None:
        """`values`: of `LABELS`."""
        self._name, self._text, self._values = name, text, values
        self._bounds = tuple(buckets)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value in the first bucket whose bound is not below it."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """For the registry."""
        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        family = HistogramMetricFamily(self._name, self._text, labels=LABELS)
        family.add_metric(self._values, list(zip(bounds, accumulate(self._counts), strict=True)), self._sum)
        yield family


class Count(Collector):
    """A value that only grows: the library's counter without its lock, for what is counted with every token."""

    def __init__(self, name: str, text: str, values: Sequence[str]) -> None:
        """`values`: of `LABELS`."""
        self._name, self._text, self._values = name, text, values
        self._value = 0

    def inc(self, amount: int) -> None:
        """Add to it."""
        self._value += amount

    def collect(self) -> Iterator[CounterMetricFamily]:
        """For the registry."""
        family = CounterMetricFamily(self._name, self._text, labels=LABELS)
        family.add_metric(self._values, self._value)
        yield family


class Families:
    """Makes metrics. A name ends without `_total`, which is put behind a counter's."""

    def __init__(self, model_name: str) -> None:
        self.registry = CollectorRegistry()
        self._values = (model_name, ENGINE)

    def gauge(self, name: str, text: str) -> Gauge:
        """A value that goes up and down."""
        return Gauge(name, text, LABELS, registry=self.registry).labels(*self._values)

    def gauges(self, name: str, text: str, label: str, values: Sequence[str]) -> dict[str, Gauge]:
        """One for each value of a label."""
        family = Gauge(name, text, (*LABELS, label), registry=self.registry)
        return {value: family.labels(*self._values, value) for value in values}

    def gauge_of(self, name: str, text: str, label: str) -> Callable[[str], Gauge]:
        """One for each value of a label, whose values are not known beforehand."""
        family = Gauge(name, text, (*LABELS, label), registry=self.registry)
        return lambda value: family.labels(*self._values, value)

    def counter(self, name: str, text: str) -> Counter:
        """A value that only grows."""
        return Counter(name, text, LABELS, registry=self.registry).labels(*self._values)

    def count(self, name: str, text: str) -> Count:
        """As `counter`, for what comes with every token, in one thread."""
        count = Count(name, text, self._values)
        self.registry.register(count)
        return count

    def counters(self, name: str, text: str, label: str, values: Sequence[str]) -> dict[str, Counter]:
        """One for each value of a label."""
        family = Counter(name, text, (*LABELS, label), registry=self.registry)
        return {value: family.labels(*self._values, value) for value in values}

    def histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        """Counts of values up to each of `buckets`, which ascend."""
        histogram = Histogram(name, text, buckets, self._values)
        self.registry.register(histogram)
        return histogram

    def info(self, name: str, text: str, facts: dict[str, str]) -> None:
        """Facts as the labels of a gauge that is 1. vLLM's such metrics have no `model_name`."""
        labels = {"engine": ENGINE, **facts}
        Gauge(name, text, tuple(labels), registry=self.registry).labels(**labels).set(1)
