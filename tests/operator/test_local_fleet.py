"""A fleet on this machine: what the autoscaler decides is done to processes. The processes are stand-ins."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fake_replica
import processes
from octavo_operator.api import parse
from octavo_operator.autoscale.decide import Decision
from octavo_operator.autoscale.observation import Fleet
from octavo_operator.autoscale.settings import Settings
from octavo_operator.autoscale.state import State
from octavo_operator.local import fleet as module
from octavo_operator.local.fleet import Listener, LocalFleet
from octavo_operator.local.gateway import Door
from octavo_operator.local.plan import LocalPlan, plan_locally
from octavo_operator.local.replica import Launch

FAKE = str(Path(fake_replica.__file__).resolve())
AUTOSCALING = {"minReplicas": 0, "maxReplicas": 3, "scaleToZero": {}}


@pytest.fixture
def metrics(tmp_path: Path, mark: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Path]]:
    """Stand-ins for `octavo serve` and `octavo gateway`, whose /metrics are these files; empty at first."""
    files = {role: tmp_path / f"{role}.txt" for role in ("replica", "gateway")}
    for file in files.values():
        file.touch()

    def launch(role: str) -> Launch:
        return Launch(
            command=lambda port: [
                sys.executable,
                "-S",
                FAKE,
                "none",
                "--port",
                str(port),
                "--metrics",
                str(files[role]),
            ],
            environment={**os.environ, **mark},
            poll_seconds=0.02,
            first_delay=0.02,
            grace_seconds=20.0,
        )

    monkeypatch.setattr(LocalPlan, "launches", lambda plan, *_: [launch("replica")] * plan.places)
    monkeypatch.setattr(module, "gateway_launch", lambda *_: launch("gateway"))
    yield files
    assert processes.wait_gone(mark) == {}


def planned(autoscaling: dict[str, Any] | None = None, replicas: int = 1) -> LocalPlan:
    scale: dict[str, Any] = {"replicas": replicas} if autoscaling is None else {"autoscaling": autoscaling}
    spec = {"model": {"name": "m", "source": {"builtin": {"name": "demo"}}}, **scale}
    document = {
        "apiVersion": "octavo.dev/v1alpha1",
        "kind": "LLMDeployment",
        "metadata": {"name": "chat"},
        "spec": spec,
    }
    return plan_locally(parse(document), dict(os.environ), [])


class Script:
    """A decider that says what it is told to, ten times a second, and notes what it saw."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.replicas = 0
        self.victims: tuple[str, ...] = ()
        self.seen: list[Fleet] = []
        monkeypatch.setattr(module, "decide", self)

    def __call__(self, fleet: Fleet, settings: Settings, state: State, now: float) -> Decision:
        self.seen.append(fleet)
        text = f"{self.replicas} are enough"
        return Decision(self.replicas, "Script", text, state, victims=self.victims, next_in=0.1)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def ready(fleet: LocalFleet) -> list[str]:
    return [state.name for state in fleet.replicas if state.ready]


def told_to_the_gateway(fleet: LocalFleet) -> list[tuple[str, bool, bool]]:
    (replicas,) = json.loads(fleet._files.endpoints.read_text())["models"].values()
    return [(each["id"], each["ready"], each["draining"]) for each in replicas]


