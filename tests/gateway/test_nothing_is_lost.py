"""Whatever comes and goes, in whatever order: no place is lost, nobody is forgotten, and nobody is served twice."""

import asyncio
import random
from collections import Counter
from typing import Any

import pytest

from gateways import FakeReplica, Stream, answer_tokens, gateway_over, text_of, until
from octavo_common.errors import RequestError
from octavo_common.prefixes import prompt_of
from octavo_common.routing import Router, RoutingPolicy
from octavo_gateway.discovery import Endpoint
from octavo_gateway.fair_queue import FairQueue
from octavo_gateway.model_pool import ModelPool, Wanted

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "stream": True}


@pytest.mark.parametrize("seed", range(8))
async def test_places_are_given_back_however_requests_end(seed: int) -> None:
    """Clients are cancelled at any moment, that in which they get a place too, or wait too long; pods come and go."""
    chance = random.Random(seed)
    pool = ModelPool("m", Router(RoutingPolicy(max_waiting=2)), FairQueue(20, 10**6))
    ends: Counter[str] = Counter()

    async def client(number: int) -> None:
        wanted = Wanted(prompt_of(b"x" * number), chance.choice("abc"), 10, streams=chance.random() < 0.7)
        place = None
        try:
            place = await pool.place(wanted, chance.choice([0.0, 0.002, 1.0]))
            await asyncio.sleep(chance.random() * 0.002)
            place.has_begun()
            await asyncio.sleep(chance.random() * 0.002)
            ends["served"] += 1
        except RequestError as error:
            ends[str(error.code)] += 1
        except asyncio.CancelledError:
            ends["cancelled"] += 1
        finally:
            if place is not None:
                if chance.random() < 0.3:
                    place.replica.failed(asyncio.get_running_loop().time())
                place.leave()
                place.leave()  # once more is no more

    tasks, known = [], []
    for number in range(300):
        tasks.append(asyncio.create_task(client(number)))
        known.append(list(pool.replicas.values()))
        if chance.random() < 0.3:
            chance.choice(tasks).cancel()
        if chance.random() < 0.15:
            names = [name for name in "abc" if chance.random() < 0.7]
            pool.update([Endpoint(name, f"http://{name}", chance.random() < 0.9) for name in names])
        if chance.random() < 0.5:
            await asyncio.sleep(0)
    pool.update([Endpoint("a", "http://a")])
    await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(task.cancelled() for task in tasks) + sum(ends.values()) >= 300
    assert ends["served"] > 10
    assert (len(pool.queue), pool.queue.tokens, pool.queue.first()) == (0, 0, None)
    for replica in {id(each): each for kept in known for each in kept}.values():
        assert (replica.in_flight, replica.waiting, replica.waiting_tokens) == (0, 0, 0)


async def test_many_clients_and_replicas_that_come_and_go_leave_nothing_behind() -> None:
    """A third of the clients leaves, replicas die, refuse and are replaced; who stays has its whole answer."""
    chance = random.Random(5)
    replicas = [FakeReplica(name, tokens=30, pause=0.001) for name in "abcd"]
    async with gateway_over(*replicas, max_waiting=10, attempts=100) as gateway:
        done = asyncio.Event()

        async def disturb() -> None:
            while not done.is_set():
                each = chance.choice(replicas)
                each.status, each.dies_after, each.fails_after = 200, None, None
                match chance.randrange(4):
                    case 0:
                        each.dies_after = chance.randrange(1, 20)
                    case 1:
                        each.status = 503
                    case 2:
                        each.fails_after = chance.randrange(1, 20)
                gateway.publish(*(replica for replica in replicas if chance.random() < 0.8))
                await asyncio.sleep(0.01)

        async def client(seed: int) -> str | None:
            async with gateway.post({**CHAT, "seed": seed}) as answer:
                assert answer.status == 200
                if seed % 3 == 0:
                    await answer.content.readany()
                    answer.close()
                    return None
                return await answer.text()

        disturbing = asyncio.create_task(disturb())
        answers = await asyncio.gather(*map(client, range(100)))
        done.set()
        await disturbing
        for seed, text in enumerate(answers):
            if text is not None:
                stream = Stream.of(text)
                assert (stream.text, stream.done) == (text_of(answer_tokens({**CHAT, "seed": seed}, 30)), True)
        pool = gateway.gateway.pools["m"]
        await until(lambda: not pool.in_flight and not gateway.gateway.open)
        assert all(each.in_flight == each.waiting == 0 for each in pool.replicas.values())
        assert not gateway.gateway.means.attempts._open
        assert gateway.gateway.room.held == 0
        assert gateway.metric("octavo:gateway_lost_total") == 0
