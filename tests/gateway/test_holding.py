"""Requests wait for a replica, bounded and in turn, and are let go when one can take them."""

import asyncio
from collections import deque
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateways import FakeReplica, GatewayUnderTest, gateway_over, until
from octavo_gateway.discovery import Wishes
from octavo_gateway.fair_queue import FairQueue, Held

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hello " * 100}], "seed": 7}


def held(gateway: GatewayUnderTest) -> float:
    return gateway.metric("octavo:gateway_held_requests")


async def test_without_replicas_requests_are_held_are_seen_and_answered_once_there_is_one() -> None:
    replica = FakeReplica("a")
    async with gateway_over(replica) as gateway:
        gateway.publish()
        tasks = [asyncio.create_task(gateway.read({**CHAT, "seed": seed})) for seed in range(3)]
        await until(lambda: held(gateway) == 3)
        assert 400 < gateway.metric("octavo:gateway_held_tokens") < 550
        assert gateway.metric("octavo:gateway_in_flight") == 3
        assert gateway.metric("octavo:gateway_arrivals_total") == 3
        gateway.publish(replica)
        assert {status for status, _ in await asyncio.gather(*tasks)} == {200}
        assert held(gateway) == gateway.metric("octavo:gateway_in_flight") == 0
        assert gateway.metric("octavo:gateway_finished_total") == 3


async def test_a_replica_that_is_not_ready_or_drains_is_sent_nothing() -> None:
    replica = FakeReplica("a")
    async with gateway_over(replica) as gateway:
        for fields in ({"ready": False}, {"draining": True}):
            gateway.gateway.publish({"m": (type(replica.endpoint)("a", replica.url, **fields),)})
            task = asyncio.create_task(gateway.read(CHAT))
            await until(lambda: held(gateway) == 1)
            assert not replica.bodies
            gateway.publish(replica)
            assert (await task)[0] == 200
            replica.bodies.clear()


async def test_past_the_bound_503_says_when_to_try_again() -> None:
    async with gateway_over(hold_requests=2) as gateway:
        tasks = [asyncio.create_task(gateway.read(CHAT)) for _ in range(2)]
        await until(lambda: held(gateway) == 2)
        async with gateway.post(CHAT) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (503, "queue_full")
            assert int(answer.headers["Retry-After"]) >= 1
        assert gateway.metric("octavo:gateway_refused_total", model="m", reason="queue_full") == 1
        for task in tasks:
            task.cancel()
        await until(lambda: not gateway.gateway.pools["m"].in_flight)


async def test_of_a_model_less_may_be_held_than_of_all() -> None:
    async with gateway_over(hold_requests=50) as gateway:
        gateway.gateway.publish({"m": ()}, {"m": Wishes(hold_requests=1)})
        task = asyncio.create_task(gateway.read(CHAT))
        await until(lambda: held(gateway) == 1)
        assert (await gateway.read(CHAT))[0] == 503
        task.cancel()
        await until(lambda: held(gateway) == 0)


async def test_streams_that_miss_their_models_targets_are_counted() -> None:
    for wishes, late in (
        (Wishes(ttft_target=1e-6, tpot_target=10.0), (1, 0)),
        (Wishes(ttft_target=10.0, tpot_target=1e-6), (0, 1)),
    ):
        replica = FakeReplica("a", pause=0.005)
        async with gateway_over(replica, ttft_target_per_1000_tokens=0.0) as gateway:
            gateway.gateway.publish({"m": (replica.endpoint,)}, {"m": wishes})
            await gateway.read({**CHAT, "stream": True})
            names = "octavo:gateway_late_ttft_total", "octavo:gateway_late_tpot_total"
            assert tuple(map(gateway.metric, names)) == late


async def test_the_bytes_that_wait_are_bounded_too() -> None:
    large = {**CHAT, "messages": [{"role": "user", "content": "x" * 700_000}]}
    async with gateway_over(hold_mib=1) as gateway:
        task = asyncio.create_task(gateway.read(large))
        await until(lambda: held(gateway) == 1)
        assert (await gateway.read(large))[0] == 503
        task.cancel()
        await until(lambda: held(gateway) == 0)


async def test_who_waits_too_long_gets_503_and_never_404() -> None:
    async with gateway_over(hold_seconds=0.1) as gateway:
        async with gateway.post(CHAT) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (503, "no_replica")
            assert int(answer.headers["Retry-After"]) >= 1
        status, text = await gateway.read({**CHAT, "model": "other"})
        assert (status, "model_not_found" in text) == (404, True)


