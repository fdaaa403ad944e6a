"""What experience teaches: start-up and step time, work of a token, how much to ask of a replica, how much to spare."""

import math
from dataclasses import replace
from typing import Final

from octavo_operator.autoscale import curve
from octavo_operator.autoscale.demand import Demand, load_rate, work_done
from octavo_operator.autoscale.observation import Fleet, GatewaySample
from octavo_operator.autoscale.settings import Settings
from octavo_operator.autoscale.state import BOUNDS, Learned, Memory

FIRST_STARTUP_SECONDS: Final = 120.0
"""A start-up, until one was seen."""
FIRST_UTILIZATION: Final = 0.7
"""Of its capacity is asked of a replica until experience tells: low, because late answers cost more than replicas."""
MIN_UTILIZATION: Final = 0.15
MAX_UTILIZATION: Final = 0.9
"""Queues grow without bound towards 1."""
FIRST_RESERVE: Final = 0.1
MIN_RESERVE: Final = 0.001
MAX_RESERVE: Final = 1.0
"""No more than twice the demand is ever prepared for."""
MAX_RISE: Final = 1.0
"""Rises beyond twice the load are taken for one to twice the load."""
FIRST_MOMENTUM: Final = 0.7
MIN_MOMENTUM: Final = 0.01
MAX_MOMENTUM: Final = 1.0
"""Load that gathers way may rise by more than before, but what does so for long?"""
RISES_PRIOR: Final = 0.2
"""Sum of squared rises that the first momentum counts for: twenty of a tenth."""
RISES_FADE: Final = 0.997
"""Rises count 1/e after about an hour of decisions."""
REACTION_SECONDS: Final = 75.0
"""Beside the start-up: half of the time over which a rise is measured, and a decision that is waited for."""
RESERVE_QUANTILE: Final = 0.9
"""Rises within a start-up time that the reserve covers."""
RESERVE_STEP: Final = 0.02
"""By so much a decision moves the reserve at most."""
LATE_BUDGET: Final = 0.0065
"""Share of requests that may be late: less than the hundredth that is aimed at, for the rest is for surprises."""
LATE_SECONDS: Final = 300.0
"""Requests count the less for the share of late ones the longer ago they ended: 1/e after so long."""
BLAME_SECONDS: Final = 120.0
"""So long after an overload requests that it made late may still end."""
OVERLOAD: Final = 1.1
"""Times what is asked of replicas is more than was planned."""
LOADED: Final = 0.8
"""Share of what is asked of replicas that must have come before more is asked."""
ENOUGH_ENDED: Final = 100.0
"""Requests that make a share of late ones."""
EASE_PER_SECOND: Final = 0.0012
"""So fast more is asked of replicas while nothing is late, slower the more are: 0.07 in a minute."""
TIGHTEN: Final = 0.9
"""Factor on the utilization when twice the budget are late, more for more."""
MOST_TIGHTEN: Final = 0.75
"""… and no more at once: what comes of it is to be seen first."""
TIGHTEN_SECONDS: Final = 60.0
"""Between two such steps at least. What replicas that still start will cure counts as an overload by then."""
AVERAGE_SECONDS: Final = 120.0
"""Work and load are averaged over so long before one is divided by the other: answers take seconds to minutes."""
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


def learn_replicas(fleet: Fleet, learned: Learned, memory: Memory) -> Learned:
    """Size and start-up time, from the samples before they are remembered."""
    totals = [each.sample.kv_tokens_total for each in fleet.ready if each.sample and each.sample.kv_tokens_total > 0]
    tokens = sum(totals) / len(totals) if totals else learned.replica_tokens
    return replace(
        learned,
        replica_tokens=min(tokens, BOUNDS["replica_tokens"][1]),
        startup_seconds=_startup(fleet, learned, {each.name for each in memory.seen}),
    )


def _startup(fleet: Fleet, learned: Learned, known: set[str]) -> float:
    result = learned.startup_seconds
    for each in fleet.ready:
        if each.startup is not None and each.name not in known and each.sample is not None:
            result = each.startup if not result else result + STARTUP_WEIGHT * (each.startup - result)
    return min(max(0.0, result), BOUNDS["startup_seconds"][1])


def learn_curve(
    fleet: Fleet, settings: Settings, learned: Learned, memory: Memory, now: float
) -> tuple[Learned, Memory]:
    """What a step takes, from samples that are not remembered yet."""
    before = {each.name: each.sample for each in memory.seen}
    pairs = [(before[each.name], each.sample) for each in fleet.ready if each.sample and each.name in before]
    points = [found for old, new in pairs if new.at > old.at for found in [curve.point(old, new)] if found]
    if not points:
        return learned, memory
    passed = now - memory.loads[-1][0] if memory.loads else 0.0
    sums = curve.gather(memory.sums, points, math.exp(-passed / curve.FORGET_SECONDS))
    step, request, prompt = curve.fit(sums, learned, settings)
    limits = [BOUNDS[name][1] for name in ("step_seconds", "request_seconds", "prompt_seconds")]
    step, request, prompt = (min(value, limit) for value, limit in zip((step, request, prompt), limits, strict=True))
    learned = replace(learned, step_seconds=step, request_seconds=request, prompt_seconds=prompt)
    return learned, replace(memory, sums=sums)


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


