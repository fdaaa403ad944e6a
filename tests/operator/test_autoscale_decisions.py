"""How many replicas a pass applies in each mode, and what the status says of it: without a cluster, deciders set."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from llm_deployments import llm_deployment
from octavo_operator.api import LLMDeployment, parse
from octavo_operator.autoscale.decide import Decision
from octavo_operator.autoscale.decisions import Decisions, settings_of
from octavo_operator.autoscale.observation import Fleet, GatewaySample
from octavo_operator.autoscale.settings import Settings
from octavo_operator.autoscale.state import Learned, State
from octavo_operator.observation import Scaling

Object = dict[str, Any]
NAME = ("default", "demo")
INTERNAL: Object = {"maxReplicas": 8}
TO_ZERO: Object = {"minReplicas": 0, "maxReplicas": 8, "scaleToZero": {}}


class Decider:
    """Decides what it is set to, and keeps what it was given."""

    def __init__(self, replicas: int | None = 3, **more: Any) -> None:
        self.decision = Decision(replicas, "Work", "3 are needed", State(), **more)
        self.learned: Learned | None = None
        self.given: list[tuple[Fleet, Settings, State, float]] = []

    def __call__(self, fleet: Fleet, settings: Settings, state: State, now: float) -> Decision:
        self.given.append((fleet, settings, state, now))
        kept = State(self.learned) if self.learned is not None else state
        return replace(self.decision, state=kept, apply=settings.mode == "Internal")


def given(autoscaling: Object | None, status: Object | None = None, **spec: Any) -> tuple[Object, LLMDeployment]:
    body = llm_deployment(**({"autoscaling": autoscaling} if autoscaling is not None else {}), **spec)
    deployment = parse(body)
    body["metadata"] |= {"uid": "u-1", "generation": 1}
    return body | ({"status": status} if status is not None else {}), deployment


def with_replicas(count: int) -> Object:
    return {"spec": {"replicas": count}}


def settled(
    decisions: Decisions,
    autoscaling: Object | None,
    there: int | None,
    status: Object | None = None,
    **spec: Any,
) -> tuple[int, Scaling | None]:
    live, deployment = given(autoscaling, status, **spec)
    child = None if there is None else with_replicas(there)
    pinned, scaling = decisions.settle(live, deployment, child)
    return pinned.desired_replicas, scaling


def decided(decisions: Decisions, current: int, now: float = 0.0) -> bool:
    """One look; whether a pass is to be done."""
    taken = decisions.take(NAME, Fleet(current), now)
    assert taken is not None
    return decisions.want(NAME, taken[0], current) or taken[1]


def test_what_is_not_autoscaled_is_left_as_it_is() -> None:
    decisions = Decisions()
    assert settled(decisions, None, 7, replicas=2) == (2, None)
    assert decisions.looked_at() == []


@pytest.mark.parametrize(
    ("autoscaling", "there", "wanted"),
    [
        (INTERNAL, None, 1),
        ({"minReplicas": 2, "maxReplicas": 8}, None, 2),
        (TO_ZERO, None, 0),
        (INTERNAL, 5, 5),
        (INTERNAL, 12, 8),
        (INTERNAL, 0, 1),
        (TO_ZERO, 0, 0),
        ({"minReplicas": 4, "maxReplicas": 8}, 2, 4),
    ],
)
def test_before_anything_is_decided_there_are_as_many_as_there_are(
    autoscaling: Object, there: int | None, wanted: int
) -> None:
    """A new operator changes nothing; without a Deployment it is the first number; always within the bounds."""
    assert settled(Decisions(), autoscaling, there)[0] == wanted


def test_what_is_decided_is_applied_and_told_with_its_reason() -> None:
    decisions = Decisions(Decider(3))
    settled(decisions, INTERNAL, 1)
    assert decided(decisions, 1)
    replicas, scaling = settled(decisions, INTERNAL, 1)
    assert scaling is not None and (replicas, scaling.by) == (3, "3 are needed")
    assert (scaling.active.status, scaling.active.reason) == ("True", "Deciding")
    assert scaling.told == {}
    told = decisions.scaled(NAME, scaling, "2026-01-01T00:00:00Z").told
    assert told == {"lastScaleTime": "2026-01-01T00:00:00Z", "reason": "3 are needed"}
    assert not decided(decisions, 3), "nothing is to be done while it stays so"
    assert settled(decisions, INTERNAL, 10)[0] == 3, "drift is put right"


def test_a_decision_that_waits_to_be_applied_is_told_once() -> None:
    """As while a model is downloaded: at zero there is a look every second."""
    decider = Decider(1)
    decisions = Decisions(decider)
    settled(decisions, TO_ZERO, 0)
    assert decided(decisions, 0)
    assert not decided(decisions, 0)
    decider.decision = replace(decider.decision, replicas=2)
    assert decided(decisions, 0), "another number is news"
    assert settled(decisions, TO_ZERO, 0)[0] == 2


def seen(decisions: Decisions, current: int, now: float, gateway_at: float | None) -> tuple[Decision, bool]:
    sample = None if gateway_at is None else GatewaySample(gateway_at, 0.0, 0.0, 0)
    taken = decisions.take(NAME, Fleet(current, gateway=sample), now)
    assert taken is not None
    return taken


def test_without_a_gateway_nothing_goes_to_zero() -> None:
    """It may hold requests, and where there is none nobody would wake the model. With the real decider's own bound."""
    decider = Decider(1)
    decisions = Decisions(decider)
    settled(decisions, TO_ZERO, 1)
    seen(decisions, 1, 0.0, gateway_at=0.0)
    assert decider.given[-1][1].floor == 0
    seen(decisions, 1, 10.0, gateway_at=None)
    assert decider.given[-1][1].floor == 1, "nor while it does not answer for a moment"
    seen(decisions, 1, 90.0, gateway_at=20.0)
    assert decider.given[-1][1].floor == 1, "nor by what it said a minute ago"


