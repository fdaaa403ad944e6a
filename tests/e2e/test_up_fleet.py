"""`octavo up` with an autoscaler, the gateway and the demo model, all of it real: waking, a death, one stream."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import yaml

import processes
from octavo_cli.chat_client import stream_chat
from octavo_operator.api import parse
from octavo_operator.local.fleet import LocalFleet
from octavo_operator.local.gateway import Door
from octavo_operator.local.plan import plan_locally

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "fleet.yaml"
GREEDY = {"temperature": 0, "max_tokens": 100, "min_tokens": 100}
PATIENCE_SECONDS = 120.0  # a bound for a machine under load, not an expectation


async def pieces(fleet: LocalFleet, client: httpx.AsyncClient) -> AsyncIterator[str]:
    prompt = "Write a story about a lighthouse."
    async for piece in stream_chat(client, f"{fleet.url}/v1", "demo", prompt, **GREEDY):
        yield piece.text


async def test_a_held_request_wakes_a_replica_and_its_stream_survives_that_replicas_death(
    mark: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in mark.items():
        monkeypatch.setenv(name, value)
    document = yaml.safe_load(EXAMPLE.read_text())
    plan = plan_locally(parse(document), dict(os.environ), [])
    async with asyncio.timeout(PATIENCE_SECONDS), httpx.AsyncClient(trust_env=False) as client:
        async with LocalFleet(plan, Door()) as fleet:
            await fleet.wait_ready()
            assert fleet.replicas == ()
            text, killed = "", None
            async for piece in pieces(fleet, client):
                text += piece
                if killed is None and len(text) > 40:
                    (replica,) = fleet.replicas
                    killed = replica.pid
                    assert killed is not None
                    os.kill(killed, signal.SIGKILL)
            (replica,) = fleet.replicas
            assert (replica.restarts, replica.pid != killed) == (1, True)
            assert fleet.history == [0, 1]
            undisturbed = "".join([piece async for piece in pieces(fleet, client)])
            metrics = (await client.get(f"{fleet.url}/metrics")).text
        assert processes.marked(mark) == {}
    assert text == undisturbed
    assert 'octavo:gateway_resumed_total{model="demo"} 1.0' in metrics
