"""The life of the server's processes: start, death of the engine, disconnects, drain, keys. None is left behind."""

import contextlib
import json
import os
import signal
import socket
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

import serving
from octavo_server.frontend.supervisor import RESTARTS

ENDLESS: dict[str, Any] = {
    "model": "tiny",
    "prompt": "hello world",
    "max_tokens": 500_000,
    "ignore_eos": True,
    "stream": True,
}
SLOW = {"FAKE_STEP_SECONDS": "0.01"}
LONG = 1_000_000  # tokens of context: whoever waits for the end of an endless answer waits in vain


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return serving.text_model(tmp_path_factory.mktemp("process") / "model")


@pytest.fixture
def slow(model: Path) -> Iterator[serving.ServerProcess]:
    with serving.serve(model, env=SLOW, max_model_len=LONG) as server:
        server.wait_until_ready()
        yield server


@contextlib.contextmanager
def open_stream(server: serving.ServerProcess, **fields: Any) -> Iterator[Iterator[str]]:
    """The lines of a stream, of which the first event has arrived."""
    with (
        httpx.Client(timeout=serving.PATIENCE_SECONDS) as client,
        client.stream("POST", f"{server.url}/v1/completions", json=ENDLESS | fields) as answer,
    ):
        assert answer.status_code == 200
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        yield lines


def last_event(lines: Iterator[str]) -> Any:
    datas = [line.removeprefix("data: ") for line in lines if line]
    return datas[-1] if datas[-1] == "[DONE]" else json.loads(datas[-1])


def ready_status(server: serving.ServerProcess) -> int:
    return httpx.get(f"{server.url}/ready").status_code


# --- start