async def test_what_is_decided_is_done_victims_first_and_told(
    metrics: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    script, decided = Script(monkeypatch), list[tuple[int, int | None]]()
    listener = Listener(decided=lambda decision, before: decided.append((before, decision.replicas)))
    async with LocalFleet(planned(AUTOSCALING), Door(), listener) as fleet:
        await fleet.wait_ready()
        assert (fleet.replicas, told_to_the_gateway(fleet)) == ((), [])
        script.replicas = 3
        await until(lambda: len(ready(fleet)) == 3)
        assert [each[:2] for each in told_to_the_gateway(fleet)] == [(f"chat-{place}", True) for place in range(3)]
        assert fleet.status["autoscaling"]["reason"] == "3 are enough"
        script.victims, script.replicas = ("chat-1", "chat-0"), 1
        await until(lambda: ready(fleet) == ["chat-2"] and len(fleet.replicas) == 1)
        assert told_to_the_gateway(fleet) == [("chat-2", True, False)]
        assert (fleet.status["desiredReplicas"], fleet.status["readyReplicas"]) == (1, 1)
        assert fleet.history == [0, 3, 1]
    assert [each for each in decided if each[0] != each[1]] == [(0, 3), (3, 1)]


async def test_the_gateway_hears_of_a_drain_before_the_replica_does(
    metrics: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would send requests to a replica that takes none any more."""
    script, heard = Script(monkeypatch), list[list[tuple[str, bool, bool]]]()
    script.replicas = 1
    async with LocalFleet(planned(AUTOSCALING), Door()) as fleet:
        await until(lambda: ready(fleet) == ["chat-0"])
        terminate = subprocess.Popen.terminate

        def noting(process: "subprocess.Popen[bytes]") -> None:
            heard.append(told_to_the_gateway(fleet))
            terminate(process)

        monkeypatch.setattr(subprocess.Popen, "terminate", noting)
        script.replicas = 0
        await until(lambda: not fleet.replicas)
    assert heard[0] == [("chat-0", False, True)]


async def test_a_killed_replica_is_replaced_and_known_as_another(
    metrics: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script(monkeypatch)
    script.replicas = 2
    async with LocalFleet(planned(AUTOSCALING), Door()) as fleet:
        await until(lambda: len(ready(fleet)) == 2)
        victim = fleet.replicas[0].pid
        assert victim is not None
        os.kill(victim, signal.SIGKILL)
        await until(lambda: ready(fleet) == ["chat-1"])
        assert [each[0] for each in told_to_the_gateway(fleet) if each[1]] == ["chat-1"]
        await until(lambda: len(ready(fleet)) == 2)
        assert [each[0] for each in told_to_the_gateway(fleet)] == ["chat-0.1", "chat-1"]
        assert fleet.history == [0, 2], "nobody decided anything"


async def test_a_request_that_the_gateway_holds_wakes_the_first_replica(metrics: dict[str, Path]) -> None:
    """By the decider of the cluster, as the manifest sets it."""
    reasons: list[str] = []
    listener = Listener(decided=lambda decision, before: reasons.append(decision.reason))
    metrics["gateway"].write_text('octavo:gateway_held_requests{model="other"} 1.0\n')
    async with LocalFleet(planned(AUTOSCALING), Door(), listener) as fleet:
        await fleet.wait_ready()
        await until(lambda: len(reasons) >= 2)
        assert fleet.replicas == (), "a request for another model is not for us"
        held = 'octavo:gateway_held_requests{model="m"} 1.0\noctavo:gateway_arrivals_total{model="m"} 1.0\n'
        metrics["gateway"].write_text(held)
        await until(lambda: ready(fleet) == ["chat-0"])
    assert fleet.history == [0, 1]
    assert reasons[-1] == "WakeFromZero"


async def test_replicas_by_number_are_behind_the_gateway_too_and_nothing_is_decided(
    metrics: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script(monkeypatch)
    async with LocalFleet(planned(replicas=2), Door()) as fleet:
        await fleet.wait_ready()
        assert [each[0] for each in told_to_the_gateway(fleet)] == ["chat-0", "chat-1"]
        assert fleet.status["url"] == f"{fleet.gateway.url}/v1"
    assert (script.seen, fleet.history) == ([], [2])


async def test_a_gateway_that_dies_comes_back_at_its_address(metrics: dict[str, Path]) -> None:
    async with LocalFleet(planned(), Door()) as fleet:
        await fleet.wait_ready()
        url, pid = fleet.url, fleet.gateway.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(lambda: fleet.gateway.restarts == 1 and fleet.gateway.ready)
        assert fleet.url == url


async def test_the_gateway_drains_before_its_replicas_do(metrics: dict[str, Path]) -> None:
    order: list[str] = []
    fleet = LocalFleet(planned(), Door())

    def note() -> None:
        order.extend(each.name for each in fleet.processes if each.phase == "Stopped" and each.name not in order)

    fleet._listener = replace(fleet._listener, changed=note)
    async with fleet:
        await fleet.wait_ready()
    assert order == ["gateway-0", "chat-0"]
    assert not fleet._files.endpoints.parent.exists(), "its key must not be left behind"