def test_at_zero_a_model_that_no_gateway_tells_of_is_woken_after_a_while() -> None:
    decider = Decider(0)
    decisions = Decisions(decider)
    settled(decisions, TO_ZERO, 0)
    seen(decisions, 0, 0.0, gateway_at=0.0)
    seen(decisions, 0, 59.0, gateway_at=None)
    assert decider.given[-1][1].floor == 0, "a roll-out of gateways wakes nothing"
    decider.decision = replace(decider.decision, replicas=1)
    decision, is_news = seen(decisions, 0, 61.0, gateway_at=None)
    assert decider.given[-1][1].floor == 1 and is_news
    assert decision.reason == "GatewayUnknown" and "no gateway tells" in decision.message
    _, scaling = settled(decisions, TO_ZERO, 1)
    assert scaling is not None and scaling.active.reason == "GatewayUnknown"
    _, is_news = seen(decisions, 1, 71.0, gateway_at=None)
    assert not is_news, "that is told once"
    _, is_news = seen(decisions, 1, 80.0, gateway_at=80.0)
    assert is_news and decider.given[-1][1].floor == 0, "and over when one tells again"
    _, scaling = settled(decisions, TO_ZERO, 1)
    assert scaling is not None and scaling.active.reason == "Deciding"


def test_the_real_decider_keeps_a_replica_while_no_gateway_is_known() -> None:
    decisions = Decisions()
    settled(decisions, TO_ZERO, 0)
    seen(decisions, 0, 0.0, gateway_at=None)
    decision, _ = seen(decisions, 0, 61.0, gateway_at=None)
    assert (decision.replicas, decision.reason) == (1, "GatewayUnknown")
    resting = Decisions()
    settled(resting, TO_ZERO, 0)
    assert seen(resting, 0, 61.0, gateway_at=61.0)[0].replicas == 0


def test_a_lowered_bound_holds_at_once_and_is_told_as_the_reason() -> None:
    decisions = Decisions(Decider(6))
    settled(decisions, INTERNAL, 1)
    decided(decisions, 1)
    replicas, scaling = settled(decisions, {"maxReplicas": 2}, 6)
    assert scaling is not None and replicas == 2 and "maxReplicas" in scaling.by


def test_a_decision_that_was_not_applied_is_lost_with_the_process_and_made_again() -> None:
    before = Decisions(Decider(3))
    settled(before, INTERNAL, 1)
    decided(before, 1)
    after = Decisions(Decider(3))
    assert settled(after, INTERNAL, 1)[0] == 1
    assert decided(after, 1)
    assert settled(after, INTERNAL, 1)[0] == 3


def test_a_decision_about_an_earlier_one_of_that_name_is_forgotten() -> None:
    decisions = Decisions(Decider(3))
    settled(decisions, INTERNAL, 1)
    decided(decisions, 1)
    live, deployment = given(INTERNAL)
    live["metadata"]["uid"] = "u-2"
    assert decisions.settle(live, deployment, None)[0].desired_replicas == 1


