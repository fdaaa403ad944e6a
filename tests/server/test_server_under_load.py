"""Clients that do not read, clients that ask without end, and none at all."""

import contextlib
import itertools
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

import octavo_server
import serving
from octavo_server.frontend.start_watch import activity_of

DEMO = Path(octavo_server.__file__).parent / "demo_model"
HANG_SECONDS = 10.0  # of silence, after which the server is told to take its engine for one that hangs
SATURATED_SECONDS = 2.5 * HANG_SECONDS
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # saturated all the same, and the other tests have a core
# After some seconds of work without a pause steps take as long, but mostly wait, as one does that waits for a GPU.
WAITING = """
import itertools, time
from octavo_server.worker.model_runner import ModelRunner
launch, steps = ModelRunner.launch, itertools.count()
def launch_slowly(*arguments):
    if next(steps) > 250:
        time.sleep(0.03)
    return launch(*arguments)
ModelRunner.launch = launch_slowly
"""


@dataclass
class Saturated:
    """What was seen of a server that always had more to do than it could."""

    refused_probes: list[str] = field(default_factory=list)
    busy: list[bool] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    engines: list[int] = field(default_factory=list)
    log: str = ""


@pytest.fixture(scope="module", autouse=True)
def saturated() -> Iterator[Future[Saturated]]:
    """More than twice as long as an engine may be silent, beside the other tests of this file."""
    over = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        try:
            yield pool.submit(saturate, over)
        finally:
            over.set()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return serving.text_model(tmp_path_factory.mktemp("load") / "model")