async def test_a_held_request_whose_client_leaves_is_dropped() -> None:
    replica = FakeReplica("a")
    async with gateway_over(replica) as gateway:
        gateway.publish()
        task = asyncio.create_task(gateway.read(CHAT))
        await until(lambda: held(gateway) == 1)
        task.cancel()
        await until(lambda: held(gateway) == 0)
        gateway.publish(replica)
        assert (await gateway.read({**CHAT, "seed": 8}))[0] == 200
        assert [body["seed"] for body in replica.bodies] == [8]


async def test_a_model_that_is_withdrawn_lets_nobody_wait() -> None:
    async with gateway_over() as gateway:
        task = asyncio.create_task(gateway.read(CHAT))
        await until(lambda: held(gateway) == 1)
        gateway.publish(model="another")
        status, text = await task
        assert (status, "model_not_found" in text) == (404, True)


@pytest.mark.parametrize("stream", [True, False])
async def test_where_all_are_busy_requests_wait_here_and_go_to_whoever_is_free_first(stream: bool) -> None:
    busy, other = FakeReplica("a", gate=asyncio.Event(), waiting=4), FakeReplica("b", waiting=4)
    async with gateway_over(busy, other, max_waiting=4) as gateway:
        pool = gateway.gateway.pools["m"]
        for replica in list(pool.replicas.values()):
            await gateway.gateway.scraper._ask(pool, replica)
        tasks = [asyncio.create_task(gateway.read({**CHAT, "seed": seed, "stream": stream})) for seed in range(5)]
        await until(lambda: held(gateway) == 5)
        other.waiting = 0
        await gateway.gateway.scraper._ask(pool, pool.replicas["b"])
        assert {status for status, _ in await asyncio.gather(*tasks)} == {200}
        assert (len(busy.bodies), len(other.bodies)) == (0, 5)


async def test_no_more_streams_than_the_bound_wait_for_a_first_token_at_a_replica() -> None:
    replica = FakeReplica("a", gate=asyncio.Event())
    async with gateway_over(replica, max_waiting=3) as gateway:
        tasks = [asyncio.create_task(gateway.read({**CHAT, "stream": True})) for _ in range(5)]
        await until(lambda: replica.running == 3 and held(gateway) == 2)
        assert replica.gate is not None
        replica.gate.set()
        assert {status for status, _ in await asyncio.gather(*tasks)} == {200}


async def test_a_replica_whose_queue_is_full_is_asked_again_later() -> None:
    replica = FakeReplica("a", status=429)
    async with gateway_over(replica) as gateway:
        task = asyncio.create_task(gateway.read(CHAT))
        await until(lambda: len(replica.bodies) == 1)
        replica.status = 200
        assert (await task)[0] == 200


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=40))
def test_the_queue_takes_keys_in_turn_and_each_keys_in_order(steps: list[tuple[str, bool]]) -> None:
    queue: FairQueue[int] = FairQueue(10, 1000)
    twin: dict[str, deque[int]] = {}
    turns: list[str] = []
    for number, (key, takes) in enumerate(steps):
        if takes and turns:
            expected = turns.pop(0)
            first = queue.first()
            assert first is not None
            assert (first.key, first.item) == (expected, twin[expected].popleft())
            queue.take()
            if twin[expected]:
                turns.append(expected)
        elif queue.has_room(10):
            queue.add(Held(key, 10, 5, number))
            twin.setdefault(key, deque()).append(number)
            if key not in turns:
                turns.append(key)
        assert len(queue) == sum(map(len, twin.values())) <= 10
        assert queue.tokens == 5 * len(queue)


def test_what_has_begun_goes_first_and_what_is_removed_is_gone() -> None:
    queue: FairQueue[str] = FairQueue(2, 100)
    entries = [Held("a", 1, 1, "one"), Held("b", 1, 1, "two"), Held("a", 1, 1, "three")]
    queue.add(entries[0])
    queue.add(entries[1])
    assert not queue.has_room(1)
    queue.add(entries[2], begun=True)
    first = queue.first()
    assert first is entries[2]
    assert queue.remove(entries[0])
    assert not queue.remove(entries[0])
    queue.take()
    assert queue.first() is entries[1]
    queue.take()
    assert (queue.first(), len(queue), queue.tokens) == (None, 0, 0)
