"""How much work there is: replica-seconds a second, from what replicas and gateway said. Pure.

Steps of a replica are shared by prompts and answers. A step has a constant part that is paid for any batch; what
requests add to it is work, and `curve` learns how much. If the work that comes takes the share p of a second, a step
takes `step_seconds / (1 - p)`: at the TPOT target p is the most that a replica can do, its capacity.

How much work a request is, is learned, too: work over load, where the load of a request is its prompt tokens and a
constant for its answer. So the gateway's arrivals of the last seconds tell the work to come before a replica did it.
"""

from dataclasses import dataclass
from typing import Final

from octavo_operator.autoscale.curve import rise
from octavo_operator.autoscale.observation import Fleet, GatewaySample, Replica, Sample
from octavo_operator.autoscale.settings import Settings
from octavo_operator.autoscale.state import Learned, Memory, Seen

GRACE_SECONDS: Final = 60.0
"""A replica that cannot be scraped counts with its last values for so long: six scrapes."""
ARRIVALS_SECONDS: Final = 20.0
"""Arrivals are counted over so long at least: two decisions."""
ARRIVALS_MAX_SECONDS: Final = 60.0
"""… and over so long at most, where few requests come."""
STEADY_SECONDS: Final = 120.0
"""What is taken for steady load is counted over so long: with 5 requests a second it is within 8 % of the truth."""
ARRIVALS_ENOUGH: Final = 300
"""Requests whose number says enough: it is then within 6 % of its mean two times of three."""
ANSWER_TOKENS: Final = 500
"""What the answer adds to the load of a request, in prompt tokens."""
MIN_CAPACITY: Final = 0.1
"""Of a replica whose steps alone take (nearly) the TPOT target: it cannot be met, and something is done anyway."""
DRAIN_SECONDS: Final = 20.0
"""Prompts that wait are to be worked off within so long at least …"""
DRAIN_STARTUPS: Final = 0.5
"""… or within so many start-up times: replicas that come too late for what waits now are not worth their start."""


@dataclass(frozen=True, slots=True)
class Demand:
    """`work` replica-seconds a second for what comes, `backlog` for what waits, `capacity` of a replica, 0 to 1.

    `steady`: the work of the last two minutes, in which chance has less part. `kv_replicas`: replicas whose KV tokens
    would be full. `trend`: what grows with the demand, by the last two minutes: the load that arrived, else the work.
    `arrivals`: requests a second. `known`, `ready`: replicas of which a sample counts, and all. `sure`: whether the
    load is known at all.
    """

    work: float
    steady: float
    backlog: float
    capacity: float
    kv_replicas: float
    trend: float
    arrivals: float
    known: int
    ready: int
    sure: bool


def see(fleet: Fleet, memory: Memory, learned: Learned) -> tuple[Seen, ...]:
    """The newest samples of ready replicas, with the work since the one before."""
    before = {each.name: each for each in memory.seen}
    return tuple(
        _seen(replica, replica.sample, before.get(replica.name), learned)
        for replica in fleet.ready
        if replica.sample is not None
    )


def _seen(replica: Replica, sample: Sample, before: Seen | None, learned: Learned) -> Seen:
    if before is None:
        return Seen(replica.name, sample)
    if sample.at <= before.sample.at:
        return before
    work = work_between(before.sample, sample, learned)
    return Seen(replica.name, sample, before.work if work is None else work)


def work_between(old: Sample, new: Sample, learned: Learned) -> float | None:
    """The share of the time between two samples that was work, 0 to 1; None if they do not tell."""
    seconds = new.at - old.at
    prompts = rise(old.computed_prompt_tokens_total, new.computed_prompt_tokens_total)
    answers = rise(old.inter_token_count, new.inter_token_count)
    if seconds <= 0 or prompts is None or answers is None:
        return None
    prompt_seconds = learned.prompt_seconds
    if not learned.step_seconds and new.prefill_tokens_per_second > 0:  # no answers yet that the law could be had from
        prompt_seconds = 1 / new.prefill_tokens_per_second
    return min(1.0, (prompts * prompt_seconds + answers * learned.request_seconds) / seconds)


