"""The account that `octavo up --burst` gives, against a fleet that does what it is told to."""

import asyncio
import itertools
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from aiohttp import web

from octavo_cli import local_burst
from octavo_cli.errors import CommandError
from octavo_cli.local_burst import burst
from octavo_cli.local_door import door_of
from octavo_gateway.listening import bind, listen_on
from octavo_operator.api import LLMDeployment, parse
from octavo_operator.local.plan import plan_locally
from octavo_operator.local.replica import ReplicaState
from octavo_server.config import ServerConfig


def manifest(**autoscaling: Any) -> LLMDeployment:
    spec: dict[str, Any] = {"model": {"source": {"builtin": {"name": "demo"}}}}
    spec |= {"autoscaling": autoscaling} if autoscaling else {}
    return parse(
        {"apiVersion": "octavo.dev/v1alpha1", "kind": "LLMDeployment", "metadata": {"name": "m"}, "spec": spec}
    )


@dataclass
class ToldFleet:
    """What `burst` asks of a fleet. `answer`: the text to the nth request, with this body; None: an error."""

    url: str
    answer: Callable[[int, dict[str, Any]], str | None]
    replicas: tuple[ReplicaState, ...] = ()
    deployment: LLMDeployment = field(default_factory=manifest)
    resumed: int = 0
    turns: Iterator[int] = field(default_factory=itertools.count)

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/metrics":
            return web.Response(text=f'octavo:gateway_resumed_total{{model="m"}} {self.resumed}\n')
        text = self.answer(next(self.turns), await request.json() if request.can_read_body else {})
        await asyncio.sleep(0.01)
        if text is None:
            return web.Response(status=503, text=json.dumps({"error": {"message": "no replica"}}))
        event = {"choices": [{"delta": {"content": text}, "finish_reason": "length"}]}
        return web.Response(text=f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n", content_type="text/event-stream")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BURST_SECONDS", "KILL_AFTER_SECONDS", "AFTER_THE_KILL_SECONDS", "QUIET_PAUSE_SECONDS"):
        monkeypatch.setattr(local_burst, name, 0.1)


@pytest.fixture
async def fleet() -> AsyncIterator[ToldFleet]:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        return await told(request)

    told = ToldFleet("", lambda turn, body: "ever the same")
    runner = await listen_on(bind("127.0.0.1", 0, ""), answer)
    told.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield told
    finally:
        await runner.cleanup()


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) as process:
        yield process
        process.kill()


async def rehearse(fleet: ToldFleet, said: list[str] | None = None) -> local_burst.Account:
    async with httpx.AsyncClient(trust_env=False) as client:
        return await burst(fleet, client, 4, [].append if said is None else said.append)  # type: ignore[arg-type]


@pytest.mark.usefixtures("quick")
async def test_the_account_counts_requests_and_streams_that_went_on(fleet: ToldFleet) -> None:
    fleet.resumed = 3
    account = await rehearse(fleet)
    assert (account.resumed, account.differing, account.failures, account.open) == (3, 0, [], 0)
    assert account.requests == next(fleet.turns)
    assert account.requests > 5


@pytest.mark.usefixtures("quick")
async def test_a_request_that_fails_is_a_failure_of_the_command(fleet: ToldFleet) -> None:
    fleet.answer = lambda turn, body: None if turn == 3 else "fine"
    with pytest.raises(CommandError, match=r"^1 of \d+ requests failed: no replica \(HTTP 503\)$"):
        await rehearse(fleet)


@pytest.mark.usefixtures("quick")
async def test_greedy_answers_to_one_prompt_that_differ_are_told(fleet: ToldFleet) -> None:
    fleet.answer = lambda turn, body: body["messages"][0]["content"] + (" but" if turn == 7 else "")
    assert (await rehearse(fleet)).differing == 1


@pytest.mark.usefixtures("quick")
async def test_a_replica_that_is_ready_is_killed_in_the_burst(
    fleet: ToldFleet, sleeper: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(local_burst, "QUIET_SECONDS", 0.0)
    fleet.replicas = (ReplicaState("m-0", "Starting"), ReplicaState("m-1", "Ready", pid=sleeper.pid))
    assert (await rehearse(fleet, said)).killed == "m-1"
    assert sleeper.wait(30) == -9
    assert "SIGKILL to m-1, with 4 streams open" in said


@pytest.mark.usefixtures("quick")
async def test_a_fleet_that_stays_large_is_told_of(fleet: ToldFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_burst, "QUIET_SECONDS", 0.3)
    fleet.deployment = manifest(minReplicas=0, maxReplicas=2, scaleToZero={})
    fleet.replicas = (ReplicaState("m-0", "Starting"), ReplicaState("m-1", "Starting"))
    assert not (await rehearse(fleet)).is_small
    fleet.replicas = fleet.replicas[:1]
    assert (await rehearse(fleet)).is_small


def test_the_gateways_door_is_that_of_the_replicas() -> None:
    plan = plan_locally(manifest(), {"OCTAVO_API_KEY": "exported"}, [])
    config = ServerConfig(model="demo", api_key=("flag",), max_tokens_per_minute=9)
    door = door_of(config, plan, 8000)
    assert (door.keys, door.arguments, door.port) == (("flag", "exported"), ("--max-tokens-per-minute", "9"), 8000)
    assert not door_of(ServerConfig(model="demo"), plan_locally(manifest(), {}, []), 0).is_closed