def test_a_recommendation_is_told_and_not_applied() -> None:
    decisions = Decisions(Decider(3))
    mode = {"mode": "Recommend", "maxReplicas": 8}
    settled(decisions, mode, 2, replicas=2)
    assert decided(decisions, 2)
    replicas, scaling = settled(decisions, mode, 2, replicas=2)
    assert scaling is not None and replicas == 2 and scaling.by == "spec.replicas"
    assert scaling.told == {"recommendedReplicas": 3, "reason": "3 are needed"}
    assert (scaling.active.status, scaling.active.reason) == ("False", "Recommending")
    assert not decided(decisions, 2)


def test_a_recommendation_outlives_the_operator_until_there_is_another() -> None:
    status = {"autoscaling": {"recommendedReplicas": 5, "reason": "before"}}
    _, scaling = settled(Decisions(), {"mode": "Recommend", "maxReplicas": 8}, 2, status, replicas=2)
    assert scaling is not None and scaling.told == status["autoscaling"]


def test_external_belongs_to_who_writes_scale() -> None:
    decisions = Decisions(Decider(3))
    replicas, scaling = settled(decisions, {"mode": "External"}, 2, replicas=5)
    assert scaling is not None and replicas == 5
    assert (scaling.active.status, scaling.active.reason) == ("Unknown", "External")
    assert decisions.looked_at() == [] and decisions.take(NAME, Fleet(2), 0.0) is None


def test_suspension_forgets_what_was_decided_and_nobody_looks() -> None:
    decisions = Decisions(Decider(6))
    settled(decisions, INTERNAL, 1)
    decided(decisions, 1)
    replicas, scaling = settled(decisions, INTERNAL, 6, suspend=True)
    assert scaling is not None and (replicas, scaling.active.reason) == (0, "Suspended")
    assert decisions.looked_at() == []
    assert settled(decisions, INTERNAL, 0)[0] == 1, "afterwards it begins with the fewest"
    assert decisions.looked_at() == [NAME]


def test_switching_to_internal_goes_on_with_what_is_there_and_back_with_the_spec() -> None:
    decisions = Decisions(Decider(6))
    settled(decisions, {"mode": "External"}, 4, replicas=4)
    assert settled(decisions, INTERNAL, 4)[0] == 4
    decided(decisions, 4)
    assert settled(decisions, INTERNAL, 4)[0] == 6
    assert settled(decisions, {"mode": "Recommend", "maxReplicas": 8}, 6, replicas=2)[0] == 2
    assert settled(decisions, INTERNAL, 2)[0] == 2, "of the time before nothing is left"


def test_a_decision_for_what_was_suspended_meanwhile_is_not_wanted() -> None:
    decisions = Decisions(Decider(6))
    settled(decisions, INTERNAL, 1)
    taken = decisions.take(NAME, Fleet(1), 0.0)
    assert taken is not None
    settled(decisions, INTERNAL, 1, suspend=True)
    settled(decisions, INTERNAL, 0)
    assert not decisions.want(NAME, taken[0], 1)


@pytest.mark.parametrize(
    ("more", "reason"), [({"active": False}, "ScrapesLost"), ({"scheduled": False}, "PendingTooLong")]
)
def test_a_load_that_cannot_be_followed_is_told(more: Object, reason: str) -> None:
    decider = Decider(2, **more)
    decisions = Decisions(decider)
    settled(decisions, INTERNAL, 2)
    assert decided(decisions, 2), "its condition is news"
    _, scaling = settled(decisions, INTERNAL, 2)
    assert scaling is not None and (scaling.active.status, scaling.active.reason) == ("False", reason)
    assert not decided(decisions, 2), "and not told again"
    decider.decision = replace(decider.decision, active=True, scheduled=True)
    assert decided(decisions, 2)


def test_the_condition_holds_no_figures_of_the_load() -> None:
    """Else it would be written with every look."""
    decider = Decider(2)
    decisions = Decisions(decider)
    settled(decisions, INTERNAL, 2)
    decided(decisions, 2)
    _, first = settled(decisions, INTERNAL, 2)
    decider.decision = replace(decider.decision, message="quite another sentence", reason="Enough")
    assert not decided(decisions, 2)
    assert settled(decisions, INTERNAL, 2)[1] == first


def test_after_a_restart_the_condition_stays_until_something_is_decided() -> None:
    said = {"type": "ScalingActive", "status": "True", "reason": "Deciding", "message": "as before"}
    _, scaling = settled(Decisions(), INTERNAL, 2, {"conditions": [said]})
    assert scaling is not None and (scaling.active.status, scaling.active.message) == ("True", "as before")
    _, scaling = settled(Decisions(), {"mode": "Recommend", "maxReplicas": 3}, 2, {"conditions": [said]})
    assert scaling is not None and scaling.active.reason == "NotDecidedYet", "that was said in another mode"