def fresh(seen: tuple[Seen, ...], now: float) -> tuple[Seen, ...]:
    """Those whose last sample still counts."""
    return tuple(each for each in seen if now - each.sample.at <= GRACE_SECONDS)


def work_done(seen: tuple[Seen, ...], ready: int, now: float) -> float | None:
    """Replica-seconds a second that the ready replicas work; those that do not tell count as the others' mean.

    None if fewer than half of them tell.
    """
    works = [each.work for each in fresh(seen, now) if each.work is not None]
    return sum(works) / len(works) * ready if works and 2 * len(works) >= ready else None


def load_rate(
    samples: tuple[GatewaySample, ...], now: float, seconds: float = ARRIVALS_SECONDS
) -> tuple[float, float] | None:
    """Load and requests a second that arrived in the last `seconds`, by the gateway; None if it does not tell.

    If few came, over up to `ARRIVALS_MAX_SECONDS`, or `seconds` if that is more.
    """
    if not samples or now - samples[-1].at > GRACE_SECONDS:
        return None
    last, result = samples[-1], None
    for first in reversed(samples[:-1]):
        passed = last.at - first.at
        requests = rise(first.arrivals_total, last.arrivals_total)
        tokens = rise(first.arrived_prompt_tokens_total, last.arrived_prompt_tokens_total)
        if (
            requests is None
            or tokens is None
            or passed <= 0
            or (result and passed > max(seconds, ARRIVALS_MAX_SECONDS))
        ):
            break
        result = load(requests, tokens) / passed, requests / passed
        if passed >= seconds and requests >= ARRIVALS_ENOUGH:
            break
    return result


def load(requests: float, prompt_tokens: float) -> float:
    """What requests ask for, in prompt tokens."""
    return prompt_tokens + ANSWER_TOKENS * requests


def capacity(settings: Settings, learned: Learned) -> float:
    """The share of a second that can be work with tokens still in time."""
    target = settings.targets.time_per_output_token_milliseconds / 1000
    return max(MIN_CAPACITY, 1 - learned.step_seconds / target) if learned.step_seconds else 1.0


def measure(fleet: Fleet, settings: Settings, learned: Learned, memory: Memory, now: float) -> Demand:
    """The demand, from the memory that already holds the newest samples."""
    counted, ready = fresh(memory.seen, now), len(fleet.ready)
    arrived = load_rate(memory.gateway, now)
    done = work_done(memory.seen, ready, now)
    ahead = arrived[0] * learned.work_per_token if arrived and learned.work_per_token else None
    steady = load_rate(memory.gateway, now, STEADY_SECONDS) if ahead is not None else None
    work = ahead if ahead is not None else done
    waiting = sum(each.sample.waiting for each in counted)
    tokens = sum(each.sample.waiting_prompt_tokens for each in counted)
    gateway = memory.gateway[-1] if memory.gateway else None
    if gateway is not None:
        waiting, tokens = waiting + gateway.held_requests, tokens + gateway.held_prompt_tokens
    kv_used = sum(each.sample.kv_tokens_used for each in counted) * (ready / len(counted) if counted else 0.0)
    ttft = settings.targets.time_to_first_token_milliseconds / 1000
    drain = max(DRAIN_SECONDS, ttft, DRAIN_STARTUPS * learned.startup_seconds)
    return Demand(
        work=work or 0.0,
        steady=steady[0] * learned.work_per_token if steady else work or 0.0,
        backlog=load(waiting, tokens) * learned.work_per_token / drain,
        capacity=capacity(settings, learned),
        kv_replicas=kv_used / learned.replica_tokens if learned.replica_tokens else 0.0,
        trend=steady[0] if steady else work or 0.0,
        arrivals=arrived[1] if arrived else 0.0,
        known=len(counted),
        ready=ready,
        sure=work is not None,
    )
