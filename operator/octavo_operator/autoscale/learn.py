"""What experience teaches: start-up time, step time, work of a token, how much to ask of a replica, how much to spare."""

import math
from dataclasses import replace
from typing import Final

from octavo_operator.autoscale.demand import (
    STEP_SHARE_UNKNOWN,
    Demand,
    load_rate,
    mean_gap,
    work_done,
)
from octavo_operator.autoscale.observation import Fleet, GatewaySample
from octavo_operator.autoscale.settings import Settings
from octavo_operator.autoscale.state import BOUNDS, Learned, Memory, Seen

FIRST_STARTUP_SECONDS: Final = 120.0
"""A start-up, until one was seen."""
FIRST_UTILIZATION: Final = 0.6
"""Of its capacity is asked of a replica until experience tells: low, because late answers cost more than replicas."""
MIN_UTILIZATION: Final = 0.3
MAX_UTILIZATION: Final = 0.92
"""Queues grow without bound towards 1."""
FIRST_RESERVE: Final = 0.1
MAX_RESERVE: Final = 1.0
"""More than twice the demand is never kept in reserve."""
RESERVE_QUANTILE: Final = 0.9
"""Rises within a start-up time that the reserve covers."""
RESERVE_STEP: Final = 0.02
"""By so much a decision moves the reserve at most."""
LATE_BUDGET: Final = 0.005
"""Share of requests that may be late: half of the hundredth that is aimed at, the other half is for surprises."""
LATE_SECONDS: Final = 120.0
"""Requests count the less for the share of late ones the longer ago they ended: 1/e after so long."""
EASE_PER_SECOND: Final = 0.0004
"""So fast more is asked of replicas while nothing is late: 0.24 in ten minutes."""
TIGHTEN: Final = 0.93
"""Factor on the utilization when too many are late, at most once in a start-up time."""
AVERAGE_SECONDS: Final = 120.0
"""Work and load are averaged over so long before one is divided by the other: answers take seconds to minutes."""
STEP_RISE: Final = 0.0005
"""By so much of itself the step time may rise in a decision, in case the replicas have become slower."""
STARTUP_WEIGHT: Final = 0.3
"""Of the newest start-up."""
SATURATED: Final = 0.9
"""Mean work from which replicas may be asked for more than they can do: their work no longer tells the demand."""


def remember_gateway(fleet: Fleet, memory: Memory, keep_seconds: float) -> tuple[GatewaySample, ...]:
    """Its samples of the last seconds; from the newest on if a counter was begun anew."""
    new = fleet.gateway
    if new is None or (memory.gateway and new.at <= memory.gateway[-1].at):
        return memory.gateway
    if memory.gateway and new.arrivals_total < memory.gateway[-1].arrivals_total:
        return (new,)
    return (*(each for each in memory.gateway if new.at - each.at <= keep_seconds), new)


def learn_replicas(fleet: Fleet, settings: Settings, learned: Learned, memory: Memory) -> Learned:
    """Size, start-up and step time, from the samples before they are remembered."""
    totals = [each.sample.kv_tokens_total for each in fleet.ready if each.sample and each.sample.kv_tokens_total > 0]
    tokens = sum(totals) / len(totals) if totals else learned.replica_tokens
    return replace(
        learned,
        replica_tokens=min(tokens, BOUNDS["replica_tokens"][1]),
        startup_seconds=_startup(fleet, learned, {each.name for each in memory.seen}),
        step_seconds=_step(fleet, settings, learned, memory),
    )


def _startup(fleet: Fleet, learned: Learned, known: set[str]) -> float:
    result = learned.startup_seconds
    for each in fleet.ready:
        if each.startup is not None and each.name not in known and each.sample is not None:
            result = each.startup if not result else result + STARTUP_WEIGHT * (each.startup - result)
    return min(max(0.0, result), BOUNDS["startup_seconds"][1])


def _step(fleet: Fleet, settings: Settings, learned: Learned, memory: Memory) -> float:
    before = {each.name: each.sample for each in memory.seen}
    gaps = [
        gap
        for each in fleet.ready
        if each.sample is not None and each.name in before and each.sample.at > before[each.name].at
        for gap in [mean_gap(before[each.name], each.sample)]
        if gap is not None and gap > 0
    ]
    if not gaps:
        return learned.step_seconds
    shortest = min(gaps)
    if learned.step_seconds:
        return min(shortest, learned.step_seconds * (1 + STEP_RISE))
    return min(shortest, STEP_SHARE_UNKNOWN * settings.targets.time_per_output_token_milliseconds / 1000)


