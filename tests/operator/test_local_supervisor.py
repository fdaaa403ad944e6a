"""The local supervisor against a replica that can be made to fail in each way that matters."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

import fake_replica
import processes
from octavo_operator.local.replica import Launch, ReplicaState, describe_exit
from octavo_operator.local.supervisor import ReplicaFailedError, Supervisor

FAKE = str(Path(fake_replica.__file__).resolve())


def launch(mark: dict[str, str], fault: str = "none") -> Launch:
    return Launch(
        command=lambda port: [sys.executable, "-S", FAKE, fault, "--port", str(port)],
        environment={**os.environ, **mark},
        poll_seconds=0.02,
        first_delay=0.02,
        grace_seconds=20.0,
    )


async def wait_for(supervisor: Supervisor, holds: Callable[[tuple[ReplicaState, ...]], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds(supervisor.states):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_replicas_become_ready_after_telling_their_phases(mark: dict[str, str]) -> None:
    seen: list[str] = []
    async with Supervisor("chat", [launch(mark)] * 2, lambda states: seen.extend(s.message for s in states)) as local:
        await local.wait_ready()
        states = local.states
        assert [state.name for state in states] == ["chat-0", "chat-1"]
        assert len({state.url for state in states}) == 2
        assert len(processes.marked(mark)) == 4  # two leaders, two engines
    assert {"phase 1", "phase 2"} <= set(seen)
    assert [state.phase for state in local.states] == ["Stopped", "Stopped"]
    assert processes.marked(mark) == {}, "leaving the context must have waited for the last process"


async def test_a_dead_replica_comes_back_at_the_same_address(mark: dict[str, str]) -> None:
    async with Supervisor("chat", [launch(mark)]) as local:
        await local.wait_ready()
        url = local.states[0].url
        async with httpx.AsyncClient(trust_env=False) as client:
            await client.post(f"{url}/die")
        await wait_for(local, lambda states: states[0].restarts == 1 and states[0].ready)
        assert local.states[0].url == url
        assert local.states[0].last_exit == "exited with code 7"
        assert len(processes.marked(mark)) == 2, "the engine of the first life must be gone"


async def test_a_replica_killed_by_the_kernel_is_described_and_restarted(mark: dict[str, str]) -> None:
    async with Supervisor("chat", [launch(mark)]) as local:
        await local.wait_ready()
        pid = local.states[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await wait_for(local, lambda states: states[0].restarts == 1 and states[0].ready)
        assert "SIGKILL (out of memory?)" in str(local.states[0].last_exit)


async def test_a_replica_that_cannot_start_is_reported_with_its_own_last_words(mark: dict[str, str]) -> None:
    with pytest.raises(ReplicaFailedError, match=r"^chat-0 exited with code 3: --max-model-len 9999999 is more"):
        async with Supervisor("chat", [launch(mark, "crash")]) as local:
            await local.wait_ready()


async def test_crashes_are_retried_with_growing_delays(mark: dict[str, str]) -> None:
    delays: list[str] = []

    def collect(states: Sequence[ReplicaState]) -> None:
        if states[0].phase == "Backoff":
            delays.append(states[0].message.rpartition(" in ")[2])

    slow = replace(launch(mark, "crash"), longest_delay=0.06)
    async with Supervisor("chat", [slow], collect) as local:
        await wait_for(local, lambda states: states[0].restarts == 4)
    assert delays[:4] == ["0.02 s", "0.04 s", "0.06 s", "0.06 s"]


async def test_a_replica_that_is_never_ready_is_given_up(mark: dict[str, str]) -> None:
    with pytest.raises(ReplicaFailedError, match="was not ready within"):
        async with Supervisor("chat", [replace(launch(mark, "deaf"), startup_seconds=0.5)]) as local:
            await local.wait_ready()


async def test_a_ready_replica_that_says_no_is_not_ready_and_not_restarted(mark: dict[str, str]) -> None:
    async with Supervisor("chat", [launch(mark)]) as local:
        await local.wait_ready()
        async with httpx.AsyncClient(trust_env=False) as client:
            await client.post(f"{local.states[0].url}/unready")
        await wait_for(local, lambda states: states[0].phase == "NotReady")
        assert local.states[0].restarts == 0


async def test_a_replica_that_ignores_sigterm_is_killed_after_the_grace_period(mark: dict[str, str]) -> None:
    async with Supervisor("chat", [replace(launch(mark, "stubborn"), grace_seconds=0.2)]) as local:
        await local.wait_ready()
    assert "SIGKILL" in str(local.states[0].last_exit)


async def test_who_cannot_wait_for_the_drain_still_waits_for_the_last_process(mark: dict[str, str]) -> None:
    """As a second Ctrl-C does: killed, not abandoned."""
    stubborn = replace(launch(mark, "stubborn"), grace_seconds=3600.0)
    local = Supervisor("chat", [stubborn])

    async def come_and_go() -> None:
        async with local:
            await local.wait_ready()

    task = asyncio.create_task(come_and_go())
    await wait_for(local, lambda states: bool(states) and states[0].phase == "Draining")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert processes.marked(mark) == {}


async def test_who_only_stops_waiting_leaves_the_replicas_time_to_drain(mark: dict[str, str]) -> None:
    async with Supervisor("chat", [launch(mark)] * 2) as local:
        await local.wait_ready()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(local.run(), 0.05)
    assert [state.last_exit for state in local.states] == ["exited with code 0"] * 2


async def test_a_kill_during_the_drain_ends_it(mark: dict[str, str]) -> None:
    async with Supervisor("chat", [replace(launch(mark, "stubborn"), grace_seconds=3600.0)]) as local:
        await local.wait_ready()
        asyncio.get_running_loop().call_later(0.1, local.kill)
    assert processes.marked(mark) == {}


async def test_output_of_any_length_neither_blocks_nor_ends_a_replica(mark: dict[str, str]) -> None:
    async with Supervisor("chat", [launch(mark, "chatty")]) as local:
        await local.wait_ready()


async def test_a_taken_port_is_replaced_by_a_free_one(mark: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with Supervisor("chat", [replace(launch(mark), port=port)]) as local:
            await local.wait_ready()
            assert local.states[0].url != f"http://127.0.0.1:{port}"
            assert local.states[0].restarts == 0


async def test_a_free_port_is_used_as_wished_and_by_one_replica_only(mark: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    async with Supervisor("chat", [replace(launch(mark), port=port)] * 2) as local:
        await local.wait_ready()
        urls = [str(state.url) for state in local.states]
        assert [state.restarts for state in local.states] == [0, 0]
    assert urls.count(f"http://127.0.0.1:{port}") == 1


async def test_a_port_lost_between_look_and_bind_is_no_failure(
    mark: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([True, False, False])  # free when we looked; taken when the replica bound it, and since
    monkeypatch.setattr("octavo_operator.local.replica.is_free", lambda host, port: next(answers))
    async with Supervisor("chat", [replace(launch(mark, "port-thief"), port=45_678)]) as local:
        await local.wait_ready()
        assert local.states[0].restarts == 0


async def test_a_program_that_is_not_there_is_a_failure_that_names_it(mark: dict[str, str]) -> None:
    with pytest.raises(ReplicaFailedError, match="No such file"):
        async with Supervisor("chat", [replace(launch(mark), command=lambda port: ["/nowhere/octavo"])]) as local:
            await local.wait_ready()


@pytest.mark.parametrize("moment", ["starting", "ready"])
def test_sigkill_of_the_parent_leaves_no_replica(moment: str, mark: dict[str, str], tmp_path: Path) -> None:
    """The engine of the fake ignores everything, so only the leader is looked for: engines guard themselves."""
    program = textwrap.dedent(f"""
        import asyncio, os, sys
        from octavo_operator.local.replica import Launch
        from octavo_operator.local.supervisor import Supervisor

        def tell(states):
            print(states[0].phase, states[0].url, flush=True)

        async def main():
            fault = "deaf" if {moment!r} == "starting" else "none"
            launch = Launch(lambda port: [sys.executable, "-S", {FAKE!r}, fault, "--port", "0"], dict(os.environ))
            async with Supervisor("chat", [launch], tell) as local:
                await local.wait_ready()
                await local.run()

        asyncio.run(main())
    """)
    parent = subprocess.Popen(
        [sys.executable, "-c", program], env={**os.environ, **mark}, stdout=subprocess.PIPE, text=True, cwd=tmp_path
    )
    assert parent.stdout is not None
    for line in parent.stdout:
        if (moment == "ready" and line.startswith("Ready")) or (moment == "starting" and "http" in line):
            break
    (leader,) = (pid for pid, command in processes.marked(mark).items() if pid != parent.pid and FAKE in command)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    while leader in processes.marked(mark):
        time.sleep(0.01)
    for pid in processes.marked(mark):
        os.kill(pid, signal.SIGKILL)


def test_exits_are_told_in_words() -> None:
    assert describe_exit(0) == "exited with code 0"
    assert describe_exit(-15) == "was killed by SIGTERM"
    assert describe_exit(-1000) == "was killed by signal 1000"


async def test_more_are_started_in_free_places_and_no_more_than_there_are(mark: dict[str, str]) -> None:
    async with Supervisor("chat", [launch(mark)] * 3, count=1) as local:
        await local.wait_ready()
        assert [state.name for state in local.states] == ["chat-0"]
        local.scale(7)
        await wait_for(local, lambda states: len(states) == 3 and all(state.ready for state in states))
        assert len(processes.marked(mark)) == 6
    assert processes.marked(mark) == {}


async def test_the_victims_go_first_after_those_that_are_not_ready(mark: dict[str, str]) -> None:
    async with Supervisor("chat", [launch(mark)] * 4) as local:
        await local.wait_ready()
        async with httpx.AsyncClient(trust_env=False) as client:
            await client.post(f"{local.states[2].url}/unready")
        await wait_for(local, lambda states: states[2].phase == "NotReady")
        local.scale(2, ["chat-1", "chat-0"])
        await wait_for(local, lambda states: len(states) == 2)
        assert [state.name for state in local.states] == ["chat-0", "chat-3"]
        local.scale(1)
        await wait_for(local, lambda states: len(states) == 1)
        assert local.states[0].name == "chat-0", "without victims the last place goes"


async def test_a_place_is_taken_again_only_when_its_last_process_has_gone(mark: dict[str, str]) -> None:
    stubborn = replace(launch(mark, "stubborn"), grace_seconds=0.5)
    async with Supervisor("chat", [stubborn]) as local:
        await local.wait_ready()
        first = local.states[0].pid
        local.scale(0)
        await wait_for(local, lambda states: states[0].phase == "Draining")
        local.scale(1)
        await asyncio.sleep(0)
        assert [(state.phase, state.pid) for state in local.states] == [("Draining", first)]
        await wait_for(local, lambda states: bool(states) and states[0].ready)
        assert local.states[0].pid != first
        assert len(processes.marked(mark)) == 2


async def test_each_life_has_an_id_of_its_own_and_tells_how_long_it_took_to_start(mark: dict[str, str]) -> None:
    async with Supervisor("chat", [launch(mark)]) as local:
        await local.wait_ready()
        (before,) = local.states
        assert (before.id, before.startup is not None and before.startup > 0) == ("chat-0", True)
        assert before.pid is not None
        os.kill(before.pid, signal.SIGKILL)
        await wait_for(local, lambda states: states[0].restarts == 1 and states[0].ready)
        assert local.states[0].id == "chat-0.1"
        assert local.states[0].since > before.since
