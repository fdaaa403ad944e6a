"""How many replicas there should be: `decide(fleet, settings, state, now)`. Pure: no clock, no chance, no I/O.

A decision reads the samples (`demand`), learns from them (`learn`), and takes the first rule that applies (`rules`).
"""

from dataclasses import dataclass, replace
from typing import Final

from octavo_operator.autoscale import learn, rules
from octavo_operator.autoscale.demand import STEADY_SECONDS, Demand, measure, see
from octavo_operator.autoscale.observation import Fleet
from octavo_operator.autoscale.settings import Settings
from octavo_operator.autoscale.state import Learned, Memory, State
from octavo_operator.autoscale.victims import victims

INTERVAL_SECONDS: Final = 10.0
"""Between two decisions."""
INTERVAL_AT_ZERO_SECONDS: Final = 1.0
"""Between two decisions while there is no replica: a request may be waiting for the first one."""
LOADS_SECONDS: Final = 600.0
"""How long loads are remembered."""


@dataclass(frozen=True, slots=True)
class Decision:
    """How many replicas, and why.

    `replicas`: None in mode External, where somebody else decides. `apply`: whether it is to be written to the
    Deployment (mode Internal), or only told (Recommend). `reason`: a CamelCase word for programs; `message`: a sentence
    with the numbers. `victims`: ready replicas, those to end first in front. `active` False: the load is not known
    (condition ScalingActive). `scheduled` False: replicas are stuck past their deadline (condition Scheduled).
    `next_in`: seconds until the next decision.
    """

    replicas: int | None
    reason: str
    message: str
    state: State
    victims: tuple[str, ...] = ()
    apply: bool = True
    active: bool = True
    scheduled: bool = True
    next_in: float = INTERVAL_SECONDS


def decide(fleet: Fleet, settings: Settings, state: State, now: float) -> Decision:
    """The number of replicas for what was observed, and the state to pass in next time."""
    if settings.mode == "External":
        message = "replicas are decided elsewhere, through the scale subresource"
        return Decision(None, "External", message, state, apply=False)
    learned, memory, demand = _take_in(fleet, settings, state, now)
    rise = learn.expected_rise(learned, demand, memory, now)
    need = rules.need(demand, learned, settings, rise)
    memory = rules.remember(memory, demand, need, settings, learned, now)
    verdict = rules.judge(fleet, settings, learned, memory, demand, need, now)
    if verdict.replicas > fleet.desired:
        memory = replace(memory, scaled_up_at=now)
    elif verdict.replicas < fleet.desired:
        memory = replace(memory, scaled_down_at=now)
    return Decision(
        replicas=verdict.replicas,
        reason=verdict.reason,
        message=verdict.message,
        state=State(learned, memory),
        victims=victims(fleet, memory.seen),
        apply=settings.mode == "Internal",
        active=verdict.active,
        scheduled=verdict.scheduled,
        next_in=INTERVAL_SECONDS if verdict.replicas else INTERVAL_AT_ZERO_SECONDS,
    )


def _take_in(fleet: Fleet, settings: Settings, state: State, now: float) -> tuple[Learned, Memory, Demand]:
    """Remember the samples and learn from them."""
    before = state.memory
    learned = learn.learn_replicas(fleet, state.learned, before)
    learned, before = learn.learn_curve(fleet, settings, learned, before, now)
    seen = see(fleet, before, learned)
    samples = learn.remember_gateway(fleet, before, STEADY_SECONDS)
    memory = replace(before, begun=now if before.begun is None else before.begun, seen=seen, gateway=samples)
    if _preempted(before, memory):
        memory = replace(memory, preempted_at=now)
    memory = learn.learn_lateness(memory, before, learned.utilization or learn.FIRST_UTILIZATION, now)
    learned, memory = learn.learn_work(fleet, learned, memory, now)
    demand = measure(fleet, settings, learned, memory, now)
    if demand.sure and demand.ready:
        load = demand.work / (demand.ready * demand.capacity)
        kept = tuple(each for each in memory.loads if now - each[0] <= LOADS_SECONDS)
        memory = replace(memory, loads=(*kept, (now, load)))
        learned, memory = learn.learn_utilization(learned, memory, now)
    learned, memory = learn.learn_reserve(learned, demand, memory, now)
    return learned, memory, demand


def _preempted(before: Memory, after: Memory) -> bool:
    totals = {each.name: each.sample.preemptions_total for each in before.seen}
    return any(each.sample.preemptions_total > totals.get(each.name, 0.0) for each in after.seen)