def request_bytes(**fields: Any) -> bytes:
    body = json.dumps({"model": "tiny", "ignore_eos": True, **fields}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


@contextlib.contextmanager
def deaf_client(server: serving.ServerProcess, **fields: Any) -> Iterator[socket.socket]:
    """A connection that has asked for something and reads nothing of the answer. What the kernel keeps is little."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(serving.PATIENCE_SECONDS)
        connection.connect(("127.0.0.1", urlsplit(server.url).port))
        connection.sendall(request_bytes(**fields))
        yield connection


def open_requests(server: serving.ServerProcess) -> float:
    return server.metric("vllm:num_requests_running") + server.metric("vllm:num_requests_waiting")


# --- slow readers


def test_a_client_that_does_not_read_slows_nobody_and_finds_its_whole_answer(model: Path) -> None:
    tokens = 40_000  # an event each would be 7 MB, more than a kernel keeps for a connection
    with serving.serve(model, env={"FAKE_STEP_SECONDS": "0"}, max_model_len=100_000) as server:
        server.wait_until_ready()
        asked = {
            "prompt": "deaf ears ",
            "max_tokens": tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        with deaf_client(server, **asked) as deaf, httpx.Client(base_url=server.url, timeout=60) as http:
            serving.until(lambda: server.metric("vllm:generation_tokens_total") > 0)

            def ask(index: int) -> list[str]:
                body = {"model": "tiny", "prompt": f"number {index}", "max_tokens": 100, "stream": True}
                lines = http.post("/v1/completions", json=body).text.split("\n\n")
                return [json.loads(line[6:])["choices"][0]["text"] for line in lines if line and "[DONE]" not in line]

            with ThreadPoolExecutor(20) as pool:
                for index, pieces in enumerate(pool.map(ask, range(20))):
                    assert "".join(pieces) == f"number {index}"
            # The engine gets on with the deaf one's answer too, and is through with it before anything is read.
            serving.until(lambda: server.metric("vllm:request_success_total", finished_reason="length") == 1)
            answer = HTTPResponse(deaf)
            answer.begin()
            *parts, usage, done, _ = answer.read().decode().split("\n\n")
        events = [json.loads(part.removeprefix("data: ")) for part in parts]
        texts = [event["choices"][0]["text"] for event in events]
        assert done == "data: [DONE]"
        assert json.loads(usage.removeprefix("data: "))["usage"]["completion_tokens"] == tokens
        whole = httpx.post(
            f"{server.url}/v1/completions",
            json={"model": "tiny", "ignore_eos": True, "prompt": "deaf ears ", "max_tokens": tokens},
            timeout=60,
        )
        assert "".join(texts) == whole.json()["choices"][0]["text"]
        assert max(map(len, texts)) > 1000  # what it missed came in one piece
        assert events[-1]["choices"][0]["finish_reason"] == "length"


def test_clients_that_do_not_read_do_not_hold_up_the_end(model: Path) -> None:
    with serving.serve(model, env={"FAKE_STEP_SECONDS": "0"}, max_model_len=10**6, drain_seconds=1) as server:
        server.wait_until_ready()
        engine = server.engine_pid()
        with deaf_client(server, prompt="a", max_tokens=900_000, stream=True, n=3):
            serving.until(lambda: server.metric("vllm:num_requests_running") == 3)
            server.process.terminate()
            assert server.process.wait(serving.PATIENCE_SECONDS) == 0
        assert not serving.is_alive(engine)


def test_sigterm_lets_all_choices_and_those_that_wait_finish(model: Path) -> None:
    body = {"model": "tiny", "prompt": "hello world", "ignore_eos": True, "max_tokens": 60}
    with (
        serving.serve(model, env={"FAKE_STEP_SECONDS": "0.01"}, max_num_seqs=2, drain_seconds=10_000) as server,
        httpx.Client(base_url=server.url, timeout=60) as http,
        ThreadPoolExecutor(3) as pool,
    ):
        server.wait_until_ready()
        whole = [pool.submit(http.post, "/v1/completions", json=body | {"n": 3}) for _ in range(2)]
        stream = pool.submit(http.post, "/v1/completions", json=body | {"n": 2, "stream": True})
        serving.until(lambda: open_requests(server) == 8)
        server.process.terminate()
        for answer in whole:
            assert [choice["finish_reason"] for choice in answer.result().json()["choices"]] == ["length"] * 3
        lines = [line.removeprefix("data: ") for line in stream.result().text.split("\n\n") if line]
        assert lines[-1] == "[DONE]"
        ends = [json.loads(line)["choices"][0]["finish_reason"] for line in lines[:-1]]
        assert ends.count("length") == 2
        assert server.process.wait(serving.PATIENCE_SECONDS) == 0


# --- always busy, and never


def saturate(over: threading.Event) -> Saturated:
    """Forty clients, more than are taken, for that long or until it is over."""
    sizes = {"max_num_seqs": 16, "max_queued_requests": 16, "max_model_len": 512}
    found, env = Saturated(), ONE_THREAD | {"HANG_SECONDS": str(HANG_SECONDS)}
    with (
        serving.serve(DEMO, fake=False, env=env, prelude=WAITING, **sizes) as server,
        httpx.Client(base_url=server.url, timeout=300) as http,
    ):
        server.wait_until_ready()
        found.engines.append(server.engine_pid())

        def ask(index: int) -> None:
            for number in itertools.count():
                if over.is_set():
                    return
                body = {"model": "tiny", "prompt": f"{index} {number} " * 8, "max_tokens": 32, "n": 1 + index % 2}
                answer = http.post("/v1/completions", json=body | {"ignore_eos": True})
                found.statuses.append(answer.status_code)
                over.wait(float(answer.headers.get("retry-after", 0)))

        with ThreadPoolExecutor(40) as pool:
            asked = [pool.submit(ask, index) for index in range(40)]
            try:
                serving.until(lambda: open_requests(server) > 0)
                started = time.monotonic()
                while time.monotonic() - started < SATURATED_SECONDS and not over.is_set():
                    probed = {path: http.get(path).status_code for path in ("/health", "/ready")}
                    found.refused_probes += [f"{path}: {code}" for path, code in probed.items() if code != 200]
                    found.busy.append(open_requests(server) > 0)
                    time.sleep(0.5)
            finally:
                over.set()
            for one in asked:
                one.result()
        found.engines.append(server.engine_pid())
        found.log = server.log
    return found


def test_who_has_nothing_to_do_does_nothing() -> None:
    with serving.serve(DEMO, fake=False, max_model_len=512) as server:
        server.wait_until_ready()
        body = {"model": "tiny", "prompt": "hello", "max_tokens": 20}
        assert httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).status_code == 200
        serving.until(lambda: open_requests(server) == 0)
        processes = [server.process.pid, server.engine_pid()]
        before = [activity_of(pid) for pid in processes]
        time.sleep(2.0)
        after = [activity_of(pid) for pid in processes]
        for then, now in zip(before, after, strict=True):
            assert then is not None and now is not None
            assert now.cpu_seconds - then.cpu_seconds < 0.3


def test_saturation_for_longer_than_an_engine_may_be_silent_causes_no_restart(saturated: Future[Saturated]) -> None:
    found = saturated.result()
    assert found.refused_probes == []
    assert found.busy.count(True) > 0.9 * len(found.busy)
    assert set(found.statuses) == {200, 429}
    assert found.statuses.count(200) > 20
    assert found.engines[0] == found.engines[1]
    assert "starting it again" not in found.log
