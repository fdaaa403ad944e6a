"""The autoscaler's loop: when it looks, what it asks, in which order things happen. Decider and keeper are set."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from llm_deployments import llm_deployment
from octavo_operator.api import parse
from octavo_operator.autoscale.decide import Decision
from octavo_operator.autoscale.decisions import Decisions, Entry, Name
from octavo_operator.autoscale.loop import Autoscaler, Seen
from octavo_operator.autoscale.members import Member, Memory
from octavo_operator.autoscale.metrics import AutoscalingMetrics
from octavo_operator.autoscale.observation import Fleet, Sample
from octavo_operator.autoscale.readings import GatewayReading
from octavo_operator.autoscale.settings import Settings
from octavo_operator.autoscale.state import State

A, B = ("default", "a"), ("default", "b")


class Fakes:
    """Keeper and scraper in one, with a record of what was asked of them."""

    def __init__(self) -> None:
        self.done: list[tuple[Any, ...]] = []
        self.desired: dict[Name, int] = {A: 2, B: 2}
        self.gateway_answers: dict[str, dict[str, GatewayReading]] = {}
        self.may_go = True
        self.gate: asyncio.Event | None = None
        self.fail: Exception | None = None
        self.samples: dict[str, Sample] = {}

    async def see(self, name: Name, entry: Entry, now: float) -> Seen | None:
        self.done.append(("see", name))
        if self.fail is not None:
            raise self.fail
        if self.gate is not None and name == A:
            await self.gate.wait()
        if name not in self.desired:
            return None
        members = [Member(f"k{i}", f"p{i}", "ready", 100.0, f"http://p{i}") for i in range(self.desired[name])]
        return Seen(members, self.desired[name], 600.0)

    async def gateways(self) -> dict[str, str]:
        return {key: f"http://{key}" for key in self.gateway_answers}

    async def prepare(self, name: Name, victims: Sequence[str]) -> bool:
        self.done.append(("prepare", name, tuple(victims)))
        return self.may_go

    def tell(self, name: Name) -> None:
        self.done.append(("tell", name))

    async def replicas(self, urls: Mapping[str, str]) -> dict[str, Sample]:
        return {key: self.samples[key] for key in urls if key in self.samples}


class FakeScraper(Fakes):
    async def gateways(self, urls: Mapping[str, str]) -> dict[str, dict[str, GatewayReading]]:  # type: ignore[override]
        self.done.append(("gateways", tuple(urls)))
        return {key: self.gateway_answers[key] for key in urls}


class Decider:
    def __init__(self) -> None:
        self.replicas: dict[int, int] = {}
        self.next_in = 1000.0
        self.given: list[Fleet] = []

    def __call__(self, fleet: Fleet, settings: Settings, state: State, now: float) -> Decision:
        self.given.append(fleet)
        wanted = self.replicas.get(fleet.desired, fleet.desired)
        names = tuple(each.name for each in fleet.ready)
        apply = settings.mode == "Internal"
        return Decision(wanted, "Work", "because", state, names, apply=apply, next_in=self.next_in)


class Bench:
    """An autoscaler and all around it."""

    def __init__(self) -> None:
        self.decider, self.keeper, self.scraper = Decider(), Fakes(), FakeScraper()
        self.decisions = Decisions(self.decider)
        self.registry = CollectorRegistry()
        self.now = 0.0
        self.autoscaler = Autoscaler(
            self.decisions,
            self.keeper,
            self.scraper,  # type: ignore[arg-type]
            AutoscalingMetrics(self.registry),
            lambda: self.now,
        )

    def add(self, name: Name, mode: str = "Internal", made: str = "2025-01-01T00:00:00Z", **spec: Any) -> None:
        body = llm_deployment(name[1], autoscaling={"mode": mode, "maxReplicas": 8}, **spec)
        metadata = {"name": name[1], "namespace": name[0], "uid": f"uid-{name[1]}", "creationTimestamp": made}
        live = body | {"metadata": metadata}
        self.decisions.settle(live, parse(body), {"spec": {"replicas": 2}})

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.autoscaler.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def count(self, *what: Any) -> int:
        return sum(each[: len(what)] == what for each in (*self.keeper.done, *self.scraper.done))

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not holds():  # noqa: ASYNC110
                await asyncio.sleep(0.005)


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_nothing_is_done_while_nothing_is_autoscaled(bench: Bench) -> None:
    body = llm_deployment("a", replicas=2)
    bench.decisions.settle(body | {"metadata": {"uid": "u"}}, parse(body), None)
    bench.add(B, mode="External")
    async with bench.running():
        for _ in range(50):
            await asyncio.sleep(0)
    assert bench.keeper.done == bench.scraper.done == []


async def test_who_is_to_go_is_known_before_fewer_are_asked_for(bench: Bench) -> None:
    bench.add(A)
    bench.decider.replicas = {2: 1}
    await bench.autoscaler.look(A)
    assert bench.keeper.done == [("see", A), ("prepare", A, ("p0",)), ("tell", A)]
    entry = bench.decisions.entry(A)
    assert entry is not None and entry.wanted == 1


async def test_fewer_are_not_asked_for_while_who_is_to_go_could_not_be_written(bench: Bench) -> None:
    bench.add(A)
    bench.decider.replicas, bench.keeper.may_go = {2: 1}, False
    await bench.autoscaler.look(A)
    entry = bench.decisions.entry(A)
    assert entry is not None and entry.wanted is None
    bench.keeper.may_go = True
    await bench.autoscaler.look(A)
    assert entry.wanted == 1


async def test_while_nobody_is_to_go_earlier_costs_are_taken_back(bench: Bench) -> None:
    bench.add(A)
    await bench.autoscaler.look(A)
    assert ("prepare", A, ()) in bench.keeper.done


async def test_a_recommendation_touches_no_pod(bench: Bench) -> None:
    bench.add(A, mode="Recommend", replicas=2)
    bench.decider.replicas = {2: 1}
    await bench.autoscaler.look(A)
    assert bench.keeper.done == [("see", A), ("tell", A)]


async def test_a_pass_is_done_only_where_there_is_something_to_do(bench: Bench) -> None:
    bench.add(A)
    await bench.autoscaler.look(A)
    assert bench.count("tell") == 1, "that it decides now is news"
    for _ in range(5):
        await bench.autoscaler.look(A)
    assert bench.count("tell") == 1


async def test_each_is_looked_at_when_its_time_has_come(bench: Bench) -> None:
    bench.decider.next_in = 0.3
    bench.add(A)
    async with bench.running():
        await bench.until(lambda: bench.count("see", A) >= 3)
        bench.add(B)
        await bench.until(lambda: bench.count("see", B) >= 2)
        bench.decisions.forget(A)
        seen = bench.count("see", A)
        await bench.until(lambda: bench.count("see", B) >= 4)
        assert bench.count("see", A) <= seen + 1


async def test_one_that_hangs_or_fails_holds_up_no_other(bench: Bench) -> None:
    bench.decider.next_in = 0.2
    bench.keeper.gate = asyncio.Event()
    bench.add(A)
    bench.add(B)
    async with bench.running():
        await bench.until(lambda: bench.count("see", B) >= 3)
        assert bench.count("see", A) == 1, "nor is it begun twice"
        bench.keeper.gate.set()
        await bench.until(lambda: bench.count("see", A) >= 2)


async def test_a_look_that_fails_is_taken_again_later(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.add(A)
    bench.keeper.fail = RuntimeError("broken")
    async with bench.running():
        await bench.until(lambda: "could not be looked at" in caplog.text)
        bench.keeper.fail = None
        bench.decisions.changed.set()
        for _ in range(20):
            await asyncio.sleep(0)
        assert bench.count("see", A) == 1, "not at once: an interval later"


async def test_gateways_are_asked_once_for_all_that_are_looked_at_together(bench: Bench) -> None:
    reading = GatewayReading(0.0, (0.0,) * 5, (7.0, 70.0, 1.0))
    answers = {"g": {"demo": reading}}
    bench.keeper.gateway_answers = bench.scraper.gateway_answers = answers
    bench.add(A)
    bench.add(B)
    await asyncio.gather(bench.autoscaler.look(A), bench.autoscaler.look(B))
    assert bench.count("gateways") == 1
    (gateway,) = {each.gateway for each in bench.decider.given}
    assert gateway is not None and gateway.held_requests == 0, "of demo, not of a and b"
    bench.now = 10.0
    bench.scraper.gateway_answers = {"g": {"a": reading}}
    await bench.autoscaler.look(A)
    assert bench.count("gateways") == 2
    gateway = bench.decider.given[-1].gateway
    assert gateway is not None and gateway.held_requests == 7


async def test_the_model_is_asked_for_by_the_name_that_clients_use(bench: Bench) -> None:
    reading = GatewayReading(0.0, (0.0,) * 5, (7.0, 70.0, 1.0))
    bench.keeper.gateway_answers = bench.scraper.gateway_answers = {"g": {"llama": reading}}
    source = {"builtin": {"name": "demo"}}
    bench.add(A, model={"name": "llama", "source": source})
    await bench.autoscaler.look(A)
    gateway = bench.decider.given[0].gateway
    assert gateway is not None and gateway.held_requests == 7


async def test_of_two_models_of_one_name_a_gateway_tells_of_the_older(bench: Bench) -> None:
    """Which it serves. The other must not be scaled by requests that never reach it."""
    reading = GatewayReading(0.0, (0.0,) * 5, (7.0, 70.0, 7.0))
    bench.keeper.gateway_answers = bench.scraper.gateway_answers = {"g": {"llama": reading}}
    shared = {"name": "llama", "source": {"builtin": {"name": "demo"}}}
    bench.add(B, model=shared)
    bench.add(A, model=shared, made="2026-01-01T00:00:00Z")
    await bench.autoscaler.look(A)
    await bench.autoscaler.look(B)
    assert [each.gateway is not None for each in bench.decider.given] == [False, True]
    bench.decisions.forget(B)
    await bench.autoscaler.look(A)
    assert bench.decider.given[-1].gateway is not None


async def test_what_is_there_no_more_is_not_scraped(bench: Bench) -> None:
    bench.add(A)
    del bench.keeper.desired[A]
    assert await bench.autoscaler.look(A) > 0
    assert bench.decider.given == [] and bench.count("gateways") == 0


async def test_decisions_are_counted_and_gauges_go_with_what_they_are_of(bench: Bench) -> None:
    bench.add(A)
    bench.decider.replicas = {2: 5}
    labels = {"namespace": "default", "name": "a"}
    async with bench.running():
        await bench.until(lambda: bench.count("tell") >= 1)
        told = bench.registry.get_sample_value
        assert told("octavo_operator_autoscaling_desired_replicas", labels) == 5
        counted = labels | {"direction": "up", "reason": "Work"}
        assert told("octavo_operator_autoscaling_decisions_total", counted) == 1
        bench.decisions.forget(A)
        await bench.until(lambda: told("octavo_operator_autoscaling_desired_replicas", labels) is None)


async def test_a_replica_that_misses_a_scrape_keeps_its_last_sample_with_its_time() -> None:
    scraper, memory = Fakes(), Memory()
    first = Member("uid-1", "a", "ready", 10.0, "http://a", startup=30.0)
    sample = Sample(at=1.0, kv_tokens_used=5, kv_tokens_total=10, running=1, waiting=0)
    scraper.samples = {"uid-1": sample}
    fleet = await memory.look(scraper, [first], 1, 600.0, None)
    assert fleet.replicas[0].sample == sample
    scraper.samples = {}
    again = Member("uid-1", "a", "ready", 99.0, "http://a", startup=80.0)
    (replica,) = (await memory.look(scraper, [again], 1, 600.0, None)).replicas
    assert replica.sample == sample and replica.startup == 30.0, "it was unready for a moment: that is no start"
    successor = Member("uid-2", "a", "ready", 1.0, "http://a", startup=1.0)
    (replica,) = (await memory.look(scraper, [successor], 1, 600.0, None)).replicas
    assert replica.sample is None, "another one of that name tells for itself"
    assert set(memory.members) == {"uid-2"}
