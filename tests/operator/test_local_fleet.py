"""Processes that come and go as the load does: real processes, the real loop and scraper, a decider that is told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

import processes
from llm_deployments import llm_deployment
from local_replicas import launch, wait_for
from octavo_operator.api import parse
from octavo_operator.autoscale.decisions import Decisions
from octavo_operator.autoscale.loop import Autoscaler
from octavo_operator.autoscale.metrics import AutoscalingMetrics
from octavo_operator.autoscale.scrape import Scraper
from octavo_operator.local.fleet import LocalFleet
from octavo_operator.local.supervisor import Supervisor
from octavo_operator.observation import Scaling
from wishes import Wish


def ready(local: Supervisor) -> list[str]:
    return [state.name for state in local.states if state.ready]


async def test_fewer_means_victims_first_and_a_place_is_taken_again_when_it_is_free(mark: dict[str, str]) -> None:
    async with Supervisor("chat", [launch(mark)] * 3, count=1) as local:
        await local.wait_ready()
        assert ready(local) == ["chat-0"] and len(local.states) == 1
        local.scale(3)
        await local.wait_ready()
        assert ready(local) == ["chat-0", "chat-1", "chat-2"]
        first = {state.name: state.birth for state in local.states}
        local.scale(2, ["chat-1"])
        await wait_for(local, lambda states: [state.name for state in states] == ["chat-0", "chat-2"])
        assert len(processes.marked(mark)) == 4
        local.scale(9)
        await local.wait_ready()
        births = {state.name: state.birth for state in local.states}
        assert births["chat-1"] > max(first.values()), "another one, and told apart from the one that went"
        assert births["chat-0"] == first["chat-0"] and len(births) == 3
        local.scale(0)
        await wait_for(local, lambda states: states == ())
        assert processes.marked(mark) == {}


async def test_more_are_wanted_again_before_those_that_end_are_gone(mark: dict[str, str]) -> None:
    async with Supervisor("chat", [launch(mark)] * 2) as local:
        await local.wait_ready()
        local.scale(1, ["chat-0"])
        local.scale(2)
        await wait_for(local, lambda states: [state.birth for state in states if state.ready] == [3, 2])


@contextlib.asynccontextmanager
async def autoscaled(local: Supervisor, wish: Wish, told: list[Scaling], **more: Any) -> AsyncIterator[None]:
    deployment = parse(llm_deployment("chat", autoscaling={"maxReplicas": 3} | more))
    decisions = Decisions(wish)
    fleet = LocalFleet(deployment, local, decisions, told=told.append)
    async with Scraper() as scraper:
        loop = Autoscaler(decisions, fleet, scraper, AutoscalingMetrics(CollectorRegistry()))
        task = asyncio.create_task(loop.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("least", ["chat-0", "chat-1"])
async def test_a_fleet_grows_and_ends_the_least_loaded_first(mark: dict[str, str], least: str) -> None:
    wish, told = Wish(), list[Scaling]()
    async with Supervisor("chat", [launch(mark)] * 3, count=1) as local, autoscaled(local, wish, told):
        await local.wait_ready()
        wish.replicas = 3
        await wait_for(local, lambda states: len(states) == 3 and all(state.ready for state in states))
        async with httpx.AsyncClient(trust_env=False) as client:
            for state in local.states:
                await client.post(f"{state.url}/used/{10 if state.name == least else 900}")

        def heard() -> bool:
            samples = [each.sample for each in wish.fleets[-1].ready]
            return sorted(each.kv_tokens_used for each in samples if each is not None) == [10, 900, 900]

        await wait_for(local, lambda _: heard())
        assert all(each.startup is not None for each in wish.fleets[-1].ready)
        wish.replicas = 2
        await wait_for(local, lambda states: len(states) == 2)
        assert least not in {state.name for state in local.states}
        assert told[-1].told["reason"] == "the work is for 2" and told[-1].active.reason == "Deciding"


async def test_a_fleet_comes_from_zero_and_goes_there(mark: dict[str, str]) -> None:
    wish = Wish()
    zero = {"minReplicas": 0, "scaleToZero": {}}
    async with Supervisor("chat", [launch(mark)] * 2, count=0) as local, autoscaled(local, wish, [], **zero):
        wish.replicas = 1
        await wait_for(local, lambda states: len(states) == 1 and states[0].ready)
        wish.replicas = 0
        await wait_for(local, lambda states: states == ())
    assert processes.marked(mark) == {}
