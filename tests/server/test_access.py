"""Who may ask for what, on real servers with two ports: keys, limits, origins. The engine is the fake one."""

import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from starlette.routing import Route

import serving
from octavo_server.config import ServerConfig
from octavo_server.frontend.access.doors import Door
from octavo_server.frontend.app import create_app
from octavo_server.frontend.state import ServerState

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT", "NONSENSE")
KEYS = """
- {name: plain, key: sk-plain}
- {name: requests, key: sk-requests, requests_per_minute: 3}
- {name: tokens, key: sk-tokens, tokens_per_minute: 60}
- {name: aborted, key: sk-aborted, tokens_per_minute: 60}
- {name: owing, key: sk-owing, tokens_per_minute: 60}
- {name: one, key: sk-one, concurrent_requests: 1}
- {name: debt, key: sk-debt, tokens_per_minute: 60}
- {name: streamed, key: sk-streamed, tokens_per_minute: 60}
- {name: client, key: sk-client, requests_per_minute: 1}
- {name: patient, key: sk-patient, requests_per_minute: 30, tokens_per_minute: 100}
- {name: narrow, key: sk-narrow, tokens_per_minute: 60}
- {name: both, key: sk-both, requests_per_minute: 100, tokens_per_minute: 100000}
"""


class Access:
    """A server with two ports, keys in a directory as a Secret is mounted, and a file that holds answers back."""

    def __init__(self, server: serving.ServerProcess, keys: Path, hold: Path) -> None:
        self.server, self.keys, self.hold = server, keys, hold
        self.url = server.url
        self.admin_url = server.admin_url

    def client(self, key: str | None) -> httpx.Client:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=serving.PATIENCE_SECONDS)


@pytest.fixture(scope="module")
def access(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Access]:
    base = tmp_path_factory.mktemp("access")
    (base / "model").mkdir()
    (base / "keys").mkdir()
    (base / "keys" / "keys.yaml").write_text(KEYS)
    config: dict[str, Any] = {"api_key_file": [str(base / "keys")], "admin_port": 0}
    config |= {"allowed_origins": ['["https://page.example"]'], "max_num_seqs": 4}
    env = {"FAKE_HOLD": str(base / "hold"), "OCTAVO_API_KEY": "sk-variable", "VLLM_API_KEY": "sk-variable"}
    with serving.serve(serving.text_model(base / "model"), env=env, execute=True, **config) as server:
        server.wait_until_ready()
        yield Access(server, base / "keys", base / "hold")


@pytest.fixture
def held(access: Access) -> Iterator[Access]:
    """Answers are held back until `hold` is gone."""
    access.hold.touch()
    yield access
    access.hold.unlink(missing_ok=True)


def complete(client: httpx.Client, **fields: Any) -> httpx.Response:
    return client.post("/v1/completions", json={"model": "tiny", "prompt": "hello", "max_tokens": 3} | fields)


def limits_told(answer: httpx.Response) -> dict[str, str]:
    prefix = "x-ratelimit-"
    return {name.removeprefix(prefix): value for name, value in answer.headers.items() if name.startswith(prefix)}


# --- what is open


OPEN = {"only": {"/health", "/ready", "/"}, "main": {"/health", "/ready", "/"}}
OPEN["admin"] = {"/health", "/ready", "/metrics"}


@pytest.mark.parametrize("name", ["only", "main", "admin"])
@pytest.mark.parametrize("with_keys", [True, False])
async def test_every_route_and_method_needs_a_key_but_those_that_are_open(
    tmp_path: Path, name: Any, with_keys: bool
) -> None:
    state = ServerState(ServerConfig(model=tmp_path, api_key=("right",) if with_keys else ()))
    app, door = create_app(state), Door(name)
    routes = [route for route in app.routes if isinstance(route, Route)]
    assert len(routes) == len(app.routes) >= 9, "a kind of route that this test does not know"
    paths = {re.sub(r"{.*?}", "x", route.path) for route in routes} | OPEN[name]

    async def through(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "state": {"door": door}}, receive, send)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(through), base_url="http://x") as client:
        for path in paths:
            for method in METHODS:
                status = (await client.request(method, path)).status_code
                assert (status == 401) == (with_keys and path not in OPEN[name]), (method, path)
                if name == "admin" and path not in OPEN[name] | {"/version"}:
                    assert status == (401 if with_keys else 404)
        with_key = {"Authorization": "Bearer right"}
        assert (await client.get("/metrics", headers=with_key)).status_code == (404 if name == "main" else 200)
        assert (await client.get("/version", headers=with_key)).status_code == 200
        models = (await client.get("/v1/models", headers=with_key)).status_code
        assert models == (404 if name == "admin" else 200)
    state.close()


