"""Limits of API keys, in virtual time: against a model that remembers every request, and OpenAI's headers."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_common.access.rates import Bucket, KeyUse, Limits, Rates, Ticket, spell_seconds
from octavo_server.errors import RequestError


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def use_of(clock: Clock, **limits: int | None) -> KeyUse:
    return Rates(clock).of("team", Limits(**limits))


def refusal(use: KeyUse) -> RequestError:
    with pytest.raises(RequestError) as caught:
        use.enter()
    error = caught.value
    assert (error.status, error.code) == (429, "rate_limit_exceeded")
    return error


class Model:
    """A bucket in exact arithmetic: how much is gone, which comes back steadily."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.gone = capacity, Fraction(0)

    def pass_time(self, seconds: Fraction) -> None:
        self.gone = max(Fraction(0), self.gone - seconds * self.capacity / 60)

    def take(self, units: int) -> None:
        self.gone = max(Fraction(0), self.gone + units)

    def wait(self, units: int) -> Fraction:
        return max(Fraction(0), (self.gone + units - self.capacity) * 60 / self.capacity)


TICKS = st.integers(0, 200_000).map(lambda n: Fraction(n, 1000))


@given(st.integers(1, 10**6), st.lists(st.tuples(TICKS, st.integers(-(10**6), 10**6)), max_size=40))
def test_a_bucket_holds_what_exact_arithmetic_says(capacity: int, steps: list[tuple[Fraction, int]]) -> None:
    bucket, model, now = Bucket(capacity, 0.0), Model(capacity), Fraction(0)
    for seconds, units in steps:
        now += seconds
        model.pass_time(seconds)
        assert bucket.level(float(now)) == pytest.approx(float(capacity - model.gone), abs=1e-4)
        asked = min(abs(units), capacity)
        assert bucket.wait(asked, float(now)) == pytest.approx(float(model.wait(asked)), abs=1e-4)
        bucket.take(units, float(now))
        model.take(units)


@given(st.integers(1, 300), st.lists(TICKS, max_size=200))
def test_no_stretch_of_time_sees_more_requests_than_a_minutes_and_what_came_back(
    limit: int, pauses: list[Fraction]
) -> None:
    clock, taken = Clock(), list[Fraction]()
    use, now = use_of(clock, requests_per_minute=limit), Fraction(1000)
    for pause in pauses:
        now += pause / 100
        clock.now = float(now)
        try:
            use.enter()
        except RequestError as error:
            assert error.retry_after is not None
            if error.retry_after > 1:
                clock.now += error.retry_after - 1 - 1e-3
                refusal(use)  # a second less is too early
                clock.now = float(now)
        else:
            taken.append(now)
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            assert last - first + 1 <= limit + (taken[last] - taken[first]) * limit / 60 + Fraction(1, 1000)


@given(st.integers(1, 10**5), st.lists(st.tuples(TICKS, st.integers(1, 10**5), st.integers(0, 10**5)), max_size=40))
def test_what_is_reserved_and_not_used_comes_back_and_what_is_owed_is_waited_for(
    limit: int, requests: list[tuple[Fraction, int, int]]
) -> None:
    clock, model, now = Clock(), Model(limit), Fraction(1000)
    use = use_of(clock, tokens_per_minute=limit)
    for pause, reserved, used in requests:
        now += pause
        clock.now = float(now)
        model.pass_time(pause)
        try:
            ticket = use.enter()
        except RequestError as error:
            assert model.wait(1) > 0
            assert error.retry_after == pytest.approx(max(1, math.ceil(model.wait(1))), abs=1)
            continue
        try:
            ticket.reserve(reserved, 0)
        except RequestError as error:
            assert reserved > limit or model.wait(reserved) > 0
            assert (error.retry_after is None) == (reserved > limit)  # waiting would not help
        else:
            assert model.wait(reserved) < Fraction(1, 100)
            model.take(reserved)
            ticket.used(used, iter(()))
            model.take(used - reserved)
        ticket.leave()


def test_who_comes_back_when_told_is_taken() -> None:
    clock = Clock()
    use = use_of(clock, requests_per_minute=7)
    for _ in range(7):
        use.enter().leave()
    for _ in range(50):
        clock.now += refusal(use).retry_after or math.nan
        use.enter().leave()


def test_a_refused_request_takes_nothing() -> None:
    clock = Clock()
    use = use_of(clock, requests_per_minute=2, tokens_per_minute=100, concurrent_requests=1)
    open_one = use.enter()
    for _ in range(10):
        assert refusal(use).type == "requests"
    open_one.leave()
    second = use.enter()  # of the two
    with pytest.raises(RequestError, match="too large"):
        second.reserve(101, 0)
    second.reserve(100, 0)
    second.used(100, iter(()))
    second.leave()
    assert refusal(use).type == "tokens"
    assert dict(use.headers())[b"x-ratelimit-remaining-tokens"] == b"0"