def test_http_answers_while_the_engine_starts(model: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with serving.serve(model, env={"FAKE_GATE": str(gate)}) as server, httpx.Client(base_url=server.url) as http:
        serving.until(lambda: http.get("/ready").json().get("phase") == "load weights")
        assert http.get("/ready").status_code == 503
        assert http.get("/health").status_code == 200
        assert [entry["id"] for entry in http.get("/v1/models").json()["data"]] == ["tiny"]
        refused = http.post("/v1/completions", json={"model": "tiny", "prompt": "a"})
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "not_ready"
        assert "load weights" in refused.json()["error"]["message"]
        gate.touch()
        server.wait_until_ready()
        assert http.post("/v1/completions", json={"model": "tiny", "prompt": "a"}).status_code == 200


def test_what_the_engine_says_when_it_cannot_start_is_the_servers_one_line(model: Path) -> None:
    with serving.serve(model, env={"FAKE_FAILURE": "the weights do not fit; take a larger GPU"}) as server:
        assert server.process.wait(serving.PATIENCE_SECONDS) == 1
        assert server.log.splitlines()[-1] == "octavo: the weights do not fit; take a larger GPU"


def test_a_model_without_a_tokenizer_ends_the_server_with_the_remedy(tmp_path: Path) -> None:
    model = serving.text_model(tmp_path / "model")
    (model / "tokenizer.json").unlink()
    (model / "tokenizer.model").write_bytes(b"")
    with serving.serve(model) as server:
        assert server.process.wait(serving.PATIENCE_SECONDS) == 1
        assert "convert it with" in server.log.splitlines()[-1]


def test_a_port_that_is_taken_is_told_in_one_line(model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(RuntimeError, match=f"octavo: --port {port}.*choose another"),
            serving.serve(model, port=port),
        ):
            pytest.fail("it started")


def test_the_engines_socket_is_ours_alone(model: Path, tmp_path: Path) -> None:
    with serving.serve(model, env={"TMPDIR": str(tmp_path)}) as server:
        server.wait_until_ready()
        (directory,) = tmp_path.glob("octavo-*")
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        serving.end(server.process)
        assert list(tmp_path.glob("octavo-*")) == []


# --- death of the engine


def test_a_killed_engine_ends_open_requests_with_an_error_and_is_started_again(model: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    with serving.serve(model, env=SLOW | {"FAKE_GATE": str(gate)}, max_model_len=LONG) as server:
        server.wait_until_ready()
        first = server.engine_pid()
        with open_stream(server) as lines, ThreadPoolExecutor(1) as pool:
            body = ENDLESS | {"stream": False}
            timeout = serving.PATIENCE_SECONDS
            whole = pool.submit(httpx.post, f"{server.url}/v1/completions", json=body, timeout=timeout)
            serving.until(lambda: server.metric("vllm:num_requests_running") == 2)
            gate.unlink()  # the next start waits, so that the time without an engine can be looked at
            os.kill(first, signal.SIGKILL)
            error = last_event(lines)["error"]
            assert error["code"] == "engine_error"
            assert "SIGKILL" in error["message"]
            assert whole.result().status_code == 503
            assert whole.result().json()["error"]["code"] == "engine_error"
        assert ready_status(server) == 503
        assert server.metric("vllm:num_requests_running") == 0
        gate.touch()
        server.wait_until_ready()
        assert server.engine_pid() != first
        answer = httpx.post(f"{server.url}/v1/completions", json={"model": "tiny", "prompt": "hello"})
        assert answer.json()["choices"][0]["text"] == "hello"
        assert server.metric("vllm:request_success_total", finished_reason="error") == 2


def test_an_engine_that_dies_again_and_again_ends_the_server(model: Path) -> None:
    with serving.serve(model, env={"FAKE_CRASH_TOKEN": "300"}) as server:
        for _ in range(RESTARTS + 1):
            server.wait_until_ready()
            answer = httpx.post(f"{server.url}/v1/completions", json={"model": "tiny", "prompt": [300]})
            assert answer.status_code == 503
        assert server.process.wait(serving.PATIENCE_SECONDS) == 1
        assert f"died {RESTARTS + 1} times" in server.log.splitlines()[-1]


@pytest.mark.parametrize("how", ["silent by itself", "SIGSTOP"])
def test_an_engine_that_hangs_is_killed_its_streams_end_and_another_is_started(model: Path, how: str) -> None:
    env = SLOW | {"HANG_SECONDS": "3", "FAKE_SILENT_TOKEN": "300"}
    with serving.serve(model, env=env, max_model_len=LONG) as server:
        server.wait_until_ready()
        first = server.engine_pid()
        with open_stream(server, prompt=[300] if how == "silent by itself" else [301]) as lines:
            if how == "SIGSTOP":
                os.kill(first, signal.SIGSTOP)
            error = last_event(lines)["error"]
        assert error["code"] == "engine_error"
        assert "silent" in error["message"] and "killed" in error["message"]
        assert not serving.is_alive(first)
        server.wait_until_ready()
        assert server.engine_pid() != first
        answer = httpx.post(f"{server.url}/v1/completions", json={"model": "tiny", "prompt": "hello"})
        assert answer.json()["choices"][0]["text"] == "hello"
        assert "(1 of 3)" in server.log


def test_a_request_that_fails_in_the_engine_hurts_no_other(model: Path) -> None:
    with serving.serve(model, env={"FAKE_ERROR_TOKEN": "300"}) as server, httpx.Client(base_url=server.url) as http:
        server.wait_until_ready()
        answer = http.post("/v1/completions", json={"model": "tiny", "prompt": [300, 301]})
        assert answer.status_code == 500
        assert answer.json()["error"]["message"] == "the step failed"
        both = http.post("/v1/completions", json={"model": "tiny", "prompt": ["hello", "world"]})
        assert [choice["text"] for choice in both.json()["choices"]] == ["hello", "world"]


# --- disconnects


@pytest.mark.parametrize("stream", [True, False])
def test_a_disconnect_frees_what_the_request_held(slow: serving.ServerProcess, stream: bool) -> None:
    with contextlib.ExitStack() as stack:
        if stream:
            stack.enter_context(open_stream(slow))
        else:
            body = json.dumps(ENDLESS | {"stream": False}).encode()
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", int(slow.url.rpartition(":")[2]))))
            head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
            connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        serving.until(lambda: slow.metric("vllm:num_requests_running") == 1)
        assert slow.metric("vllm:kv_cache_usage_perc") > 0
    serving.until(lambda: slow.metric("vllm:num_requests_running") == 0)
    assert slow.metric("vllm:kv_cache_usage_perc") == 0
    assert slow.metric("vllm:request_success_total", finished_reason="abort") == 1


def test_a_stop_string_ends_the_work_of_the_engine_too(slow: serving.ServerProcess) -> None:
    fields = ENDLESS | {"prompt": ["abcdef", "xyzefa"], "stop": "ef", "stream": False}
    answer = httpx.post(f"{slow.url}/v1/completions", json=fields, timeout=serving.PATIENCE_SECONDS)
    assert [choice["text"] for choice in answer.json()["choices"]] == ["abcd", "xyz"]
    serving.until(lambda: slow.metric("vllm:num_requests_running") == 0)


def test_many_disconnects_leave_nothing_behind(model: Path) -> None:
    with serving.serve(model, env=SLOW, max_num_seqs=8, max_model_len=LONG) as server:
        server.wait_until_ready()

        def leave(_: int) -> None:
            with open_stream(server):
                pass

        with ThreadPoolExecutor(10) as pool:
            list(pool.map(leave, range(60)))
        serving.until(lambda: server.metric("vllm:num_requests_running") == 0)
        assert server.metric("vllm:num_requests_waiting") == 0
        assert server.metric("vllm:request_success_total", finished_reason="abort") == 60


# --- end


def test_sigterm_lets_open_requests_finish(model: Path) -> None:
    with serving.serve(model, env=SLOW, drain_seconds=10_000) as server:
        server.wait_until_ready()
        engine = server.engine_pid()
        with open_stream(server, max_tokens=200) as lines:
            server.process.send_signal(signal.SIGTERM)
            serving.until(lambda: ready_status(server) == 503)
            assert httpx.get(f"{server.url}/health").status_code == 200
            refused = httpx.post(f"{server.url}/v1/completions", json={"model": "tiny", "prompt": "a"})
            assert refused.status_code == 503
            datas = [line.removeprefix("data: ") for line in lines if line]
        assert datas[-1] == "[DONE]"
        assert json.loads(datas[-2])["choices"][0]["finish_reason"] == "length"
        assert server.process.wait(serving.PATIENCE_SECONDS) == 0
        assert not serving.is_alive(engine)


def test_what_is_not_finished_in_time_ends_with_an_error(model: Path) -> None:
    with serving.serve(model, env=SLOW, drain_seconds=0.2, max_model_len=LONG) as server:
        server.wait_until_ready()
        engine = server.engine_pid()
        with open_stream(server) as lines:
            server.process.send_signal(signal.SIGTERM)
            assert "shutting down" in last_event(lines)["error"]["message"]
        assert server.process.wait(serving.PATIENCE_SECONDS) == 0
        assert not serving.is_alive(engine)


def test_who_waits_for_a_grammar_at_the_end_of_the_drain_is_told_so(model: Path) -> None:
    body: dict[str, Any] = {"model": "tiny", "prompt": "a", "max_tokens": 1}
    with serving.serve(model, drain_seconds=0.2) as server, ThreadPoolExecutor(1) as pool:
        server.wait_until_ready()
        url = f"{server.url}/v1/completions"
        assert httpx.post(url, json=body | {"structured_outputs": {"choice": ["a"]}}).status_code == 200
        (pid,) = [pid for pid, command in server.children().items() if "grammar_worker" in command]
        os.kill(pid, signal.SIGSTOP)
        wanted = body | {"structured_outputs": {"choice": ["b"]}}
        asked = pool.submit(httpx.post, url, json=wanted, timeout=60.0)
        serving.until(lambda: serving.unread_bytes(pid) > 0)
        server.process.send_signal(signal.SIGTERM)
        refused = asked.result()
        assert refused.status_code == 503 and "shutting down" in refused.json()["error"]["message"]
        assert server.process.wait(serving.PATIENCE_SECONDS) == 0
        assert not serving.is_alive(pid)


@pytest.mark.parametrize("signals", [(signal.SIGINT,), (signal.SIGTERM, signal.SIGTERM)], ids=["INT", "TERM twice"])
def test_who_is_in_a_hurry_need_not_wait(slow: serving.ServerProcess, signals: tuple[signal.Signals, ...]) -> None:
    engine = slow.engine_pid()
    with open_stream(slow) as lines:
        for number in signals:
            slow.process.send_signal(number)
            serving.until(lambda: slow.process.poll() is not None or _refuses(slow))
        assert "shutting down" in last_event(lines)["error"]["message"]
    assert slow.process.wait(serving.PATIENCE_SECONDS) == (130 if signal.SIGINT in signals else 0)
    assert not serving.is_alive(engine)


def _refuses(server: serving.ServerProcess) -> bool:
    try:
        return ready_status(server) == 503
    except httpx.HTTPError:
        return True


def test_a_signal_during_the_start_leaves_no_process(model: Path, tmp_path: Path) -> None:
    with serving.serve(model, env={"FAKE_GATE": str(tmp_path / "never")}) as server:
        serving.until(lambda: httpx.get(f"{server.url}/ready").json().get("phase") == "load weights")
        engine = server.engine_pid()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(serving.PATIENCE_SECONDS) == 0
        assert not serving.is_alive(engine)


def test_the_engine_does_not_outlive_a_killed_server(slow: serving.ServerProcess) -> None:
    engine = slow.engine_pid()
    slow.process.kill()
    serving.until(lambda: not serving.is_alive(engine))


# --- keys


def test_every_route_but_the_probes_needs_a_key(model: Path) -> None:
    with serving.serve(model, api_key=["first", "second"]) as server, httpx.Client(base_url=server.url) as http:
        serving.until(lambda: http.get("/ready").status_code == 200)
        good = {"Authorization": "Bearer second"}
        routes = http.get("/openapi.json", headers=good).json()["paths"]
        tried = [(method, path) for path, methods in routes.items() for method in methods]
        assert len(tried) >= 8
        others = ["/openapi.json", "/nowhere", "/health/", "//health", "/ready/../v1/models", "/HEALTH"]
        for method, path in [*tried, *(("get", path) for path in others)]:
            for wrong in ({}, {"Authorization": "Bearer third"}, {"Authorization": "second"}, {"Host": "/health"}):
                url = f"{server.url}{path.replace('{name}', 'tiny')}"  # whole: //health alone would be a host
                status = http.request(method, url, headers=wrong).status_code
                assert status == (200 if path in ("/health", "/ready") else 401), (method, path, wrong)
            assert http.request(method, path.replace("{name}", "tiny"), headers=good).status_code != 401
        answer = http.get("/v1/models")
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert http.get("/v1/models", headers={"Authorization": "bearer first"}).status_code == 200
        assert http.get("/v1/models", headers={"Authorization": "Bearer ünï".encode()}).status_code == 401


# --- concurrency


def test_fifty_streams_at_once_are_each_what_they_are_alone(model: Path) -> None:
    texts = [f"stream number {index}: the page holds Grüße 🙂" for index in range(50)]
    with serving.serve(model, max_num_seqs=16) as server, httpx.Client(timeout=serving.PATIENCE_SECONDS) as client:
        server.wait_until_ready()
        barrier = threading.Barrier(len(texts))

        def ask(text: str) -> str:
            barrier.wait()
            fields = ENDLESS | {"prompt": text, "ignore_eos": False, "max_tokens": 150}
            lines = client.post(f"{server.url}/v1/completions", json=fields).text.split("\n\n")
            events = [json.loads(line.removeprefix("data: ")) for line in lines if line and "[DONE]" not in line]
            return "".join(event["choices"][0]["text"] for event in events)

        with ThreadPoolExecutor(len(texts)) as pool:
            assert list(pool.map(ask, texts)) == texts