ODD = [
    "//v1/models",
    "/v1//models",
    "/health/../v1/models",
    "/v1/../health",
    "/health/",
    "//health",
    "/health/x",
    "/HEALTH",
    "/health%00",
    "/health;x",
    "/health%2F..%2Fv1%2Fmodels",
    "/./health",
    "/%2e/health",
    "/v1/models/%2e%2e/%2e%2e/health",
    "/metrics/",
    "/%6detrics/",
    "/v1/models?/health",
    "/v1/models#/health",
    "http://x/v1/models",
    "http:///health/v1/models",
    "http://health/v1/models",
    "*",
]
OPEN_SPELLINGS = ["/health", "/health?x=/v1/models", "http://elsewhere/health", "/%68ealth", "/health#x"]


def raw_status(url: str, target: str, method: str = "GET", headers: str = "") -> int:
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=serving.PATIENCE_SECONDS) as connection:
        head = f"{method} {target} HTTP/1.1\r\nHost: x\r\n{headers}Connection: close\r\n\r\n"
        connection.sendall(head.encode("latin-1"))
        return int(connection.makefile("rb").readline().split()[1])


def test_no_spelling_of_a_path_opens_what_is_closed(access: Access) -> None:
    for url in (access.url, access.admin_url):
        for method in ("GET", "HEAD", "POST", "OPTIONS"):
            for target in ODD:
                assert raw_status(url, target, method) in (400, 401), (url, method, target)
        for target in OPEN_SPELLINGS:
            assert raw_status(url, target) == 200
        assert raw_status(url, "x:443", "CONNECT") in (400, 401)


@pytest.mark.parametrize(
    "headers",
    [
        "Host: /health\r\n",
        "X-Forwarded-Prefix: /health\r\nX-Original-URL: /health\r\nX-Rewrite-URL: /health\r\n",
        "X-Forwarded-For: 127.0.0.1\r\nForwarded: for=127.0.0.1\r\n",
        "X-HTTP-Method-Override: OPTIONS\r\n",
        "Authorization: Bearer\r\n",
        "Authorization: Bearer \r\n",
        "Authorization: sk-plain\r\n",
        "Authorization: Basic sk-plain\r\n",
        "Authorization: Bearer plain\r\n",
        "Authorization: Bearer sk-plain x\r\n",
        "Authorization: Bearer sk-plai\r\n",
        "Authorization: Bearer \xfc\r\n",
        "Authorization: Bearer sk-plain\r\nAuthorization: Bearer other\r\n",
        "Authorization: Bearer other\r\nAuthorization: Bearer sk-plain\r\n",
        "api-key: sk-plain\r\n",
        "X-Api-Key: sk-plain\r\n",
        "Cookie: key=sk-plain\r\n",
        "Proxy-Authorization: Bearer sk-plain\r\n",
        "Upgrade: websocket\r\nConnection: Upgrade\r\n",
        "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAAA\r\n",
    ],
)
def test_nothing_else_than_a_bearer_token_is_a_key(access: Access, headers: str) -> None:
    assert raw_status(access.url, "/v1/models", headers=headers) == 401
    assert raw_status(access.admin_url, "/version", headers=headers) == 401


