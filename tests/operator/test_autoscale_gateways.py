"""What several gateways tell together, while they come, go, restart and fall silent."""

from __future__ import annotations

from octavo_operator.autoscale.gateways import GatewayTally
from octavo_operator.autoscale.readings import GatewayReading


def reading(at: float, arrivals: float = 0.0, held: float = 0.0, in_flight: float = 0.0) -> GatewayReading:
    """`in_flight`: at replicas; a gateway tells them with those that it holds."""
    return GatewayReading(at, (arrivals, 10 * arrivals, arrivals, 0.0, 0.0), (held, 100 * held, in_flight + held))


def test_gauges_are_summed_and_counters_count_from_the_first_look() -> None:
    tally = GatewayTally()
    tally.look({"a", "b"}, {"a": {"m": reading(0, 1000, 2, 1)}, "b": {"m": reading(0, 50, 1, 4)}}, 0)
    first = tally.of("m")
    assert first is not None and (first.held_requests, first.held_prompt_tokens, first.in_flight) == (3, 300, 5)
    assert first.arrivals_total == 0, "what was before is not news"
    tally.look({"a", "b"}, {"a": {"m": reading(10, 1007, 0, 1)}, "b": {"m": reading(10, 53, 1, 4)}}, 10)
    second = tally.of("m")
    assert second is not None and (second.arrivals_total, second.arrived_prompt_tokens_total) == (10, 100)
    assert (second.held_requests, second.at) == (1, 10)


def test_a_gateway_that_goes_or_comes_is_no_burst() -> None:
    tally = GatewayTally()
    tally.look({"a", "b"}, {"a": {"m": reading(0, 1000)}, "b": {"m": reading(0, 1000)}}, 0)
    tally.look({"a"}, {"a": {"m": reading(10, 1001)}}, 10)
    tally.look({"a", "c"}, {"a": {"m": reading(20, 1002)}, "c": {"m": reading(20, 500)}}, 20)
    tally.look({"a", "c"}, {"a": {"m": reading(30, 1002)}, "c": {"m": reading(30, 501)}}, 30)
    found = tally.of("m")
    assert found is not None and found.arrivals_total == 3


def test_one_that_was_started_again_counts_from_zero() -> None:
    tally = GatewayTally()
    tally.look({"a"}, {"a": {"m": reading(0, 1000)}}, 0)
    tally.look({"a"}, {"a": {"m": reading(10, 4)}}, 10)
    found = tally.of("m")
    assert found is not None and found.arrivals_total == 4


def test_one_that_falls_silent_keeps_what_it_held_and_its_time() -> None:
    tally = GatewayTally()
    tally.look({"a", "b"}, {"a": {"m": reading(0, 10, 2)}, "b": {"m": reading(0, 10, 5, 3)}}, 0)
    tally.look({"a", "b"}, {"a": {"m": reading(10, 11, 0)}}, 10)
    found = tally.of("m")
    assert found is not None
    assert (found.held_requests, found.in_flight, found.arrivals_total) == (5, 3, 1), "missing is never 0"
    assert found.at == 0, "as old as the oldest of it"


def test_nothing_is_known_without_a_gateway_or_while_one_has_never_told_anything() -> None:
    tally = GatewayTally()
    assert tally.of("m") is None
    tally.look((), {}, 0)
    assert tally.of("m") is None
    tally.look({"a", "b"}, {"a": {"m": reading(10, held=1)}}, 10)
    assert tally.of("m") is None
    tally.look({"a"}, {"a": {"m": reading(20, held=1)}}, 20)
    found = tally.of("m")
    assert found is not None and found.held_requests == 1


def test_a_model_that_nobody_asked_for_has_nothing_held() -> None:
    tally = GatewayTally()
    tally.look({"a"}, {"a": {"m": reading(0, held=1)}}, 0)
    found = tally.of("other")
    assert found is not None and (found.held_requests, found.in_flight, found.arrivals_total) == (0, 0, 0)
    tally.look({"a"}, {"a": {"m": reading(10), "other": reading(10, 2)}}, 10)
    found = tally.of("other")
    assert found is not None and found.arrivals_total == 2, "its first requests are news"
