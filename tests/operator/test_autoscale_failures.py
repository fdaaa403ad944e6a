"""What went wrong with autoscalers elsewhere does not go wrong here: the failure table of the design, in virtual time.

Rates in requests a second of 1,000 prompt and 200 answer tokens: 0.04 replica-seconds of work each, by `virtual_fleet`.
"""

from dataclasses import replace
from itertools import pairwise

from octavo_operator.autoscale.decide import INTERVAL_AT_ZERO_SECONDS, decide
from octavo_operator.autoscale.observation import Fleet, Replica, Sample
from octavo_operator.autoscale.settings import ScaleToZero, Settings
from octavo_operator.autoscale.state import State
from virtual_fleet import KV_TOKENS, VirtualFleet

TO_ZERO = Settings(min_replicas=0, max_replicas=8, scale_to_zero=ScaleToZero(idle_seconds=120))


def test_a_replica_full_of_prompts_with_little_kv_in_use_gets_help() -> None:
    """KV use alone misses saturation: prompts of 8,000 tokens with answers of 2 leave the KV cache nearly empty."""
    fleet = VirtualFleet(2)
    fleet.run(300, 3.0, prompt=8000, output=2)
    before = fleet.count
    decisions = fleet.run(120, 12.0, prompt=8000, output=2)
    used = sum(pod.sample.kv_tokens_used for pod in fleet.ready if pod.sample) / (KV_TOKENS * len(fleet.ready))
    assert used < 0.32
    assert fleet.count >= before + 2
    assert any(each.reason in {"Work", "Backlog"} for each in decisions)


def test_prompts_that_wait_at_the_gateway_are_demand() -> None:
    fleet = VirtualFleet(1)
    fleet.run(300, 5.0)
    assert fleet.count == 1
    fleet.held = 3000
    fleet.run(40, 5.0)
    assert fleet.count > 1