SECOND = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
AMBIGUOUS = {
    "both lengths": b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "both, otherwise": b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
    "two lengths": b"Content-Length: 0\r\nContent-Length: 35\r\n\r\n",
    "a list of lengths": b"Content-Length: 0, 0\r\n\r\n",
    "a sign": b"Content-Length: +0\r\n\r\n",
    "another encoding": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "not chunked last": b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "a space": b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "a folded line": b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "a bare line feed": b"X: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a bare carriage return": b"X: y\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a null": b"X: \0\r\n\r\n",
    "a chunk's length": b"Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n",
    "a chunk's line feed": b"Transfer-Encoding: chunked\r\n\r\n0\n\r\n",
}


@pytest.mark.parametrize("framing", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_where_a_request_ends_is_no_matter_of_opinion(access: Access, framing: bytes) -> None:
    """What stands before us may see one request where we see two: such ones end the connection."""
    address = urlsplit(access.url)
    head = b"POST /health HTTP/1.1\r\nHost: x\r\n"
    with socket.create_connection((address.hostname, address.port), timeout=serving.PATIENCE_SECONDS) as connection:
        connection.sendall(head + framing + SECOND)
        connection.shutdown(socket.SHUT_WR)
        answers = re.findall(rb"HTTP/1\.1 (\d+)", connection.makefile("rb").read())
    assert answers == [b"400"]


def test_a_request_that_follows_needs_its_own_key(access: Access) -> None:
    address = urlsplit(access.url)
    with socket.create_connection((address.hostname, address.port), timeout=serving.PATIENCE_SECONDS) as connection:
        with_key = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sk-plain\r\n\r\n"
        connection.sendall(with_key + SECOND + b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answers = re.findall(rb"HTTP/1\.1 (\d+)", connection.makefile("rb").read())
    assert answers == [b"200", b"401", b"200"]


def test_a_key_behind_the_body_comes_too_late(access: Access) -> None:
    address = urlsplit(access.url)
    with socket.create_connection((address.hostname, address.port), timeout=serving.PATIENCE_SECONDS) as connection:
        head = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: Authorization\r\n\r\n"
        connection.sendall(head + b"0\r\nAuthorization: Bearer sk-plain\r\n\r\n")
        assert connection.makefile("rb").readline().split()[1] == b"401"


def test_metrics_are_told_at_the_admin_port_alone_and_the_api_at_the_other(access: Access) -> None:
    with access.client("sk-plain") as client:
        assert client.get("/metrics").status_code == 404
        assert client.get("/v1/models").status_code == 200
        for path in ("/v1/models", "/v1/completions", "/openapi.json"):
            assert client.get(f"{access.admin_url}{path}").status_code == 404
        assert client.get(f"{access.admin_url}/version").status_code == 200
    assert "vllm:num_requests_running" in httpx.get(f"{access.admin_url}/metrics").text
    for url in (access.url, access.admin_url):
        assert [httpx.get(f"{url}{path}").status_code for path in ("/health", "/ready")] == [200, 200]


# --- keys


def streamed(client: httpx.Client, **fields: Any) -> tuple[httpx.Response, str]:
    body = {"model": "tiny", "prompt": "hello", "max_tokens": 3, "stream": True} | fields
    with client.stream("POST", "/v1/completions", json=body) as answer:
        return answer, answer.read().decode()


def test_keys_change_without_a_restart_and_open_streams_end_well(held: Access) -> None:
    file = held.keys / "rotated"
    file.write_text("first-secret")
    with held.client("first-secret") as first, held.client("second-secret") as second, ThreadPoolExecutor() as threads:
        serving.until(lambda: first.get("/v1/models").status_code == 200)
        open_one = threads.submit(streamed, first)
        serving.until(lambda: held.server.metric("vllm:num_requests_running") == 1)
        file.write_text("rotated: first-secret\nrotated: second-secret\n")  # both, while clients change over
        serving.until(lambda: second.get("/v1/models").status_code == 200)
        assert first.get("/v1/models").status_code == 200
        file.write_text("second-secret")
        serving.until(lambda: first.get("/v1/models").status_code == 401)
        file.write_text("rotated: second-secret broken-secret")
        serving.until(lambda: "rotated, line 1: it must be NAME: KEY" in held.server.log)
        assert second.get("/v1/models").status_code == 200
        file.unlink()
        serving.until(lambda: second.get("/v1/models").status_code == 401)
        assert not open_one.done()
        held.hold.unlink()
        answer, events = open_one.result(serving.PATIENCE_SECONDS)
    assert answer.status_code == 200
    assert events.endswith("data: [DONE]\n\n")
    assert '"finish_reason":"stop"' in events
    for secret in ("first-secret", "second-secret", "broken-secret", "sk-"):
        assert secret not in held.server.log


def test_no_child_process_knows_a_key(access: Access) -> None:
    for pid in access.server.children():
        for file in ("cmdline", "environ"):
            assert b"sk-" not in Path(f"/proc/{pid}/{file}").read_bytes()
    assert b"sk-variable" in Path(f"/proc/{access.server.process.pid}/environ").read_bytes()


# --- limits


def refused(answer: httpx.Response, kind: str) -> str:
    assert answer.status_code == 429
    error = answer.json()["error"]
    assert (error["code"], error["type"], error["param"]) == ("rate_limit_exceeded", kind, None)
    assert "sk-" not in error["message"]
    return str(error["message"])


def test_past_its_requests_a_key_is_told_when_to_come_back_and_others_are_not_touched(access: Access) -> None:
    with access.client("sk-requests") as client, access.client("sk-plain") as other:
        left = [limits_told(client.get("/v1/models"))["remaining-requests"] for _ in range(3)]
        assert left == ["2", "1", "0"]
        answer = complete(client)
        assert "'requests' is limited to 3 requests a minute" in refused(answer, "requests")
        assert 1 <= int(answer.headers["retry-after"]) <= 20
        told = limits_told(answer)
        assert (told["limit-requests"], told["remaining-requests"]) == ("3", "0")
        assert re.fullmatch(r"(1m0s|\d+(\.\d)?s)", told["reset-requests"])
        assert "limit-tokens" not in told
        assert limits_told(complete(other)) == {}


def left_of_60(client: httpx.Client) -> tuple[float, float]:
    """(tokens left, seconds of a clock): one comes back each second."""
    told = limits_told(client.get("/v1/models"))
    assert told["limit-tokens"] == "60"
    return int(told["remaining-tokens"]), time.monotonic()


def used_since(begin: float, left: tuple[float, float], used: int) -> bool:
    """Whether so many of 60 tokens were used since a moment, given what came back since."""
    return 60 - used - 1 <= left[0] <= 60 - used + (left[1] - begin) + 1


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_are_reserved_and_what_is_not_used_comes_back(access: Access, stream: bool) -> None:
    with access.client("sk-streamed" if stream else "sk-tokens") as client:
        begin, fields = time.monotonic(), {"prompt": [5, 6, 7, 8], "max_tokens": 41}
        answer = streamed(client, **fields)[0] if stream else complete(client, **fields)
        assert answer.status_code == 200
        assert int(limits_told(answer)["remaining-tokens"]) <= 60 - 45 + (time.monotonic() - begin)  # all reserved
        serving.until(lambda: used_since(begin, left_of_60(client), 4 + 5))  # the fake one repeats its prompt, and ends


def test_what_a_client_that_leaves_has_used_counts(held: Access) -> None:
    begin = time.monotonic()
    with held.client("sk-aborted") as client, ThreadPoolExecutor() as threads:
        body = {"model": "tiny", "prompt": [5] * 20, "max_tokens": 30, "stream": True}
        waiting = threads.submit(client.post, "/v1/completions", json=body, timeout=httpx.Timeout(60, read=0.5))
        with pytest.raises(httpx.ReadTimeout):
            waiting.result()
        serving.until(lambda: used_since(begin, left_of_60(client), 20))


def test_a_client_that_closes_its_side_has_left(held: Access) -> None:
    body = b'{"model": "tiny", "prompt": "hello"}'
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    head += "Content-Type: application/json\r\nAuthorization: Bearer sk-plain\r\n\r\n"
    address = urlsplit(held.url)
    with socket.create_connection((address.hostname, address.port), timeout=serving.PATIENCE_SECONDS) as connection:
        connection.sendall(head.encode() + body)
        serving.until(lambda: held.server.metric("vllm:num_requests_running") == 1)
        connection.shutdown(socket.SHUT_WR)
        serving.until(lambda: held.server.metric("vllm:num_requests_running") == 0)
        assert connection.recv(1) == b""


def test_past_its_tokens_a_key_is_refused_and_who_owes_before_its_body_is_read(access: Access) -> None:
    with access.client("sk-owing") as client:
        too_large = complete(client, prompt=[5] * 20, max_tokens=41)
        assert "asks for 61 tokens (20 of prompts" in refused(too_large, "tokens")
        assert "retry-after" not in too_large.headers  # it never can
        assert too_large.headers["x-should-retry"] == "false"
        answer = complete(client, prompt=[5] * 100, max_tokens=1)
        assert "too large" in refused(answer, "tokens")
        assert complete(client, prompt=[5] * 30, max_tokens=20, ignore_eos=True).status_code == 200
        answer = complete(client, prompt=[5] * 20, max_tokens=30)
        assert "'owing' is limited to 60 tokens a minute" in refused(answer, "tokens")
        assert 1 <= int(answer.headers["retry-after"]) <= 40
        # Nobody said how long the answer may be: what it uses beyond the estimate is owed.
        chat = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "ignore_eos": True}
        assert client.post("/v1/chat/completions", json=chat, headers={"Authorization": "Bearer sk-debt"}).is_success
    lines = [line for line in access.server.log.splitlines() if "POST /v1/completions 429 " in line]
    assert lines  # of what the engine never had, nothing is told
    assert not [line for line in lines if "engine_id" in line or "prompt_tokens" in line]
    head = "Authorization: Bearer sk-debt\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n"
    assert raw_status(access.url, "/v1/completions", "POST", head) == 429


SAID = [{"role": "user", "content": "a"}]
TOO_MUCH: dict[str, tuple[str, dict[str, Any]]] = {
    "choices": ("completions", {"prompt": [5], "n": 4, "max_tokens": 15}),
    "prompts": ("completions", {"prompt": [[5]] * 4, "max_tokens": 15}),
    "prompts of default length": ("completions", {"prompt": ["a"] * 4}),
    "choices of a stream": ("completions", {"prompt": [5], "n": 4, "max_tokens": 15, "stream": True}),
    "choices of a chat": ("chat/completions", {"messages": SAID, "n": 2, "max_completion_tokens": 30}),
    "a response": ("responses", {"input": "a", "max_output_tokens": 60}),
    "vectors": ("embeddings", {"input": [[5] * 31] * 2}),
}


@pytest.mark.parametrize("name", TOO_MUCH)
def test_no_way_of_asking_leads_past_the_limit_on_tokens(access: Access, name: str) -> None:
    path, body = TOO_MUCH[name]
    with access.client("sk-narrow") as client:
        answer = client.post(f"/v1/{path}", json={"model": "tiny", **body})
        assert "too large" in refused(answer, "tokens")
        assert limits_told(answer)["remaining-tokens"] == "60"  # nothing was taken


def test_requests_at_once_are_limited_and_the_next_is_taken_when_one_has_ended(held: Access) -> None:
    with held.client("sk-one") as client, held.client("sk-one") as second, ThreadPoolExecutor() as threads:
        first = threads.submit(complete, client)
        serving.until(lambda: second.get("/v1/models").status_code == 429)
        answer = complete(second)
        assert "'one' is limited to 1 requests at once" in refused(answer, "requests")
        assert answer.headers["retry-after"] == "1"
        held.hold.unlink()
        assert first.result(serving.PATIENCE_SECONDS).status_code == 200
        serving.until(lambda: complete(second).status_code == 200)


def test_the_openai_client_sees_a_rate_limit_as_one(access: Access) -> None:
    with openai.OpenAI(base_url=f"{access.url}/v1", api_key="sk-client", max_retries=0) as client:
        raw = client.completions.with_raw_response.create(model="tiny", prompt="hello", max_tokens=2)
        assert raw.headers["x-ratelimit-remaining-requests"] == "0"
        with pytest.raises(openai.RateLimitError) as caught:
            client.models.list()
    assert (caught.value.code, caught.value.type) == ("rate_limit_exceeded", "requests")


def test_the_openai_client_waits_as_it_is_told_and_does_not_repeat_what_can_never_fit(access: Access) -> None:
    seen: list[tuple[int, str | None]] = []

    def note(answer: httpx.Response) -> None:
        seen.append((answer.status_code, answer.headers.get("retry-after")))

    with (
        httpx.Client(event_hooks={"response": [note]}, timeout=serving.PATIENCE_SECONDS) as http,
        openai.OpenAI(base_url=f"{access.url}/v1", api_key="sk-patient", http_client=http) as client,
    ):
        with pytest.raises(openai.RateLimitError, match="too large"):
            client.completions.create(model="tiny", prompt=[5] * 200, max_tokens=1)
        assert seen == [(429, None)]
        while len(told := [seconds for status, seconds in seen if status == 429]) == 1:
            client.models.list()
        assert told == [None, "2"]  # so long it waited: the next answer was
        assert seen[-1] == (200, None)


def test_every_answer_of_a_limited_key_tells_what_is_left(access: Access) -> None:
    both = {f"{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")}
    with access.client("sk-both") as client:
        answers = [complete(client), streamed(client)[0], complete(client, temperature=-1), client.get("/v1/none")]
        answers += [client.get("/v1/completions"), client.post("/v1/completions", content=b" " * (17 * 2**20))]
        assert [answer.status_code for answer in answers] == [200, 200, 400, 404, 405, 413]
        assert all(set(limits_told(answer)) == both for answer in answers)
        remaining = [int(limits_told(answer)["remaining-requests"]) for answer in answers]
        assert remaining == sorted(remaining, reverse=True)
    assert limits_told(httpx.get(f"{access.url}/health")) == {}