def learn_work(fleet: Fleet, learned: Learned, memory: Memory, now: float) -> tuple[Learned, Memory]:
    """Work of a token: slow averages of both, over each other. While replicas are saturated the old figure stands."""
    arrived = load_rate(memory.gateway, now)
    ready = len(fleet.ready)
    done = work_done(memory.seen, ready, now)
    passed = now - memory.averaged_at if memory.averaged_at is not None else math.inf
    memory = replace(memory, averaged_at=now)
    waiting = sum(each.sample.waiting for each in memory.seen)
    if (
        arrived is None
        or done is None
        or arrived[0] <= 0
        or not ready
        or done / ready > SATURATED
        or waiting > 2 * ready
    ):
        return learned, memory
    weight = 1 - math.exp(-passed / AVERAGE_SECONDS) if memory.load else 1.0
    work, load = memory.work + weight * (done - memory.work), memory.load + weight * (arrived[0] - memory.load)
    if done > 0:
        learned = replace(learned, work_per_token=min(work / load, BOUNDS["work_per_token"][1]))
    return learned, replace(memory, work=work, load=load)


def learn_lateness(memory: Memory, before: Memory, now: float) -> Memory:
    """Late requests and all that ended, the newer the more."""
    if not memory.gateway or not before.gateway or memory.gateway[-1] is before.gateway[-1]:
        return memory
    old, new = before.gateway[-1], memory.gateway[-1]
    ended = new.finished_total - old.finished_total
    late = new.late_first_token_total - old.late_first_token_total
    late += new.late_per_token_total - old.late_per_token_total
    if ended < 0 or late < 0:
        return memory
    fade = math.exp(-(new.at - old.at) / LATE_SECONDS)
    return replace(memory, ended=memory.ended * fade + ended, late=memory.late * fade + min(late, ended))


def learn_utilization(learned: Learned, memory: Memory, now: float) -> tuple[Learned, Memory]:
    """Ask more of replicas that are loaded and in time, less of those that are late without being overloaded.

    Lateness while more was asked of them than planned is no argument: that is the reserve's to learn.
    """
    wanted = learned.utilization or FIRST_UTILIZATION
    startup = max(learned.startup_seconds, 60.0)
    recent = [value for time, value in memory.loads if now - time <= 60.0]
    share = memory.late / memory.ended if memory.ended >= 20 else 0.0
    passed = now - memory.loads[-2][0] if len(memory.loads) > 1 else 0.0
    if share > LATE_BUDGET and recent and max(recent) <= wanted * 1.1:
        if memory.eased_at is None or now - memory.eased_at >= startup:
            wanted, memory = max(MIN_UTILIZATION, wanted * TIGHTEN), replace(memory, eased_at=now)
    elif share <= LATE_BUDGET / 2 and recent and max(recent) >= 0.85 * wanted:
        wanted = min(MAX_UTILIZATION, wanted + EASE_PER_SECOND * passed)
    return replace(learned, utilization=wanted), memory


def learn_reserve(learned: Learned, demand: Demand, memory: Memory, now: float) -> Learned:
    """A quantile, followed by small steps: up if a rise was above it, a ninth of that down if not."""
    reserve = learned.reserve or FIRST_RESERVE
    startup = learned.startup_seconds or FIRST_STARTUP_SECONDS
    past = [value for time, value in memory.demands if now - time >= startup]
    if not past or past[-1] <= 0 or not demand.sure:
        return replace(learned, reserve=reserve)
    rise = demand.work / past[-1] - 1
    step = RESERVE_QUANTILE if rise > reserve else RESERVE_QUANTILE - 1
    return replace(learned, reserve=min(MAX_RESERVE, max(1e-3, reserve + RESERVE_STEP * step)))


def work_of(seen: tuple[Seen, ...], name: str) -> float | None:
    """The work of a replica by its name, if known."""
    return next((each.work for each in seen if each.name == name), None)
