"""From demand to a number of replicas: the rules for more, for fewer, for none, and their reasons. Pure."""

import math
from dataclasses import dataclass, replace
from typing import Final

from octavo_operator.autoscale.demand import Demand
from octavo_operator.autoscale.learn import horizon
from octavo_operator.autoscale.observation import Fleet
from octavo_operator.autoscale.settings import Settings
from octavo_operator.autoscale.state import Learned, Memory

DOWN_SHARE: Final = 0.93
"""Fewer replicas must be enough at this share of what is asked of them otherwise: room, so that it is not undone."""
STRAIN: Final = 0.4
"""Of what is kept free of a replica for chance, it can give so much for as long as another one needs to start."""
STRAIN_FACTOR: Final = 1.12
"""… or so many times what is asked of it, where that is more."""
MAX_STRAIN: Final = 0.97
"""Share of its capacity beyond which a replica has nothing left to give."""
UP_FACTOR: Final = 2.0
"""So many times the ready replicas are asked for at most, and `UP_EXTRA` more."""
UP_EXTRA: Final = 2
ROUNDING: Final = 0.02
"""A need of so much more than a whole replica is still met by it."""
CALM_SECONDS: Final = 60.0
"""After an increase nothing is taken back for so long, or the window for fewer if that is shorter; and for a start-up
time at least.
"""
SLACK_SECONDS: Final = 30.0
"""Loads are remembered for so much longer than they are looked back at: decisions may come late."""
IDLE_STARTUPS: Final = 3.0
"""To zero only after so many start-ups of idleness: else more is waited than saved."""


@dataclass(frozen=True, slots=True)
class Need:
    """Replicas that are needed now, and `why`: the larger part. `each`: work that is asked of a replica.

    `urgent`: those without which even strained replicas fail. `steady_work`, `kv_replicas`: by which fewer are judged,
    over a window.
    """

    replicas: int
    urgent: int
    each: float
    steady_work: float
    kv_replicas: float
    why: str
    message: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """A decision without its state."""

    replicas: int
    reason: str
    message: str
    active: bool = True
    scheduled: bool = True


def need(demand: Demand, learned: Learned, settings: Settings, rise: float) -> Need:
    """Replicas for work and backlog with the reserve, or for the KV tokens, whichever are more.

    `rise` is on the steady work; that of the last seconds counts by itself if it is more still.
    """
    each = learned.utilization * demand.capacity or 1.0
    # What is yet to come, or came by chance, may take of what is kept free, for as long as a replica needs to start.
    most = MAX_STRAIN * demand.capacity
    strained = max(each, min(most, each * STRAIN_FACTOR), each + STRAIN * (most - each))
    steady = max(demand.steady, demand.steady * (1 + rise) * each / strained)
    work = max(steady, demand.work * each / strained)
    by_work = (work + demand.backlog) / each
    by_kv = demand.kv_replicas / (settings.targets.kv_cache_utilization_percent / 100)
    message = (
        f"{demand.arrivals:.1f} requests/s are {demand.work:.2f} replicas of work, with {rise:.0%} in "
        f"reserve and {demand.backlog:.2f} for what waits; {each:.0%} is asked of each; KV tokens would fill "
        f"{demand.kv_replicas:.2f}"
    )
    return Need(
        replicas=math.ceil(max(by_work, by_kv) - ROUNDING),
        urgent=math.ceil(max((max(demand.work, demand.steady) + demand.backlog) / strained, by_kv) - ROUNDING),
        each=each,
        steady_work=steady,
        kv_replicas=by_kv,
        why="KVCacheUse" if by_kv > by_work else "Backlog" if demand.backlog > work else "Work",
        message=message,
    )


def remember(memory: Memory, demand: Demand, need: Need, settings: Settings, learned: Learned, now: float) -> Memory:
    """Demand and needs, for as long as they are looked back at."""
    behavior = settings.behavior
    down, up = behavior.scale_down_stabilization_seconds, behavior.scale_up_stabilization_seconds
    memory = replace(
        memory,
        needs=(*(each for each in memory.needs if now - each[0] <= down), (now, need.steady_work, need.kv_replicas)),
        wants=(*(each for each in memory.wants if now - each[0] <= up), (now, need.replicas)),
        busy_at=now if _busy(demand, memory) or memory.busy_at is None else memory.busy_at,
    )
    if demand.sure:
        kept = tuple(each for each in memory.demands if now - each[0] <= 2 * horizon(learned) + SLACK_SECONDS)
        memory = replace(memory, demands=(*kept, (now, demand.trend)))
    return memory


def _busy(demand: Demand, memory: Memory) -> bool:
    gateway = memory.gateway[-1] if memory.gateway else None
    running = any(each.sample.running or each.sample.waiting for each in memory.seen)
    return running or demand.arrivals > 0 or (gateway is not None and gateway.in_flight + gateway.held_requests > 0)


