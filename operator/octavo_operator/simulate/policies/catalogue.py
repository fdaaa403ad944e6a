"""All policies by name, the settings that a sweep tries, and how the best of them is found."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from octavo_operator.simulate.policies.aibrix import Apa
from octavo_operator.simulate.policies.bounds import CausalBound, StaticPeak
from octavo_operator.simulate.policies.hpa import HpaKv, HpaQueue, Keda
from octavo_operator.simulate.policies.llmd import Saturation, SaturationTokens
from octavo_operator.simulate.policies.own import Octavo, first_need
from octavo_operator.simulate.routers import CachedAndLight
from octavo_operator.simulate.score import Result
from octavo_operator.simulate.world import Policy, Scenario, World

GOAL: Final = 0.99
"""The attainment that a setting must reach to be compared by its GPU-hours."""
_SHARES: Final = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
_QUEUES: Final = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0)


@dataclass(frozen=True, slots=True)
class Entry:
    """A policy: how it is made of a setting, what the setting is called, its default, and what a sweep tries."""

    make: Callable[[float], Policy]
    setting: str = ""
    default: float = 0.0
    sweep: tuple[float, ...] = ()


POLICIES: Final[dict[str, Entry]] = {
    "octavo": Entry(lambda _: Octavo()),
    "static-peak": Entry(lambda count: StaticPeak(int(count)), "replicas"),
    "hpa-kv": Entry(HpaKv, "target", 0.7, _SHARES),
    "hpa-queue": Entry(HpaQueue, "target", 5.0, _QUEUES),
    "keda": Entry(Keda, "threshold", 5.0, _QUEUES),
    "apa": Entry(Apa, "target", 0.5, _SHARES),
    "llmd-v1": Entry(Saturation, "kvCacheThreshold", 0.8, _SHARES),
    "llmd-v2": Entry(SaturationTokens, "scale", 1.0, (0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)),
    "causal-bound": Entry(CausalBound, "utilization", 0.6, (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)),
}
"""In the order in which they are shown."""

Progress = Callable[[str, float], None]


def run(scenario: Scenario, policy: Policy, progress: Progress, setting: str = "") -> Result:
    """One run; `progress` hears the policy and the share of the trace that is through."""
    seconds = scenario.trace.seconds
    world = World(scenario, policy, CachedAndLight(), lambda now: progress(policy.name, now / seconds))
    return replace(world.run(), setting=setting)


def evaluate(scenario: Scenario, name: str, progress: Progress, *, sweep: bool) -> Iterator[Result]:
    """The results of a policy: with its default, then with each setting of the sweep."""
    entry = POLICIES[name]
    if name == "static-peak":
        yield smallest_static(scenario, progress)
        return
    settings = (entry.default, *(each for each in entry.sweep if each != entry.default)) if sweep else (entry.default,)
    for value in settings:
        yield run(scenario, entry.make(value), progress, f"{entry.setting}={value:g}" if entry.setting else "")


def smallest_static(scenario: Scenario, progress: Progress) -> Result:
    """The fewest replicas that, never changing, reach the goal; the most there may be if none do."""

    def attempt(count: int) -> Result:
        return run(scenario, StaticPeak(count), progress, f"replicas={count}")

    low, high = 0, min(scenario.max_replicas, max(2, _peak(scenario)))
    best = attempt(high)
    while best.attainment < GOAL and high < scenario.max_replicas:
        low, high = high, min(scenario.max_replicas, max(high + 1, high * 5 // 4))
        best = attempt(high)
    while high - low > 1 and best.attainment >= GOAL:
        middle = (low + high) // 2
        found = attempt(middle)
        if found.attainment >= GOAL:
            best, high = found, middle
        else:
            low = middle
    return best


def _peak(scenario: Scenario) -> int:
    """Replicas for the busiest five minutes."""
    work: dict[int, float] = {}
    for each in scenario.trace.arrivals:
        index = int(each.time / 300)
        work[index] = work.get(index, 0.0) + scenario.hardware.work(each.prompt, 0, each.output)
    return int(max(work.values()) / 300 / 0.6) + 1


def best_of(results: Sequence[Result]) -> Result:
    """The one with the fewest GPU-hours of those that reach the goal; if none does, the one that comes closest."""
    reached = [each for each in results if each.attainment >= GOAL]
    if reached:
        return min(reached, key=lambda each: each.gpu_hours)
    return max(results, key=lambda each: each.attainment)


def pareto(results: Sequence[Result]) -> list[Result]:
    """Those that no other beats in both GPU-hours and attainment, by GPU-hours."""
    front: list[Result] = []
    for each in sorted(results, key=lambda each: (each.gpu_hours, -each.attainment)):
        if not front or each.attainment > front[-1].attainment:
            front.append(each)
    return front


__all__ = ["GOAL", "POLICIES", "best_of", "evaluate", "first_need", "pareto", "run", "smallest_static"]