def test_requests_at_once_are_counted_to_their_end_and_ends_count_once() -> None:
    use = use_of(Clock(), concurrent_requests=2)
    first, second = use.enter(), use.enter()
    refusal(use)
    first.leave()
    first.leave()
    use.enter()
    refusal(use)
    second.leave()
    use.enter()


def test_an_answer_of_a_stated_length_is_reserved_and_what_it_does_not_use_comes_back() -> None:
    use = use_of(Clock(), tokens_per_minute=1000)
    ticket = use.enter()
    ticket.reserve(100, 50, answers=4)
    assert dict(use.headers())[b"x-ratelimit-remaining-tokens"] == b"700"
    ticket.used(100, iter([3, 4, 5, 6]))
    ticket.leave()
    assert dict(use.headers())[b"x-ratelimit-remaining-tokens"] == b"882"


def test_what_is_told_late_counts_all_the_same() -> None:
    use = use_of(Clock(), tokens_per_minute=1000)
    ticket = use.enter()
    ticket.reserve(100, 50)
    ticket.leave()
    ticket.used(100, iter([10]))
    ticket.leave()
    assert dict(use.headers())[b"x-ratelimit-remaining-tokens"] == b"890"
    assert use.idle


def test_an_answer_of_no_stated_length_reserves_what_others_used() -> None:
    clock = Clock()
    use = use_of(clock, tokens_per_minute=10_000)
    for _ in range(100):
        ticket = use.enter()
        ticket.used(0, iter([80]))
        ticket.leave()
        clock.now += 60
    ticket = use.enter()
    ticket.reserve(10, None, answers=2)
    assert dict(use.headers())[b"x-ratelimit-remaining-tokens"] == b"9830"
    ticket.leave()
    assert dict(use.headers())[b"x-ratelimit-remaining-tokens"] == b"10000"  # it failed before anything was used


def test_an_estimate_alone_makes_no_request_too_large() -> None:
    use = use_of(Clock(), tokens_per_minute=100)
    for _ in range(100):
        use.answered(5000)
    use.enter().reserve(60, None)
    with pytest.raises(RequestError, match="too large"):
        use.reserve(60, 41, 1)


def test_headers_are_openais_and_only_of_limits_that_there_are() -> None:
    clock = Clock()
    use = use_of(clock, requests_per_minute=60, tokens_per_minute=150_000)
    use.enter().reserve(16, 0)
    assert dict(use.headers()) == {
        b"x-ratelimit-limit-requests": b"60",
        b"x-ratelimit-remaining-requests": b"59",
        b"x-ratelimit-reset-requests": b"1s",
        b"x-ratelimit-limit-tokens": b"150000",
        b"x-ratelimit-remaining-tokens": b"149984",
        b"x-ratelimit-reset-tokens": b"7ms",
    }
    assert use_of(clock, concurrent_requests=1).headers() == []


@pytest.mark.parametrize(
    ("seconds", "spelt"),
    [
        (0, "0s"),
        (0.0164, "17ms"),
        (0.9999, "1s"),
        (1, "1s"),
        (1.2, "1.2s"),
        (59.99, "1m0s"),
        (60, "1m0s"),
        (360, "6m0s"),
        (61.5, "1m2s"),
        (3600, "1h0m0s"),
        (3661, "1h1m1s"),
    ],
)
def test_durations_are_spelt_as_openai_spells_them(seconds: float, spelt: str) -> None:
    assert spell_seconds(seconds) == spelt


def test_other_limits_count_what_was_used_before() -> None:
    clock = Clock()
    rates = Rates(clock)
    for _ in range(9):
        rates.of("team", Limits(requests_per_minute=10)).enter()
    use = rates.of("team", Limits(requests_per_minute=5))
    refusal(use)
    assert rates.of("team", Limits(requests_per_minute=12)).enter()
    assert rates.of("team", Limits()).headers() == []


def test_keys_that_are_gone_are_forgotten_once_their_requests_have_ended() -> None:
    rates = Rates(Clock())
    limits = Limits(requests_per_minute=1, concurrent_requests=1)
    ticket = rates.of("gone", limits).enter()
    rates.keep(frozenset({"other"}))
    refusal(rates.of("gone", limits))  # it was not forgotten
    ticket.leave()
    rates.keep(frozenset({"other"}))
    rates.of("gone", limits).enter()


def test_who_has_no_limits_holds_nothing() -> None:
    ticket = Ticket()
    ticket.reserve(10**9, None)
    ticket.used(10**9, iter([10**9]))
    ticket.leave()
