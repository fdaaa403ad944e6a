"""The bound on open answers and when to come back, by a clock that the test sets."""

from collections.abc import Callable

import pytest

from octavo_server.errors import RequestError
from octavo_server.frontend.admission import Admission


class World:
    """A clock and an engine."""

    now = 100.0
    submitted = 0


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def admission(world: World) -> Admission:
    return Admission(10, lambda: world.submitted, lambda: world.now)


def refusal(take: Callable[[], None], status: int = 429) -> RequestError:
    with pytest.raises(RequestError) as caught:
        take()
    assert caught.value.status == status
    return caught.value


def test_as_many_are_open_as_are_allowed_wherever_they_are(admission: Admission, world: World) -> None:
    preparing, asking = admission.place(), admission.place()
    preparing.take(4)
    world.submitted = 5
    refusal(lambda: asking.take(2))
    asking.take(1)
    refusal(admission.check)
    asking.leave()
    asking.leave()  # of no effect: it holds nothing
    assert admission.num_open == 9
    admission.check()


def test_a_request_that_is_taken_by_the_engine_counts_once(admission: Admission, world: World) -> None:
    place = admission.place()
    place.take(10)
    world.submitted = 10
    place.leave()
    assert admission.num_open == 10
    refusal(admission.check)


def test_who_goes_piece_by_piece_takes_half_of_what_is_free_and_always_goes_on(
    admission: Admission, world: World
) -> None:
    place, other = admission.place(), admission.place()
    world.submitted = 4
    place.take(1)
    assert place.take_up_to(50) == 4
    world.submitted = 8  # its four among them
    place.keep_one()
    other.take(1)
    assert admission.num_open == 10
    refusal(lambda: admission.place().take(1))
    assert place.take_up_to(46) == 1  # it always goes on
    other.leave()
    world.submitted = 0
    assert place.take_up_to(3) == 3
    place.leave()
    assert admission.num_open == 0


def test_what_never_fits_is_told_so(admission: Admission) -> None:
    error = refusal(lambda: admission.place().take(11), status=400)
    assert "11" in error.message and "10" in error.message
    admission.place().take(10)


@pytest.mark.parametrize(
    ("interval", "excess", "seconds"), [(2.0, 1, 2), (2.0, 7, 14), (0.01, 5, 1), (30.0, 5, 60), (0.4, 4, 2)]
)
def test_who_is_refused_comes_back_when_as_many_have_ended_as_stand_in_the_way(
    admission: Admission, world: World, interval: float, excess: int, seconds: int
) -> None:
    admission.place().take(5)
    world.submitted = 5
    for _ in range(20):
        world.now += interval
        admission.ended()
    error = refusal(lambda: admission.place().take(excess))
    assert error.retry_after == seconds


def test_only_what_ended_lately_counts(admission: Admission, world: World) -> None:
    admission.place().take(10)
    for interval in (50.0, 3.0):
        for _ in range(64):
            world.now += interval
            admission.ended()
    assert admission.retry_after(2) == 6


def test_where_nothing_ends_the_wait_grows(admission: Admission, world: World) -> None:
    admission.place().take(10)
    assert admission.retry_after(1) == 1
    world.now += 17
    assert admission.retry_after(1) == 17
    world.now += 1000
    assert admission.retry_after(1) == 60


def test_a_time_without_requests_is_not_taken_for_slowness(admission: Admission, world: World) -> None:
    place = admission.place()
    place.take(1)
    world.now += 1
    admission.ended()
    place.leave()
    world.now += 1000
    admission.place().take(10)
    assert admission.retry_after(1) == 1