# --- pages of other origins


def preflight(url: str, origin: str, method: str = "POST") -> httpx.Response:
    headers = {"Origin": origin, "Access-Control-Request-Method": method}
    headers["Access-Control-Request-Headers"] = "authorization, content-type, x-stainless-os"
    return httpx.options(f"{url}/v1/chat/completions", headers=headers)


def test_pages_of_an_allowed_origin_may_ask_with_a_key(access: Access) -> None:
    origin = "https://page.example"
    answer = preflight(access.url, origin)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == origin
    assert "x-stainless-os" in answer.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in answer.headers
    assert preflight(access.url, origin, "DELETE").status_code == 200
    for asked, flag in ((("https://other.example",), "--allowed-origins"), ((origin, "PUT"), "--allowed-methods")):
        refused = preflight(access.url, *asked)
        assert (refused.status_code, refused.headers["content-type"]) == (400, "application/json")
        assert flag in refused.json()["error"]["message"]
    assert "access-control-allow-origin" not in preflight(access.url, "https://other.example").headers
    for key, status in (("sk-plain", 200), ("wrong", 401), (None, 401)):
        with access.client(key) as client:
            told = client.get("/v1/models", headers={"Origin": origin})
            assert (told.status_code, told.headers["access-control-allow-origin"]) == (status, origin)
            assert "x-ratelimit-remaining-requests" in told.headers["access-control-expose-headers"]
            told = client.get("/v1/models", headers={"Origin": "https://other.example"})
            assert "access-control-allow-origin" not in told.headers


async def test_no_page_may_ask_unless_flags_say_so(tmp_path: Path) -> None:
    state = ServerState(ServerConfig(model=tmp_path))
    transport = httpx.ASGITransport(create_app(state))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        for method in ("GET", "OPTIONS"):
            headers = {"Origin": "https://page.example", "Access-Control-Request-Method": "GET"}
            answer = await client.request(method, "/v1/models", headers=headers)
            assert not [name for name in answer.headers if name.startswith("access-control")]
    state.close()