def judge(
    fleet: Fleet, settings: Settings, learned: Learned, memory: Memory, demand: Demand, need: Need, now: float
) -> Verdict:
    """The first rule that applies."""
    stuck = [each for each in fleet.pending if each.unschedulable and each.age > fleet.startup_deadline]
    late = [each for each in fleet.pending if each.age > fleet.startup_deadline]
    verdict = _judge(fleet, settings, learned, memory, demand, need, now)
    bounded = min(max(verdict.replicas, settings.floor), settings.max_replicas)
    if late and bounded >= fleet.desired:
        what = "found no node" if stuck else "did not become ready"
        text = f"{len(late)} replicas {what} within {fleet.startup_deadline:.0f} s: no more are asked for"
        bounded = min(max(fleet.desired, settings.floor), settings.max_replicas)
        return Verdict(bounded, "PendingTooLong", f"{text}; {verdict.message}", verdict.active, scheduled=False)
    reason = verdict.reason
    if bounded < verdict.replicas:
        reason = "MaxReplicas"
    elif bounded > verdict.replicas:
        reason = "MinReplicas"
    return replace(verdict, replicas=bounded, reason=reason, scheduled=not late)


def _judge(
    fleet: Fleet, settings: Settings, learned: Learned, memory: Memory, demand: Demand, need: Need, now: float
) -> Verdict:
    waiting = memory.gateway[-1].held_requests if memory.gateway else 0
    if fleet.desired == 0:
        if waiting or demand.arrivals > 0:
            return Verdict(1, "WakeFromZero", f"{waiting} requests are held for the first replica")
        return Verdict(0, "Idle", "no replica is needed: nothing has come")
    most = math.ceil(max(1, len(fleet.ready)) * UP_FACTOR) + UP_EXTRA
    up = min(min(value for _, value in memory.wants), most)
    if memory.scaled_down_at is not None and now - memory.scaled_down_at < learned.startup_seconds:
        up = min(up, need.urgent)
    # The work is told by two looks, full pages by one: the first burst after a start does not wait for the second.
    if up > fleet.desired and (demand.sure or demand.known):
        return Verdict(up, need.why, need.message)
    if not demand.sure and fleet.ready:
        text = f"none of {demand.ready} ready replicas and no gateway tells its load: all stay"
        return Verdict(fleet.desired, "LoadUnknown", text, active=False)
    idle = _idle_for(memory, now)
    if settings.scale_to_zero is not None and settings.floor == 0 and not _to_zero_blocked(fleet, demand):
        least = max(settings.scale_to_zero.idle_seconds, IDLE_STARTUPS * learned.startup_seconds)
        if idle >= least:
            return Verdict(0, "IdleToZero", f"nothing was asked for {idle:.0f} s, {least:.0f} s are enough")
    return _fewer(fleet, settings, learned, memory, demand, need, now)


def _to_zero_blocked(fleet: Fleet, demand: Demand) -> bool:
    """Who does not tell may be busy."""
    return bool(fleet.pending) or demand.known < demand.ready


def _idle_for(memory: Memory, now: float) -> float:
    begun = now if memory.busy_at is None else memory.busy_at
    return now - begun


def _fewer(
    fleet: Fleet, settings: Settings, learned: Learned, memory: Memory, demand: Demand, need: Need, now: float
) -> Verdict:
    """One replica less, if the window says so and nothing speaks against it."""
    window = settings.behavior.scale_down_stabilization_seconds
    keep = Verdict(fleet.desired, "Enough", need.message)
    missing = demand.ready - demand.known
    # Replicas that do not tell count as full: they can take nothing of the one that goes.
    worst = max(max(work / need.each, kv) for _, work, kv in memory.needs)
    # The last one goes by another rule.
    most = max(1, need.replicas, missing + 1 if missing else 0, math.ceil(worst / DOWN_SHARE - ROUNDING))
    if most > fleet.desired - 1:
        return keep
    if fleet.pending or len(fleet.ready) < fleet.desired:
        return replace(keep, reason="Pending", message=f"replicas are starting or missing; {need.message}")
    calm = max(min(CALM_SECONDS, window), learned.startup_seconds)
    begun = memory.begun if memory.begun is not None else now
    if now - begun < window or (memory.scaled_up_at is not None and now - memory.scaled_up_at < calm):
        return replace(keep, reason="Stabilizing", message=f"fewer would do, but not yet for long; {need.message}")
    if memory.preempted_at is not None and now - memory.preempted_at < window:
        return replace(keep, reason="Preempted", message=f"KV pages ran out in the last {window:.0f} s; {need.message}")
    text = f"{most} replicas were enough for {window:.0f} s; {need.message}"
    return Verdict(fleet.desired - 1, "LessWork", text)
