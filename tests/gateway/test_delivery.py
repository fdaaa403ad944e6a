"""Requests that outlive their replicas, against fake ones that break down as they are told."""

import asyncio
import json
from typing import Any

import pytest

from gateways import FakeReplica, Stream, answer_tokens, gateway_over, text_of, until

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "seed": 7}
STREAM: dict[str, Any] = {**CHAT, "stream": True}
WHOLE = text_of(answer_tokens(CHAT, 8))


async def test_a_stream_comes_through_without_what_only_the_gateway_asked_for() -> None:
    async with gateway_over(FakeReplica("a")) as gateway:
        status, text = await gateway.read(STREAM)
    stream = Stream.of(text)
    assert status == 200
    assert (stream.text, stream.roles, stream.finishes, stream.done) == (WHOLE, 1, ["stop"], True)
    assert not stream.extra
    assert not stream.usages


async def test_who_asks_for_token_ids_and_usage_gets_them() -> None:
    async with gateway_over(FakeReplica("a", dies_after=3), FakeReplica("b", dies_after=5)) as gateway:
        asked = {**STREAM, "return_token_ids": True, "stream_options": {"include_usage": True}}
        stream = Stream.of((await gateway.read(asked))[1])
    assert stream.extra == {"token_ids", "prompt_token_ids"}
    assert [usage["completion_tokens"] for usage in stream.usages] == [8]


@pytest.mark.parametrize("how", ["dies_after", "fails_after"])
@pytest.mark.parametrize("tokens", [1, 3, 8])
async def test_a_broken_stream_goes_on_elsewhere_and_its_client_sees_one(how: str, tokens: int) -> None:
    replicas = [FakeReplica(name, only_at_first=True, **{how: tokens}) for name in "ab"]
    async with gateway_over(*replicas) as gateway:
        status, text = await gateway.read({**STREAM, "stream_options": {"include_usage": True}})
        replica = next(each for each in replicas if "octavo_resume" not in each.bodies[0])
        other = next(each for each in replicas if each is not replica)
        resumed = gateway.metric("octavo:gateway_resumed_total")
    stream = Stream.of(text)
    assert (status, stream.text, stream.roles, stream.finishes) == (200, WHOLE, 1, ["stop"])
    assert (len(stream.ids), stream.done, stream.errors) == (1, True, [])
    assert len(stream.usages) == 1
    assert other.bodies[0]["octavo_resume"]["output_token_ids"] == answer_tokens(CHAT, 8)[:tokens]
    assert other.bodies[0]["seed"] == 7
    assert resumed >= 1


async def test_a_stream_that_breaks_before_its_first_token_has_one_beginning() -> None:
    replicas = [FakeReplica("a", fails_after=0), FakeReplica("b", fails_after=0)]
    replicas[0].dies_after = replicas[1].dies_after = None

    async with gateway_over(*replicas) as gateway:
        text = await broken_after_the_opening(gateway, replicas)
    stream = Stream.of(text)
    assert (stream.text, stream.roles, len(stream.ids), stream.done) == (WHOLE, 1, 1, True)


async def broken_after_the_opening(gateway: Any, replicas: list[FakeReplica]) -> str:
    """The opening is sent, then the connection breaks: the first replica is told to stall there, and is then lost."""
    for replica in replicas:
        replica.stalls_after = 0
    async with gateway.post(STREAM) as answer:
        first = await answer.content.readuntil(b"\n\n")
        for replica in replicas:
            replica.stalls_after = None
        (attempt,) = gateway.gateway.means.attempts._open
        attempt.limit.reschedule(0)
        return (first + await answer.read()).decode()


async def test_several_replicas_may_break_down_one_after_the_other() -> None:
    replicas = [FakeReplica(name, dies_after=2) for name in "abc"]
    async with gateway_over(*replicas, attempts=10) as gateway:
        stream = Stream.of((await gateway.read({**STREAM, "seed": None}))[1])
        seeds = {body["seed"] for replica in replicas for body in replica.bodies}
    assert stream.text == text_of(answer_tokens({**CHAT, "seed": seeds.pop()}, 8))
    assert not seeds
    assert (stream.done, len(stream.ids), stream.errors) == (True, 1, [])


async def test_who_takes_all_replicas_down_is_not_sent_to_more_of_them() -> None:
    replicas = [FakeReplica(name, tokens=20, dies_after=1) for name in "abcdef"]
    async with gateway_over(*replicas, attempts=3) as gateway:
        stream = Stream.of((await gateway.read(STREAM))[1])
        lost = gateway.metric("octavo:gateway_lost_total")
    assert [error["code"] for error in stream.errors] == ["replica_lost"]
    assert (stream.done, sum(len(replica.bodies) for replica in replicas), lost) == (False, 3, 1)


