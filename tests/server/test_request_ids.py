"""Every answer carries its request's id, the one that came with it where that can be shown."""

import json
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

import serving
from octavo_server.frontend.ids import new_id

KEY = {"authorization": "Bearer sk-1"}
BODY = {"model": "tiny", "prompt": "hello", "max_tokens": 4}


@pytest.fixture(scope="module")
def hold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As long as it is there, no request gets on."""
    return tmp_path_factory.mktemp("hold") / "hold"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, hold: Path) -> Iterator[serving.ServerProcess]:
    model = serving.text_model(tmp_path_factory.mktemp("ids") / "model")
    config: Any = {"api_key": ["sk-1"], "log_format": "json", "max_num_seqs": 1, "max_queued_requests": 0}
    with serving.serve(model, env={"FAKE_HOLD": str(hold)}, **config) as process:
        process.wait_until_ready()
        yield process


def access(server: serving.ServerProcess, request_id: str) -> dict[str, Any]:
    """The one line of the log about this request."""

    def found() -> list[Any]:
        lines = [json.loads(line) for line in server.log.splitlines()]
        return [line for line in lines if (line["logger"], line.get("request_id")) == ("octavo.access", request_id)]

    serving.until(found)
    (line,) = found()
    return dict(line)


REQUESTS: dict[str, tuple[int, str, str, dict[str, Any]]] = {
    "answer": (200, "POST", "/v1/completions", {"json": BODY}),
    "stream": (200, "POST", "/v1/completions", {"json": BODY | {"stream": True}}),
    "models": (200, "GET", "/v1/models", {}),
    "probe": (200, "GET", "/health", {}),
    "bad field": (400, "POST", "/v1/completions", {"json": BODY | {"temperature": -1}}),
    "no JSON": (400, "POST", "/v1/completions", {"content": b"{", "headers": {"content-type": "application/json"}}),
    "no such model": (404, "POST", "/v1/completions", {"json": BODY | {"model": "other"}}),
    "no such route": (404, "GET", "/v1/nothing", {}),
    "wrong method": (405, "GET", "/v1/completions", {}),
    "no key": (401, "POST", "/v1/completions", {"json": BODY, "headers": {"authorization": ""}}),
    "large": (413, "POST", "/v1/completions", {"content": b"x" * (2**24 + 1)}),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_every_answer_carries_the_id_that_came_or_one_of_its_own(server: serving.ServerProcess, name: str) -> None:
    status, method, path, fields = REQUESTS[name]
    headers = KEY | fields.get("headers", {})
    url = f"{server.url}{path}"
    given = f"{name.replace(' ', '_')}:{path}/{'a' * 20}~!"
    rest = {name: value for name, value in fields.items() if name != "headers"}
    first = httpx.request(method, url, headers=headers | {"x-request-id": given}, **rest)
    assert (first.status_code, first.headers.get_list("x-request-id")) == (status, [given])
    made = [httpx.request(method, url, headers=headers, **rest).headers["x-request-id"] for _ in range(2)]
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in made) and made[0] != made[1]
    if path != "/health":
        line = access(server, given)
        assert (line["status"], line["method"], line["level"]) == (status, method, "info")
        assert ("error" in line) == (status >= 400)


def test_a_request_that_is_refused_for_now_has_an_id(server: serving.ServerProcess, hold: Path) -> None:
    hold.touch()
    with httpx.Client(base_url=server.url, headers=KEY) as client, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.post, "/v1/completions", json=BODY)
        serving.until(lambda: re.search(r"^vllm:num_requests_running{.*} 1.0$", client.get("/metrics").text, re.M))
        refused = httpx.post(f"{server.url}/v1/completions", json=BODY, headers=KEY | {"x-request-id": "later"})
        hold.unlink()
        assert waiting.result().status_code == 200
    assert (refused.status_code, refused.headers["x-request-id"]) == (429, "later")
    assert access(server, "later")["status"] == 429


@pytest.mark.parametrize("given", [b"", b"a b", b"x" * 129, b"\xc3\xa9", b"a\tb", b"\x7f"])
def test_an_id_that_is_long_or_cannot_be_shown_is_replaced(server: serving.ServerProcess, given: bytes) -> None:
    answer = httpx.get(
        f"{server.url}/v1/models", headers=[(b"authorization", b"Bearer sk-1"), (b"x-request-id", given)]
    )
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])


def raw(server: serving.ServerProcess, data: bytes) -> bytes:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=serving.PATIENCE_SECONDS) as connection:
        connection.sendall(data)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize(
    ("data", "status"),
    [(b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n", b"431"), (b"nonsense\r\n\r\n", b"400")],
)
def test_what_never_reaches_the_app_has_an_id_too(server: serving.ServerProcess, data: bytes, status: bytes) -> None:
    answer = raw(server, data)
    assert answer.startswith(b"HTTP/1.1 " + status)
    (found,) = re.findall(rb"\r\nx-request-id: ([0-9a-f]{32})\r\n", answer)
    assert access(server, found.decode())["status"] == int(status)


def test_the_line_of_a_request_says_what_became_of_it(server: serving.ServerProcess) -> None:
    body = BODY | {"prompt": "hello hello world", "max_tokens": 3, "ignore_eos": True, "stream": True}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, headers=KEY)
    first = json.loads(answer.text.split("\n\n")[0].removeprefix("data: "))
    line = access(server, answer.headers["x-request-id"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    seconds, ttft = line.pop("seconds"), line.pop("ttft_seconds")
    assert 0 < ttft <= seconds < serving.PATIENCE_SECONDS
    assert 0 <= line.pop("queue_seconds", 0.0) <= ttft
    assert line.pop("prompt_tokens") >= 3
    assert line == {
        "level": "info",
        "key": "api-key-1",
        "logger": "octavo.access",
        "message": "POST /v1/completions 200",
        "request_id": answer.headers["x-request-id"],
        "method": "POST",
        "route": "/v1/completions",
        "status": 200,
        "model": "tiny",
        "stream": True,
        "response_id": first["id"],
        "cached_tokens": 0,
        "completion_tokens": 3,
        "finish_reason": "length",
    }


OTHERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "response": ("/v1/responses", {"model": "tiny", "input": "hello"}, "id"),
    "embedding": ("/v1/embeddings", {"model": "tiny", "input": ["hello", "hello world"]}, "id"),
    "named chat": (
        "/v1/chat/completions",
        {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "request_id": "mine", "max_tokens": 2},
        "id",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_lines_of_other_routes_tell_their_answers_ids_and_tokens(server: serving.ServerProcess, name: str) -> None:
    path, body, field = OTHERS[name]
    answer = httpx.post(f"{server.url}{path}", json=body, headers=KEY)
    line, usage = access(server, answer.headers["x-request-id"]), answer.json()["usage"]
    assert line["response_id"] == answer.json()[field]
    assert line["model"] == "tiny"
    assert line["prompt_tokens"] == usage.get("prompt_tokens", usage.get("input_tokens")) > 0
    assert ("completion_tokens" in line) == ("embedding" not in name)
    # The engine's own lines name a request by this.
    assert re.fullmatch("[0-9a-f]{32}", line["engine_id"]) if "mine" in line["response_id"] else "engine_id" not in line


def test_a_path_is_one_word_of_its_line(server: serving.ServerProcess) -> None:
    path = "/v1/x%20200%20key=admin%0d%0a2026%20INFO%20%C3%BC%22"
    line = access(server, httpx.get(f"{server.url}{path}", headers=KEY).headers["x-request-id"])
    method, shown, status = line["message"].split(" ")
    assert (method, status) == ("GET", "404")
    assert re.fullmatch(r"/v1/x%20200%20key%3Dadmin%0D%0A2026%20INFO%20%C3%BC%22", shown)


def test_what_is_refused_in_its_middle_is_so_under_the_requests_own_id(server: serving.ServerProcess) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sk-1\r\nX-Request-Id: %s\r\n"
    framing = b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = b"1\r\n \r\n0\r\n" + b"X: " + b"y" * 2**16
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=serving.PATIENCE_SECONDS) as connection:
        connection.sendall(head % b"late-one" + framing + body)
        connection.sendall(b"y\r\nY: z\r\n")  # no more than is read at once: what is left would reset the connection
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 431") and b"\r\nx-request-id: late-one\r\n" in answer
    serving.until(lambda: server.log.count('"request_id":"late-one"') == 2)
    lines = [json.loads(line) for line in server.log.splitlines() if '"late-one"' in line]
    assert {line["status"] for line in lines} == {431, 499}


def test_no_id_is_given_twice_whichever_thread_asks() -> None:
    with ThreadPoolExecutor(4) as threads:
        made = [*threads.map(lambda _: new_id(), range(2000))]
    assert len(set(made)) == 2000
    assert all(re.fullmatch(r"[0-9a-f]{32}", name) for name in made)