def test_what_was_learned_is_told_seldom_and_outlives_the_operator() -> None:
    decider = Decider(2)
    decisions = Decisions(decider)
    settled(decisions, INTERNAL, 2)
    decided(decisions, 2, now=0.0)
    decider.learned = Learned(replica_tokens=1000.0, startup_seconds=60.4, utilization=0.5)
    assert decided(decisions, 2, now=10.0), "the first figures are told at once"
    _, scaling = settled(decisions, INTERNAL, 2)
    assert scaling is not None and (scaling.told["replicaTokens"], scaling.told["startupSeconds"]) == (1000, 60)
    decider.learned = replace(decider.learned, startup_seconds=90.0)
    assert not decided(decisions, 2, now=300.0), "five minutes are not over"
    assert decided(decisions, 2, now=311.0)
    decider.learned = replace(decider.learned, startup_seconds=95.0)
    assert not decided(decisions, 2, now=9999.0), "that is less than a tenth"
    _, scaling = settled(decisions, INTERNAL, 2)
    assert scaling is not None and scaling.told["startupSeconds"] == 90

    restarted = Decider(2)
    after = Decisions(restarted)
    settled(after, INTERNAL, 2, {"autoscaling": dict(scaling.told)})
    decided(after, 2, now=10_000.0)
    ((_, _, state, _),) = restarted.given
    assert state.learned == Learned(replica_tokens=1000.0, startup_seconds=90.0, utilization=0.5)
    restarted.learned = replace(state.learned, startup_seconds=200.0)
    assert not decided(after, 2, now=10_010.0), "restarts do not make it more often"


@pytest.mark.parametrize("kept", ["", "no JSON", "[]", '{"startup_seconds": "NaN"}', '{"startup_seconds": -1}'])
def test_what_somebody_else_has_written_there_counts_as_not_known(kept: str) -> None:
    decider = Decider(1)
    decisions = Decisions(decider)
    settled(decisions, INTERNAL, 1, {"autoscaling": {"learned": kept}})
    decided(decisions, 1)
    assert decider.given[0][2].learned == Learned()


def test_learned_figures_are_small_and_json() -> None:
    decider = Decider(1)
    decider.learned = Learned(replica_tokens=444_123.456789, startup_seconds=61.23456, utilization=0.51234567)
    decisions = Decisions(decider)
    settled(decisions, INTERNAL, 1)
    decided(decisions, 1)
    _, scaling = settled(decisions, INTERNAL, 1)
    assert scaling is not None and len(scaling.told["learned"]) < 500
    assert json.loads(scaling.told["learned"])["utilization"] == 0.5123


def test_the_spec_reaches_the_decider_field_by_field() -> None:
    spec: Object = {
        "minReplicas": 0,
        "maxReplicas": 9,
        "targets": {
            "kvCacheUtilizationPercent": 70,
            "timeToFirstTokenMilliseconds": 2000,
            "timePerOutputTokenMilliseconds": 40,
        },
        "behavior": {"scaleUpStabilizationSeconds": 1, "scaleDownStabilizationSeconds": 2},
        "scaleToZero": {"idleSeconds": 33, "maxQueuedRequests": 44},
    }
    autoscaling = given(spec)[1].spec.autoscaling
    assert autoscaling is not None
    found = settings_of(autoscaling)
    assert (found.mode, found.min_replicas, found.max_replicas) == ("Internal", 0, 9)
    targets, behavior, zero = found.targets, found.behavior, found.scale_to_zero
    assert targets.kv_cache_utilization_percent == 70
    assert (targets.time_to_first_token_milliseconds, targets.time_per_output_token_milliseconds) == (2000, 40)
    assert (behavior.scale_up_stabilization_seconds, behavior.scale_down_stabilization_seconds) == (1, 2)
    assert zero is not None and (zero.idle_seconds, zero.max_queued_requests) == (33, 44)


def test_defaults_of_the_api_are_the_deciders() -> None:
    autoscaling = given({**INTERNAL, "minReplicas": 0, "scaleToZero": {}})[1].spec.autoscaling
    assert autoscaling is not None
    found, default = settings_of(autoscaling), Settings()
    assert (found.targets, found.behavior) == (default.targets, default.behavior)
    assert settings_of(autoscaling).scale_to_zero == type(found.scale_to_zero)()