async def test_long_streams_may_outlive_any_number_of_replicas() -> None:
    replicas = [FakeReplica(name, tokens=500, dies_after=70) for name in "abc"]
    asked = STREAM
    async with gateway_over(*replicas, attempts=2) as gateway:
        stream = Stream.of((await gateway.read(asked))[1])
    assert (stream.text, stream.done) == (text_of(answer_tokens(asked, 500)), True)


async def test_what_is_not_streamed_begins_anew_elsewhere() -> None:
    replicas = [FakeReplica("a", dies_after=0), FakeReplica("b", dies_after=0)]
    async with gateway_over(*replicas) as gateway:
        task = asyncio.create_task(gateway.read(CHAT))
        await until(lambda: any(replica.bodies for replica in replicas))
        for replica in replicas:
            if not replica.bodies:
                replica.dies_after = None
        status, text = await task
    assert status == 200
    assert WHOLE in text


async def test_a_stream_of_several_answers_ends_with_an_error_that_says_why() -> None:
    async with gateway_over(FakeReplica("a", dies_after=2), FakeReplica("b", dies_after=2)) as gateway:
        stream = Stream.of((await gateway.read({**STREAM, "n": 2}))[1])
    assert [error["code"] for error in stream.errors] == ["replica_lost"]
    assert "several answers" in stream.errors[0]["message"]
    assert not stream.done


async def test_a_replica_that_refuses_connections_is_passed_by() -> None:
    gone = FakeReplica("gone")
    async with gateway_over(FakeReplica("a")) as gateway:
        gone.url = "http://127.0.0.1:9"
        replica = FakeReplica("a", url=next(iter(gateway.gateway.pools["m"].replicas.values())).endpoint.url)
        gateway.publish(gone, replica)
        answers = await asyncio.gather(*(gateway.read({**CHAT, "seed": seed}) for seed in range(20)))
    assert {status for status, _ in answers} == {200}


async def test_a_replica_that_drains_is_passed_by() -> None:
    draining, other = FakeReplica("a", status=503), FakeReplica("b")
    async with gateway_over(draining, other) as gateway:
        answers = [await gateway.read({**CHAT, "seed": seed}) for seed in range(10)]
    assert {status for status, _ in answers} == {200}
    assert len(other.bodies) == 10


async def test_what_a_replica_refuses_is_refused_in_its_words() -> None:
    async with gateway_over(FakeReplica("a", status=400)) as gateway:
        for body in (CHAT, STREAM):
            status, text = await gateway.read(body)
            assert (status, "a says no" in text) == (400, True)


async def test_a_replica_that_goes_silent_within_a_stream_is_given_up() -> None:
    replicas = [FakeReplica("a", stalls_after=3), FakeReplica("b", stalls_after=3)]
    async with gateway_over(*replicas) as gateway, gateway.post(STREAM) as answer:
        text = b""
        while text.count(b"\n\n") < 4:
            text += await answer.content.readany()
        attempts = gateway.gateway.means.attempts
        for replica in replicas:
            replica.stalls_after = None
        attempts.look(asyncio.get_running_loop().time() + 59)
        attempts.look(asyncio.get_running_loop().time() + 61)
        text += await answer.read()
    stream = Stream.of(text.decode())
    assert (stream.text, stream.done) == (WHOLE, True)


async def test_a_client_that_leaves_ends_its_request_at_the_replica() -> None:
    replica = FakeReplica("a", pause=0.01, tokens=10_000)
    async with gateway_over(replica) as gateway:
        async with gateway.post(STREAM) as answer:
            await answer.content.readany()
            answer.close()
        await until(lambda: replica.left)
        pool = gateway.gateway.pools["m"]
        await until(lambda: not pool.in_flight)
        assert all(each.in_flight == each.waiting == 0 for each in pool.replicas.values())


async def test_clients_may_not_say_what_only_the_gateway_says() -> None:
    replica = FakeReplica("a")
    async with gateway_over(replica) as gateway:
        resume = {"output_token_ids": [1], "response_id": "x", "created": 1}
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/tokenize"):
            status, text = await gateway.read({**STREAM, "octavo_resume": resume}, path)
            assert (status, "octavo_resume" in text) == (403, True)
        spelt = json.dumps({**STREAM, "octavo_resume": resume}).replace("_resume", "\\u005fresume")
        async with gateway.client.post(f"{gateway.url}/v1/chat/completions", data=spelt.encode()) as answer:
            assert answer.status == 403
    assert all("octavo_resume" not in body for body in replica.bodies)
