"""The simulator against independent truths: figures measured on an H100, and closed forms of queueing theory."""

import random
from dataclasses import replace
from statistics import median

import pytest

from octavo_operator.simulate.hardware import Hardware
from octavo_operator.simulate.job import Job
from octavo_operator.simulate.policies.bounds import StaticPeak
from octavo_operator.simulate.replica import Replica
from octavo_operator.simulate.routers import LeastLoaded
from octavo_operator.simulate.score import Objectives
from octavo_operator.simulate.trace import Arrival, Trace
from octavo_operator.simulate.world import Scenario, World

WITHIN = 0.15
H100 = Hardware()


def drain(replica: Replica) -> tuple[list[tuple[Job, float]], float]:
    """Every request with the time of its end, and the last time."""
    ended, now = [], 0.0
    while replica.next < float("inf"):
        now = replica.next
        replica.proceed()
        ended += [(job, now) for job in replica.finished]
        replica.finished.clear()
    return ended, now


@pytest.mark.parametrize(("batch", "milliseconds"), [(1, 6.5), (8, 6.9), (64, 9.9), (256, 20.2)])
def test_steps_that_decode_take_what_was_measured(batch: int, milliseconds: float) -> None:
    """`octavo bench decode --batch 1,8,64,256 --context 1024` with a model of 8B parameters."""
    replica = Replica(H100)
    jobs = [Job(0.0, 1024 - 64, 128) for _ in range(batch)]
    for job in jobs:
        replica.arrive(job, 0.0)
    while replica.decoding < batch:
        replica.proceed()
    begun, steps = replica._begun, replica._planned
    assert (replica.next - begun) / steps * 1e3 == pytest.approx(milliseconds, rel=WITHIN)


def test_prompts_are_computed_as_fast_as_was_measured() -> None:
    replica = Replica(H100)
    replica.arrive(Job(0.0, 8192, 1), 0.0)
    _, seconds = drain(replica)
    assert 8192 / seconds == pytest.approx(37_000, rel=WITHIN)


def test_a_long_prompt_is_slower_with_position() -> None:
    assert H100.prompt_seconds(30_000, 32_000) > 1.5 * H100.prompt_seconds(0, 2000)


def test_a_batch_that_is_there_at_once_takes_what_was_measured() -> None:
    """512 requests of 512/256 tokens: `octavo bench throughput`, workload b."""
    replica = Replica(H100)
    for _ in range(512):
        replica.arrive(Job(0.0, 512, 256), 0.0)
    _, seconds = drain(replica)
    assert seconds == pytest.approx(13.3, rel=WITHIN)


@pytest.mark.parametrize(("rate", "tpot", "ttft"), [(8, 7.9, 37), (16, 9.8, 47), (32, 16.9, 79)])
def test_poisson_arrivals_get_the_latencies_that_were_measured(rate: float, tpot: float, ttft: float) -> None:
    """Requests of 512/128 tokens over HTTP; medians in milliseconds."""
    chance, time, arrivals = random.Random(1), 0.0, []
    for _ in range(3000):
        time += chance.expovariate(rate)
        arrivals.append(Arrival(time, 512, 128))
    world = play(Trace(tuple(arrivals), time), H100, 1)
    assert median(world.score.tpot) * 1e3 == pytest.approx(tpot, rel=WITHIN)
    assert median(world.score.ttft) * 1e3 == pytest.approx(ttft, rel=WITHIN)


def play(trace: Trace, hardware: Hardware, replicas: int) -> World:
    scenario = Scenario(trace, hardware, warmup=0.0, objectives=Objectives(1e9, 0.0, 1e9))
    world = World(scenario, StaticPeak(replicas), LeastLoaded(), lambda now: None)
    world.run()
    return world


def server(seconds_per_token: float) -> Hardware:
    """A replica that serves one request at a time for as long as its prompt says, and lets the others wait outside."""
    return Hardware(
        kv_tokens=10**9, step=0.0, request=0.0, kv_token=0.0, prompts=0.0, prompt_token=seconds_per_token, position=0.0,
        overhead=0.0, max_requests=1, step_tokens=10**6, step_tokens_loaded=10**6, queue_tokens=1,
    )  # fmt: skip


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_one_server_of_constant_time_waits_as_pollaczek_and_khinchine_say(load: float) -> None:
    """M/D/1: mean wait = load / (2 (1 - load)) service times."""
    chance, time, arrivals = random.Random(7), 0.0, []
    for _ in range(60_000):
        time += chance.expovariate(load)
        arrivals.append(Arrival(time, 1000, 1))
    world = play(Trace(tuple(arrivals), time), server(1e-3), 1)
    wait = sum(world.score.ttft) / len(world.score.ttft) - 1.0
    assert wait == pytest.approx(load / (2 * (1 - load)), rel=0.06)


@pytest.mark.parametrize(("servers", "load"), [(2, 0.6), (5, 0.7)])
def test_several_servers_with_one_queue_wait_as_erlang_says(servers: int, load: float) -> None:
    """M/M/c: mean wait = C(c, c·load) / (c (1 - load)) service times, by Erlang's C."""
    chance, time, arrivals = random.Random(3), 0.0, []
    for _ in range(60_000):
        time += chance.expovariate(load * servers)
        arrivals.append(Arrival(time, max(1, round(chance.expovariate(1e-4))), 1))
    hardware = replace(server(1e-4))
    world = play(Trace(tuple(arrivals), time), hardware, servers)
    service = sum(each.prompt for each in arrivals) / len(arrivals) * 1e-4
    wait = sum(world.score.ttft) / len(world.score.ttft) - service
    assert wait == pytest.approx(erlang_c(servers, load * servers) / (servers * (1 - load)), rel=0.08)


def erlang_c(servers: int, offered: float) -> float:
    """The share of requests that wait, by the recursion of Erlang's B."""
    blocked = 1.0
    for number in range(1, servers + 1):
        blocked = offered * blocked / (number + offered * blocked)
    return blocked / (1 - offered / servers * (1 - blocked))


def test_steps_taken_together_end_as_steps_taken_one_by_one() -> None:
    """The closed form of many decode steps against their sum, looked at in between or not."""
    ends = []
    for looks in (0, 400):
        replica = Replica(H100)
        for number in range(20):
            replica.arrive(Job(0.0, 700 + 31 * number, 40 + 17 * number), 0.0)
        result, looked = [], 0
        while replica.next < float("inf"):
            if looks and looked < looks and replica._mode == 1:
                looked += 1
                replica.sync(replica._begun + (replica.next - replica._begun) * 0.37)
            now = replica.next
            replica.proceed()
            result += [(job.prompt, now) for job in replica.finished]
            replica.finished.clear()
        ends.append(result)
        assert replica.kv_used == 0 and replica.decoding == 0
        assert replica.generated_tokens == sum(40 + 17 * number for number in range(20))
    assert [prompt for prompt, _ in ends[0]] == [prompt for prompt, _ in ends[1]]
    assert [time for _, time in ends[0]] == pytest.approx([time for _, time in ends[1]])


def test_a_pool_that_is_too_small_preempts_and_still_ends_every_request() -> None:
    replica = Replica(replace(H100, kv_tokens=6000))
    for number in range(12):
        replica.arrive(Job(0.0, 900, 300 + number), 0.0)
    ended, _ = drain(replica)
    assert len(ended) == 12 and replica.preemptions > 0
    assert replica.kv_used == 0
    assert replica.generated_tokens == sum(300 + number for number in range(12))