def learn_lateness(memory: Memory, before: Memory, asked: float, now: float) -> Memory:
    """Late requests and all that ended, the newer the more; not those of a time when more was asked than planned.

    Lateness of an overload is no argument against the utilization: that is the reserve's to learn.
    """
    if not memory.gateway or not before.gateway or memory.gateway[-1] is before.gateway[-1]:
        return memory
    old, new = before.gateway[-1], memory.gateway[-1]
    ended = new.finished_total - old.finished_total
    late = new.late_first_token_total - old.late_first_token_total
    late += new.late_per_token_total - old.late_per_token_total
    overloaded = any(now - time <= BLAME_SECONDS and value > OVERLOAD * asked for time, value in memory.loads)
    if ended < 0 or late < 0 or overloaded:
        return memory
    fade = math.exp(-(new.at - old.at) / LATE_SECONDS)
    return replace(memory, ended=memory.ended * fade + ended, late=memory.late * fade + min(late, ended))


def learn_utilization(learned: Learned, memory: Memory, now: float) -> tuple[Learned, Memory]:
    """Ask more of replicas that are loaded and in time, less of those that are late."""
    asked = learned.utilization or FIRST_UTILIZATION
    share = memory.late / memory.ended if memory.ended >= ENOUGH_ENDED else 0.0
    recent = max((value for time, value in memory.loads if now - time <= BLAME_SECONDS), default=0.0)
    passed = now - memory.loads[-2][0] if len(memory.loads) > 1 else 0.0
    # By one standard deviation more than the budget: a few late ones by chance are no reason.
    if memory.late - math.sqrt(memory.late) > LATE_BUDGET * memory.ended and memory.ended >= ENOUGH_ENDED:
        if memory.tightened_at is None or now - memory.tightened_at >= TIGHTEN_SECONDS:
            asked = max(MIN_UTILIZATION, asked * max(MOST_TIGHTEN, TIGHTEN ** (share / LATE_BUDGET / 2)))
            memory = replace(memory, tightened_at=now, late=0.0, ended=0.0)
    elif share < LATE_BUDGET / 2 and recent >= LOADED * asked and memory.ended >= ENOUGH_ENDED:
        asked = min(MAX_UTILIZATION, asked + EASE_PER_SECOND * passed * (1 - 2 * share / LATE_BUDGET))
    return replace(learned, utilization=asked), memory


def learn_reserve(learned: Learned, demand: Demand, memory: Memory, now: float) -> tuple[Learned, Memory]:
    """How the load rises within the time that a replica takes to be there: by what it rose before, and by chance.

    `momentum`: of a rise, the share that follows in the next such time, by least squares: near 1 where load comes and
    goes slowly, near 0 where it jumps. `reserve`: a quantile of what it rises beyond that, followed by small steps: up
    if a rise was above it, a ninth of that down if not.
    """
    reserve, momentum = learned.reserve or FIRST_RESERVE, learned.momentum or FIRST_MOMENTUM
    ahead = horizon(learned)
    learned = replace(learned, reserve=reserve, momentum=momentum)
    then = _back(memory, now - ahead)
    if not then or not demand.sure:
        return learned, memory
    rise = min(MAX_RISE, demand.trend / then - 1)
    before = _growth(memory, then, now - ahead, ahead)
    if before > 0:
        products, squares = memory.rises or (FIRST_MOMENTUM * RISES_PRIOR, RISES_PRIOR)
        products = products * RISES_FADE + before * rise
        squares = squares * RISES_FADE + before * before
        momentum = min(MAX_MOMENTUM, max(MIN_MOMENTUM, products / squares))
        memory = replace(memory, rises=(products, squares))
    beyond = rise - momentum * before
    step = RESERVE_QUANTILE if beyond > reserve else RESERVE_QUANTILE - 1
    reserve = min(MAX_RESERVE, max(MIN_RESERVE, reserve + RESERVE_STEP * step))
    return replace(learned, reserve=reserve, momentum=momentum), memory


def expected_rise(learned: Learned, demand: Demand, memory: Memory, now: float) -> float:
    """The share by which load is to be expected to rise, and what is kept in reserve beyond that."""
    growth = _growth(memory, demand.trend, now, horizon(learned))
    return min(MAX_RESERVE, learned.momentum * growth + learned.reserve)


def horizon(learned: Learned) -> float:
    """Seconds from a load to a replica for it."""
    return (learned.startup_seconds or FIRST_STARTUP_SECONDS) + REACTION_SECONDS


def _growth(memory: Memory, load: float, time: float, seconds: float) -> float:
    """By what share the load grew until then, as far as it did so evenly: twice the smaller half; 0 for a jump."""
    middle, first = _back(memory, time - seconds / 2), _back(memory, time - seconds)
    if not first or not middle:
        return 0.0
    return min(MAX_RISE, max(0.0, 2 * min(load - middle, middle - first) / load)) if load else 0.0


def _back(memory: Memory, time: float) -> float:
    """The load at a time past, 0 if it is not known."""
    return next((value for when, value in reversed(memory.demands) if when <= time), 0.0)
