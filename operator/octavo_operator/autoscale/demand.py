"""How much work there is: replica-seconds a second, from what replicas and gateway said. Pure.

Steps of a replica are shared by prompts and answers. A step has a constant part, `step_seconds`, that is paid for any
batch; what requests add to it is work. If the work that comes takes the share p of a second, a step takes
`step_seconds / (1 - p)`, and that is the time from token to token: so p = 1 - step_seconds / (mean time between tokens).
It needs neither the costs of a token nor the size of the model. At the TPOT target the share is the most that a replica
can do: its capacity.

How much work a request is, is learned: work over load, where the load of a request is its prompt tokens and a constant
for its answer. So the gateway's arrivals of the last seconds tell the work to come before any replica has done it.
"""

from dataclasses import dataclass
from typing import Final

from octavo_operator.autoscale.observation import Fleet, GatewaySample, Replica, Sample
from octavo_operator.autoscale.settings import Settings
from octavo_operator.autoscale.state import Learned, Memory, Seen

GRACE_SECONDS: Final = 60.0
"""A replica that cannot be scraped counts with its last values for so long: six scrapes."""
ARRIVALS_SECONDS: Final = 20.0
"""Arrivals are counted over so long at least: two decisions."""
ARRIVALS_MAX_SECONDS: Final = 60.0
"""… and over so long at most, where few requests come."""
ARRIVALS_ENOUGH: Final = 300
"""Requests whose number says enough: it is then within 6 % of its mean two times of three."""
ANSWER_TOKENS: Final = 500
"""What the answer adds to the load of a request, in prompt tokens."""
STEP_SHARE_UNKNOWN: Final = 0.25
"""A first time between tokens may be of a busy replica: it is no more than this share of the TPOT target."""
MIN_CAPACITY: Final = 0.1
"""Of a replica whose steps alone take (nearly) the TPOT target: the target cannot be met, and something is done anyway."""
MIN_GAPS: Final = 50
"""Times between tokens that make a mean."""
DRAIN_SECONDS: Final = 20.0
"""Prompts that wait are to be worked off within so long, or the TTFT target if that is longer."""


@dataclass(frozen=True, slots=True)
class Demand:
    """`work` replica-seconds a second for what comes, `backlog` for what waits, `capacity` of a replica, 0 to 1.

    `kv_replicas`: replicas whose KV tokens would be full. `arrivals`: requests a second. `known`, `ready`: replicas of
    which a sample counts, and all. `sure`: whether the load is known at all.
    """

    work: float
    backlog: float
    capacity: float
    kv_replicas: float
    arrivals: float
    known: int
    ready: int
    sure: bool


def see(fleet: Fleet, memory: Memory, step_seconds: float) -> tuple[Seen, ...]:
    """The newest samples of ready replicas, with the work since the one before."""
    before = {each.name: each for each in memory.seen}
    return tuple(
        _seen(replica, replica.sample, before.get(replica.name), step_seconds)
        for replica in fleet.ready
        if replica.sample is not None
    )


def _seen(replica: Replica, sample: Sample, before: Seen | None, step_seconds: float) -> Seen:
    if before is None:
        return Seen(replica.name, sample)
    if sample.at <= before.sample.at:
        return before
    work = work_between(before.sample, sample, step_seconds)
    return Seen(replica.name, sample, before.work if work is None else work)


def work_between(old: Sample, new: Sample, step_seconds: float) -> float | None:
    """The share of the time between two samples that was work, 0 to 1; None if they do not tell."""
    seconds = new.at - old.at
    gap_seconds, gaps = _rise(old.inter_token_seconds_total, new.inter_token_seconds_total), _gaps(old, new)
    prompts = _rise(old.computed_prompt_tokens_total, new.computed_prompt_tokens_total)
    if seconds <= 0 or gap_seconds is None or gaps is None:
        return None
    decoding = 0.0
    if gaps > 0 and step_seconds > 0:
        decoding = max(0.0, 1 - step_seconds * gaps / gap_seconds) * min(1.0, gap_seconds / seconds)
    speed = new.prefill_tokens_per_second
    prefill = prompts / seconds / speed if prompts and speed > 0 else 0.0
    # Prompts that met no answer under way are in no time between tokens.
    return min(1.0, max(decoding, prefill if gap_seconds < seconds else 0.0))


def mean_gap(old: Sample, new: Sample) -> float | None:
    """Seconds from token to token, if there were enough."""
    gap_seconds, gaps = _rise(old.inter_token_seconds_total, new.inter_token_seconds_total), _gaps(old, new)
    return gap_seconds / gaps if gap_seconds is not None and gaps is not None and gaps >= MIN_GAPS else None


def _gaps(old: Sample, new: Sample) -> float | None:
    return _rise(old.inter_token_count, new.inter_token_count)


def _rise(old: float | None, new: float | None) -> float | None:
    """Of a counter; None where it is not told or was begun anew."""
    return None if old is None or new is None or new < old else new - old


def fresh(seen: tuple[Seen, ...], now: float) -> tuple[Seen, ...]:
    """Those whose last sample still counts."""
    return tuple(each for each in seen if now - each.sample.at <= GRACE_SECONDS)


def work_done(seen: tuple[Seen, ...], ready: int, now: float) -> float | None:
    """Replica-seconds a second that the ready replicas work; those that do not tell count as the others' mean.

    None if fewer than half of them tell.
    """
    works = [each.work for each in fresh(seen, now) if each.work is not None]
    return sum(works) / len(works) * ready if works and 2 * len(works) >= ready else None


def load_rate(samples: tuple[GatewaySample, ...], now: float) -> tuple[float, float] | None:
    """Load and requests a second that arrived lately, by the gateway; None if it does not tell.

    Over `ARRIVALS_SECONDS`, or longer if too few came.
    """
    if not samples or now - samples[-1].at > GRACE_SECONDS:
        return None
    last, result = samples[-1], None
    for first in reversed(samples[:-1]):
        seconds = last.at - first.at
        requests = _rise(first.arrivals_total, last.arrivals_total)
        tokens = _rise(first.arrived_prompt_tokens_total, last.arrived_prompt_tokens_total)
        if requests is None or tokens is None or seconds <= 0 or (result and seconds > ARRIVALS_MAX_SECONDS):
            break
        result = load(requests, tokens) / seconds, requests / seconds
        if seconds >= ARRIVALS_SECONDS and requests >= ARRIVALS_ENOUGH:
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
    work = ahead if ahead is not None else done
    waiting = sum(each.sample.waiting for each in counted)
    tokens = sum(each.sample.waiting_prompt_tokens for each in counted)
    gateway = memory.gateway[-1] if memory.gateway else None
    if gateway is not None:
        waiting, tokens = waiting + gateway.held_requests, tokens + gateway.held_prompt_tokens
    kv_used = sum(each.sample.kv_tokens_used for each in counted) * (ready / len(counted) if counted else 0.0)
    drain = max(DRAIN_SECONDS, settings.targets.time_to_first_token_milliseconds / 1000)
    return Demand(
        work=work or 0.0,
        backlog=load(waiting, tokens) * learned.work_per_token / drain,
        capacity=capacity(settings, learned),
        kv_replicas=(kv_used + tokens) / learned.replica_tokens if learned.replica_tokens else 0.0,
        arrivals=arrived[1] if arrived else 0.0,
        known=len(counted),
        ready=ready,
        sure=work is not None,
    )
