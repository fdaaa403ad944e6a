"""What holds of every decision, whatever was observed; and what the parts of `decide` compute."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo_operator.autoscale import curve
from octavo_operator.autoscale.decide import Decision, decide
from octavo_operator.autoscale.demand import load_rate, work_between
from octavo_operator.autoscale.observation import Fleet, GatewaySample, Phase, Replica, Sample
from octavo_operator.autoscale.settings import Behavior, ScaleToZero, Settings
from octavo_operator.autoscale.state import BOUNDS, Learned, Memory, State
from octavo_operator.autoscale.victims import deletion_costs
from virtual_fleet import PROMPT, REQUEST, STEP, VirtualFleet

NOW = 1_000_000.0
counts = st.integers(0, 500_000)
totals = st.one_of(st.none(), st.floats(0, 1e9))


@st.composite
def samples(draw: st.DrawFn, at: float) -> Sample:
    return Sample(
        at=at - draw(st.floats(0, 200)),
        kv_tokens_used=draw(counts),
        kv_tokens_total=draw(st.integers(0, 500_000)),
        running=draw(st.integers(0, 500)),
        waiting=draw(st.integers(0, 500)),
        waiting_prompt_tokens=draw(counts),
        prefill_tokens_per_second=draw(st.floats(0, 1e5)),
        preemptions_total=draw(st.floats(0, 100)),
        computed_prompt_tokens_total=draw(totals),
        generated_tokens_total=draw(totals),
        inter_token_seconds_total=draw(totals),
        inter_token_count=draw(totals),
    )


@st.composite
def fleets(draw: st.DrawFn, at: float) -> Fleet:
    phases = draw(st.lists(st.sampled_from(("ready", "pending", "terminating")), max_size=6))
    return Fleet(
        desired=draw(st.integers(0, 12)),
        replicas=tuple(_replica(draw, number, phase, at) for number, phase in enumerate(phases)),
        gateway=draw(st.one_of(st.none(), gateways(at))),
    )


def _replica(draw: st.DrawFn, number: int, phase: Phase, at: float) -> Replica:
    sample = draw(st.one_of(st.none(), samples(at))) if phase == "ready" else None
    age = draw(st.floats(0, 4000))
    return Replica(f"pod-{number}", phase, age, draw(st.one_of(st.none(), st.floats(0, 3000))), sample=sample)


def gateways(at: float) -> st.SearchStrategy[GatewaySample]:
    total = st.floats(0, 1e7)
    whole = st.integers(0, 1000)
    return st.builds(GatewaySample, st.just(at), total, total, whole, whole, counts, total, total, total)


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[float, Fleet]]:
    times = [NOW + 10.0 * number for number in range(draw(st.integers(1, 8)))]
    return [(time, draw(fleets(time))) for time in times]


def play(history: list[tuple[float, Fleet]], chosen: Settings) -> list[Decision]:
    state, made = State(), []
    for time, fleet in history:
        made.append(decide(fleet, chosen, state, time))
        state = made[-1].state
    return made


@settings(max_examples=60, deadline=None)
@given(histories(), st.integers(0, 3), st.integers(3, 9), st.booleans())
def test_every_decision_is_within_bounds_has_a_reason_and_repeats(
    history: list[tuple[float, Fleet]], low: int, high: int, to_zero: bool
) -> None:
    chosen = Settings(min_replicas=low, max_replicas=high, scale_to_zero=ScaleToZero() if to_zero else None)
    made = play(history, chosen)
    for decision, (_, fleet) in zip(made, history, strict=True):
        assert decision.replicas is not None
        assert (low if to_zero else max(1, low)) <= decision.replicas <= high
        assert decision.reason.isalnum() and decision.reason[0].isupper()
        assert decision.message and "\n" not in decision.message
        assert set(decision.victims) == {each.name for each in fleet.ready}
        for name, (least, most) in BOUNDS.items():
            assert least <= getattr(decision.state.learned, name) <= most
    assert play(history, chosen) == made


@settings(max_examples=60, deadline=None)
@given(histories())
def test_it_never_takes_more_than_one_and_none_while_replicas_start(history: list[tuple[float, Fleet]]) -> None:
    chosen = Settings(max_replicas=64)
    for decision, (_, fleet) in zip(play(history, chosen), history, strict=True):
        assert decision.replicas is not None
        assert decision.replicas >= fleet.desired - 1 or fleet.desired <= 1
        if fleet.pending:
            assert decision.replicas >= fleet.desired


@settings(max_examples=40, deadline=None)
@given(histories())
def test_what_was_learned_survives_json(history: list[tuple[float, Fleet]]) -> None:
    state = play(history, Settings())[-1].state
    text = json.dumps(state.to_json(), allow_nan=False)
    assert len(text) < 1000
    assert State.from_json(json.loads(text)).learned == state.learned


@pytest.mark.parametrize("bad", [None, "0.5", math.nan, math.inf, -1, 1e30, True, [], {}])
def test_a_kept_figure_that_makes_no_sense_counts_as_not_known(bad: object) -> None:
    assert State.from_json(dict.fromkeys(BOUNDS, bad)).learned == Learned()


def test_after_a_restart_nothing_is_taken_away_for_a_window() -> None:
    fleet = VirtualFleet(6)
    fleet.run(900, 100.0)
    high = fleet.count
    fleet.state = State.from_json(fleet.state.to_json())
    decisions = fleet.run(290, 5.0)
    assert all(each.replicas == high for each in decisions)


def test_full_pages_are_enough_to_ask_for_more_at_the_first_look() -> None:
    """As after a start: the work of replicas shows only in the second."""
    full = Sample(at=NOW, kv_tokens_used=990, kv_tokens_total=1000, running=9, waiting=9)
    fleet = Fleet(desired=1, replicas=(Replica("pod-0", "ready", 20.0, 3.0, sample=full),))
    chosen = Settings(behavior=Behavior(scale_up_stabilization_seconds=0))
    decision = decide(fleet, chosen, State(), NOW)
    assert (decision.replicas, decision.reason) == (2, "KVCacheUse")
    silent = replace(fleet, replicas=(Replica("pod-0", "ready", 20.0, 3.0),))
    decision = decide(silent, chosen, State(), NOW)
    assert (decision.replicas, decision.reason, decision.active) == (1, "LoadUnknown", False)


@pytest.mark.parametrize(("window", "startup", "calm"), [(10, 3, 10), (300, 3, 60), (10, 90, 90)])
def test_after_an_increase_it_is_calm_for_a_minute_or_the_window_and_a_start_up(
    window: int, startup: int, calm: int
) -> None:
    idle = Sample(at=NOW, kv_tokens_used=0, kv_tokens_total=1000, running=0, waiting=0)
    quiet = GatewaySample(NOW, 0.0, 0.0, 0)
    memory = Memory(begun=NOW - 1000, scaled_up_at=NOW, busy_at=NOW)
    learned = Learned(replica_tokens=1000, startup_seconds=startup, work_per_token=0.001)
    chosen = Settings(behavior=Behavior(scale_down_stabilization_seconds=window))
    for seconds, replicas in ((calm - 1, 2), (calm + 1, 1)):
        now = NOW + seconds
        pods = tuple(Replica(f"pod-{n}", "ready", 500.0, sample=replace(idle, at=now)) for n in range(2))
        state = State(learned, replace(memory, gateway=(quiet,)))
        decision = decide(Fleet(2, pods, replace(quiet, at=now)), chosen, state, now)
        assert (decision.replicas, decision.reason) == (replicas, "LessWork" if replicas == 1 else "Stabilizing")


def test_bounds_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="minReplicas 5 and maxReplicas 3"):
        Settings(min_replicas=5, max_replicas=3)


def test_a_bound_that_is_met_is_the_reason() -> None:
    fleet = VirtualFleet(1, Settings(max_replicas=2))
    assert "MaxReplicas" in {each.reason for each in fleet.run(300, 200.0)}
    fleet = VirtualFleet(1, Settings(min_replicas=3, max_replicas=5))
    assert fleet.tick(1.0).reason == "MinReplicas"
    assert fleet.count == 3


def test_the_message_has_the_numbers_that_a_person_asks_for() -> None:
    fleet = VirtualFleet(2)
    for rate in (10.0, 20.0, 30.0):
        fleet.run(300, rate)
    message = fleet.run(300, 30.0)[-1].message
    assert message.startswith("30.0 requests/s are 1.2")  # 0.04 replica-seconds each
    assert "KV tokens" in message


def test_a_counter_that_is_begun_anew_is_no_negative_load() -> None:
    def gateway(at: float, arrivals: float) -> GatewaySample:
        return GatewaySample(at, arrivals, arrivals * 1000, 0)

    assert load_rate((gateway(0, 5000), gateway(10, 10)), 10) is None
    after = load_rate((gateway(0, 5000), gateway(10, 10), gateway(20, 210)), 20)
    assert after is not None and after[1] == pytest.approx(20)
    old = Sample(0, 0, 1, 0, 0, computed_prompt_tokens_total=100, inter_token_count=100)
    assert work_between(old, replace(old, at=10, inter_token_count=5), Learned(1, 1, 1, 1, 1)) is None


def test_the_law_of_steps_is_found_from_what_replicas_tell() -> None:
    """Independent truth: the constants that the virtual fleet runs on."""
    fleet = VirtualFleet(3, Settings(min_replicas=3, max_replicas=3))
    for number in range(120):
        fleet.tick(20 + number / 4, prompt=600 + 37 * number % 900, output=150 + 13 * number % 170)
    learned = fleet.state.learned
    assert learned.step_seconds == pytest.approx(STEP, rel=0.05)
    assert learned.request_seconds == pytest.approx(REQUEST, rel=0.1)
    assert learned.prompt_seconds == pytest.approx(PROMPT, rel=0.1)


@given(st.lists(st.tuples(st.floats(1e-3, 1), st.floats(0, 500), st.floats(0, 8192)), min_size=1, max_size=30))
def test_no_part_of_a_step_is_ever_negative_or_longer_than_the_step(points: list[tuple[float, float, float]]) -> None:
    found = curve.fit(curve.gather((), points, 1.0), Learned(), Settings())
    assert all(math.isfinite(value) and value >= 0 for value in found)
    assert found[0] <= min(length for length, _, _ in points) * (1 + 1e-9)


def test_less_is_asked_of_replicas_that_are_late_without_being_overloaded() -> None:
    fleet = VirtualFleet(4)
    fleet.run(900, 60.0)
    before = fleet.state.learned.utilization
    for _ in range(60):
        fleet.late_rest += 0.05 * 60.0 * 10
        fleet.tick(60.0)
    assert fleet.state.learned.utilization < 0.9 * before
    assert fleet.count > 4


def test_costs_of_deletion_are_in_the_order_of_the_victims() -> None:
    assert deletion_costs(("b", "a")) == {"b": -2, "a": -1}