def test_a_scrape_that_fails_is_not_zero() -> None:
    fleet = VirtualFleet(4)
    fleet.gateway = False
    fleet.run(600, 70.0)
    steady = fleet.count
    for pod in fleet.pods[: steady // 2]:
        pod.scraped = False
    decisions = fleet.run(50, 70.0)
    assert {each.replicas for each in decisions} == {steady}


def test_a_replica_that_stays_unseen_counts_as_full_for_fewer_and_as_idle_for_more() -> None:
    fleet = VirtualFleet(4)
    fleet.run(600, 70.0)
    steady = fleet.count
    for pod in fleet.pods:
        pod.scraped = False
    fleet.run(900, 1.0)
    assert fleet.count == steady  # none tells that it has room: nothing goes
    fleet.run(120, 1.0)
    assert fleet.count == steady  # and none is asked for on their account


def test_all_scrapes_missing_means_hold_with_a_condition() -> None:
    fleet = VirtualFleet(3)
    fleet.run(600, 40.0)
    steady = fleet.count
    fleet.gateway = False
    for pod in fleet.pods:
        pod.scraped = False
    decisions = fleet.run(900, 0.0)
    assert fleet.count == steady
    assert not decisions[-1].active and decisions[-1].reason == "LoadUnknown"
    assert "no gateway" in decisions[-1].message


def test_pods_that_start_are_counted_and_do_not_cascade() -> None:
    """2→4→8→16 while pods are pending: the same need is asked for once."""
    fleet = VirtualFleet(2, startup=600.0)
    fleet.deadline = 1200.0
    fleet.run(600, 20.0)
    fleet.run(60, 60.0)
    asked = fleet.count
    assert asked > 2
    fleet.run(500, 60.0)
    # 60 requests/s are 2.4 replicas of work; while two serve them the backlog alone may ask for some more, not for all.
    assert fleet.count <= 2 * asked


def test_pods_pending_past_their_deadline_freeze_up_and_say_so() -> None:
    fleet = VirtualFleet(2)
    fleet.run(600, 20.0)
    fleet.startup = None  # no node is free
    fleet.run(300, 100.0)
    asked = fleet.count
    decisions = fleet.run(600, 100.0)
    assert decisions[-1].scheduled is False
    assert decisions[-1].reason == "PendingTooLong" and "found no node" in decisions[-1].message
    stuck = fleet.count
    fleet.run(600, 400.0)
    assert fleet.count == stuck >= asked


def test_it_comes_down_one_at_a_time_and_does_not_flap() -> None:
    fleet = VirtualFleet(2)
    fleet.run(900, 90.0)
    high = fleet.count
    assert high >= 4
    counts = [each.replicas for each in fleet.run(1800, 8.0)]
    assert counts[-1] == 1
    steps = {after - before for before, after in pairwise(counts) if before is not None and after is not None}
    assert steps == {0, -1}
    # 90 requests/s are 3.6 replicas of work: they are kept for the window.
    assert all(count is not None and count >= 4 for count in counts[:28])


def test_it_settles_under_a_load_that_swings_about_a_threshold() -> None:
    fleet = VirtualFleet(3)
    fleet.run(900, 50.0)
    counts = [fleet.tick(50.0 * (1.05 if number % 6 < 3 else 0.95)).replicas for number in range(180)]
    changes = sum(one != two for one, two in pairwise(counts))
    assert changes <= 2


def test_a_fleet_can_ask_for_more_than_two_however_full_the_pods_are() -> None:
    """An average over pods that is capped at 1 against a target of 0.5 never asks for more than twice what there is."""
    fleet = VirtualFleet(2)
    fleet.run(300, 20.0)
    fleet.run(400, 200.0)  # 8 replicas of work
    assert fleet.count >= 8


def test_zero_is_left_for_a_request_that_is_held_within_a_second() -> None:
    fleet = VirtualFleet(1, TO_ZERO)
    fleet.run(900, 0.0)
    assert fleet.count == 0
    assert fleet.decisions[-1].next_in == INTERVAL_AT_ZERO_SECONDS
    fleet.held = 1
    decision = fleet.tick(seconds=1.0)
    assert decision.replicas == 1 and decision.reason == "WakeFromZero"
    fleet.run(30)
    assert fleet.count == 1  # it is not taken back while it starts


def test_nothing_goes_to_zero_while_a_request_is_held_or_in_flight() -> None:
    fleet = VirtualFleet(1, TO_ZERO)
    fleet.in_flight = 1
    fleet.run(1800, 0.0)
    assert fleet.count == 1
    fleet.in_flight, fleet.held = 0, 1
    fleet.run(1800, 0.0)
    assert fleet.count == 1
    fleet.held = 0
    fleet.run(1800, 0.0)
    assert fleet.count == 0


def test_idleness_is_measured_against_the_time_of_a_start() -> None:
    fleet = VirtualFleet(1, TO_ZERO, startup=300.0)
    fleet.run(600, 20.0)
    fleet.run(600, 90.0)
    assert fleet.state.learned.startup_seconds > 200
    fleet.run(120 + 60 * 10, 0.0)
    assert fleet.count >= 1  # three start-ups are 900 s
    fleet.run(3000, 0.0)
    assert fleet.count == 0


def test_without_scale_to_zero_one_replica_stays() -> None:
    fleet = VirtualFleet(2, Settings(min_replicas=0, max_replicas=8))
    fleet.run(4000, 0.0)
    assert fleet.count == 1


def test_others_own_the_number_in_external_and_recommend() -> None:
    """A fight over `replicas`: External decides nothing, Recommend writes nothing."""
    external = VirtualFleet(2, Settings(mode="External", max_replicas=8))
    decision = external.tick(500.0)
    assert decision.replicas is None and not decision.apply and not decision.victims
    recommend = VirtualFleet(2, Settings(mode="Recommend", max_replicas=8))
    recommend.run(600, 200.0)
    assert recommend.count == 2
    last = recommend.decisions[-1]
    assert last.replicas is not None and last.replicas > 2 and not last.apply


def test_the_least_loaded_replica_ends_first_and_an_unseen_one_last() -> None:
    def pod(name: str, used: int | None) -> Replica:
        sample = None if used is None else Sample(100.0, used, KV_TOKENS, 1, 0)
        return Replica(name, "ready", 500.0, sample=sample)

    fleet = Fleet(4, (pod("a", 5000), pod("b", None), pod("c", 10), pod("d", 900)))
    decision = decide(fleet, Settings(), State(), 100.0)
    assert decision.victims == ("c", "d", "a", "b")


def test_pages_that_ran_out_keep_replicas() -> None:
    fleet = VirtualFleet(3)
    fleet.run(900, 60.0)
    high = fleet.count
    for _ in range(60):
        for pod in fleet.ready:
            if pod.sample is not None:
                pod.sample = replace(pod.sample, preemptions_total=fleet.now)
                pod.scraped = False
        decision = fleet.tick(20.0)
        for pod in fleet.ready:
            pod.scraped = True
    assert decision.replicas is not None and decision.replicas >= high - 1
