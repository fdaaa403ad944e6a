"""What one HTTP request may ask of the engine: several answers, a salt, a priority, a time, a place in the queue."""

import contextlib
import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest

import serving
from octavo_server import ipc
from octavo_server.config import ServerConfig
from octavo_server.errors import EngineError
from octavo_server.frontend.completions import Completions
from octavo_server.frontend.generation import Caller
from octavo_server.frontend.model import load_model
from octavo_server.frontend.openai import CompletionRequest
from octavo_server.frontend.output_stream import Choice
from octavo_server.frontend.state import ServerState
from octavo_server.ipc import ErrorKind

HELLO = {"role": "user", "content": "hello"}
PAGE = list(range(5, 21))  # one page of prompt, and a token more
ENDLESS: dict[str, Any] = {"model": "tiny", "prompt": [5], "max_tokens": 500_000, "ignore_eos": True}
LONG = 1_000_000
MISS = {"prompt_tokens_details": {"cached_tokens": 0}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return serving.text_model(tmp_path_factory.mktemp("choices") / "model")


@pytest.fixture(scope="module")
def http(model: Path) -> Iterator[httpx.Client]:
    with serving.serve(model) as server, client(server) as connected:
        server.wait_until_ready()
        yield connected


def client(server: serving.ServerProcess, key: str | None = None) -> httpx.Client:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return httpx.Client(base_url=server.url, timeout=serving.PATIENCE_SECONDS, headers=headers)


def complete(http: httpx.Client, prompt: Any, **fields: Any) -> dict[str, Any]:
    answer = http.post("/v1/completions", json={"model": "tiny", "prompt": prompt, **fields})
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


def events(text: str) -> list[Any]:
    datas = [block.removeprefix("data: ") for block in text.split("\n\n") if block]
    return [data if data == "[DONE]" else json.loads(data) for data in datas]


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


# --- n


def test_each_prompt_gets_its_choices_behind_each_other(http: httpx.Client) -> None:
    body = complete(http, [[10, 11, 12], [20, 21, 22]], n=3, max_tokens=2, return_token_ids=True)
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3, 4, 5]
    # The fake engine's choices begin with the prompt's first token, its second, its third.
    expected = [[10, 11], [11, 12], [12, 10], [20, 21], [21, 22], [22, 20]]
    assert [choice["token_ids"] for choice in body["choices"]] == expected
    assert [choice["prompt_token_ids"][0] for choice in body["choices"]] == [10, 10, 10, 20, 20, 20]


async def test_a_prompt_crosses_to_the_engine_once_for_all_of_its_choices(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = ServerState(ServerConfig(model=model, served_model_name=("tiny",)))
    state.model = load_model(model)
    state.client.ready = ipc.Ready(1, 1, max_model_len=5000, block_size=16, num_blocks=64, phases={})
    state.client._last_heard = float("inf")
    request = CompletionRequest.model_validate({"model": "tiny", "prompt": [[7] * 4000, [8]], "n": 100})
    caller = Caller(0.0, b"", state.admission.place())
    choices: list[Choice] = []

    def submit(asked: list[Choice], *, whole: bool) -> None:
        choices.extend(asked)
        raise EngineError("it is no engine")

    monkeypatch.setattr(state.client, "submit", submit)
    job = await Completions.prepare(state, request, caller)
    with pytest.raises(EngineError):
        await job.answer()
    state.close()
    frames = [choice.frame for choice in choices if choice.frame is not None]
    asked = [one for frame in frames for one in ipc.requests_of(ipc.frontend_decoder.decode(frame))]
    assert [one.request_id for one in asked] == [choice.request_id for choice in choices]
    assert [one.sampling.choice for one in asked] == [*range(100)] * 2
    assert [one.prompt_token_ids for one in asked] == [[7] * 4000] * 100 + [[8]] * 100
    assert sum(map(len, frames)) < 100_000


def test_usage_counts_a_prompt_once_and_all_of_its_answers(http: httpx.Client) -> None:
    body = complete(http, [[10, 11, 12], [20, 21]], n=4, max_tokens=2)
    assert body["usage"] == {"prompt_tokens": 5, "completion_tokens": 16, "total_tokens": 21} | MISS


def test_the_choices_of_a_stream_come_interleaved_with_their_index_and_are_the_whole_ones(http: httpx.Client) -> None:
    fields = {"model": "tiny", "prompt": "hello world", "n": 3, "max_tokens": 40}
    whole = complete(http, "hello world", n=3, max_tokens=40)
    answer = http.post("/v1/completions", json=fields | {"stream": True, "stream_options": {"include_usage": True}})
    *chunks, usage, done = events(answer.text)
    texts, order = ["", "", ""], []
    for chunk in chunks:
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["text"]
        order.append(choice["index"])
    assert texts == [choice["text"] for choice in whole["choices"]]
    assert len(set(texts)) == 3
    assert order != sorted(order)
    without_details = {name: count for name, count in usage["usage"].items() if name != "prompt_tokens_details"}
    assert without_details == {name: whole["usage"][name] for name in without_details}
    assert done == "[DONE]"


def test_every_choice_of_a_chat_has_its_own_opening_and_end(http: httpx.Client) -> None:
    fields = {"model": "tiny", "messages": [HELLO], "n": 2, "temperature": 0, "max_tokens": 30}
    whole = http.post("/v1/chat/completions", json=fields).json()
    *chunks, done = events(http.post("/v1/chat/completions", json=fields | {"stream": True}).text)
    assert done == "[DONE]"
    assert [choice["index"] for choice in whole["choices"]] == [0, 1]
    for choice in whole["choices"]:
        mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == choice["index"]]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(part["delta"].get("content", "") for part in mine) == choice["message"]["content"]
        assert [part["finish_reason"] for part in mine if part["finish_reason"]] == [choice["finish_reason"]]


def test_an_echo_precedes_each_choice_of_its_prompt(http: httpx.Client) -> None:
    body = complete(http, ["hello", "world"], n=2, echo=True, max_tokens=1)
    texts = [choice["text"] for choice in body["choices"]]
    assert [text[:5] for text in texts] == ["hello", "hello", "world", "world"]


@pytest.mark.parametrize("n", [0, 129, -1, True, "2", 1.5])
def test_a_wrong_n_is_refused(http: httpx.Client, n: Any) -> None:
    answer = http.post("/v1/chat/completions", json={"model": "tiny", "messages": [HELLO], "n": n})
    assert error_of(answer, 400)["param"] == "n"


def test_the_choices_of_all_prompts_together_are_bounded(http: httpx.Client) -> None:
    assert len(complete(http, ["a"] * 2, n=128, max_tokens=1)["choices"]) == 256
    answer = http.post("/v1/completions", json={"model": "tiny", "prompt": ["a"] * 3, "n": 86})
    assert error_of(answer, 400)["param"] == "n"
    assert "3 prompts" in error_of(answer, 400)["message"]


def test_best_of_is_refused(http: httpx.Client) -> None:
    answer = http.post("/v1/completions", json={"model": "tiny", "prompt": "a", "n": 2, "best_of": 3})
    assert error_of(answer, 400)["param"] == "best_of"


# --- prefix caching and salts


def cached(http: httpx.Client, **fields: Any) -> int:
    usage = complete(http, PAGE + PAGE, max_tokens=1, **fields)["usage"]
    return int(usage["prompt_tokens_details"]["cached_tokens"])


def test_pages_are_shared_within_a_salt_and_not_beyond(model: Path) -> None:
    with serving.serve(model) as server, client(server) as http:
        server.wait_until_ready()
        found = [cached(http), cached(http), cached(http, cache_salt="a"), cached(http, cache_salt="a")]
        assert found == [0, 31, 0, 31]  # two pages, but a token stays to be computed
        assert [cached(http, cache_salt="b"), cached(http, cache_salt="key:a"), cached(http)] == [0, 0, 31]
        assert complete(http, [9] * 17, n=4, max_tokens=1)["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
        assert complete(http, [9] * 17, n=4, max_tokens=1)["usage"]["prompt_tokens_details"]["cached_tokens"] == 16


def test_two_api_keys_share_nothing_unless_they_ask_for_the_same_salt(model: Path) -> None:
    with (
        serving.serve(model, api_key=["first", "second"]) as server,
        client(server, "first") as first,
        client(server, "second") as second,
    ):
        serving.until(lambda: first.get("/ready").status_code == 200)
        assert [cached(first), cached(first), cached(second), cached(second)] == [0, 31, 0, 31]
        assert [cached(first, cache_salt="ours"), cached(second, cache_salt="ours")] == [0, 31]


def test_without_prefix_caching_nothing_is_shared(model: Path) -> None:
    with serving.serve(model, enable_prefix_caching=False) as server, client(server) as http:
        server.wait_until_ready()
        assert [cached(http), cached(http)] == [0, 0]


@pytest.mark.parametrize("salt", ["", "x" * 257, 5, ["a"], "\ud800"])
def test_a_wrong_salt_is_refused(http: httpx.Client, salt: Any) -> None:
    body = json.dumps({"model": "tiny", "prompt": "a", "cache_salt": salt})
    answer = http.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert error_of(answer, 400)["param"] == "cache_salt"


# --- priority


@pytest.mark.parametrize("priority", [1001, -1001, 1.5, "0", True])
def test_a_wrong_priority_is_refused(http: httpx.Client, priority: Any) -> None:
    answer = http.post("/v1/completions", json={"model": "tiny", "prompt": "a", "priority": priority})
    assert error_of(answer, 400)["param"] == "priority"


def test_lower_priorities_go_first(model: Path, tmp_path: Path) -> None:
    hold = tmp_path / "hold"
    hold.touch()
    ended: list[int] = []
    with (
        serving.serve(model, max_num_seqs=1, env={"FAKE_HOLD": str(hold), "FAKE_STEP_SECONDS": "0.05"}) as server,
        client(server) as http,
    ):
        server.wait_until_ready()

        def ask(priority: int) -> None:
            complete(http, "hello", max_tokens=5, priority=priority)
            ended.append(priority)

        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(ask, priority) for priority in (3, -7, 0, 1000)]
            serving.until(lambda: waiting(server) == 4)
            hold.unlink()
            for one in asked:
                one.result()
    assert ended == [-7, 0, 3, 1000]


def waiting(server: serving.ServerProcess) -> float:
    return server.metric("vllm:num_requests_running") + server.metric("vllm:num_requests_waiting")


# --- time


@pytest.mark.parametrize("timeout", [0, -1, 86_401, "1", 0.0001])
def test_a_wrong_timeout_is_refused(http: httpx.Client, timeout: Any) -> None:
    answer = http.post("/v1/completions", json={"model": "tiny", "prompt": "a", "timeout": timeout})
    assert error_of(answer, 400)["param"] == "timeout"


@pytest.mark.parametrize("flag", [0.2, 3600])
def test_a_request_ends_after_the_lower_of_both_times(model: Path, flag: float) -> None:
    fields = {"timeout": 3600 if flag == 0.2 else 0.2}
    env = {"FAKE_STEP_SECONDS": "0.01"}
    with serving.serve(model, env=env, request_timeout=flag, max_model_len=LONG) as server, client(server) as http:
        server.wait_until_ready()
        error = error_of(http.post("/v1/completions", json=ENDLESS | fields), 504)
        assert (error["code"], error["type"]) == ("timeout", "server_error")
        *some, last = events(http.post("/v1/completions", json=ENDLESS | fields | {"stream": True}).text)
        assert last["error"]["code"] == "timeout"
        assert some and all("choices" in event for event in some)
        serving.until(lambda: waiting(server) == 0)
        assert complete(http, "hello", timeout=60)["choices"][0]["text"] == "hello"


def test_whoever_waits_in_vain_gets_a_status_also_where_a_stream_was_asked_for(model: Path, tmp_path: Path) -> None:
    (hold := tmp_path / "hold").touch()
    with serving.serve(model, env={"FAKE_HOLD": str(hold)}, max_model_len=LONG) as server, client(server) as http:
        server.wait_until_ready()
        answer = http.post("/v1/completions", json=ENDLESS | {"stream": True, "timeout": 0.01})
        assert error_of(answer, 504)["code"] == "timeout"


# --- errors of the engine


def test_the_kind_of_an_error_decides_the_status_and_no_other_request_is_hurt(model: Path) -> None:
    answers = {
        "internal": (500, "engine_error"),
        "invalid": (400, "invalid_request"),
        "out_of_memory": (503, "out_of_memory"),
        "timeout": (504, "timeout"),
    }
    with serving.serve(model, env={"FAKE_ERROR_TOKEN": "300"}) as server, client(server) as http:
        server.wait_until_ready()
        for index, kind in enumerate(get_args(ErrorKind)):
            status, code = answers[kind]
            body = {"model": "tiny", "prompt": [300 + index, 310], "n": 2}
            error = error_of(http.post("/v1/completions", json=body), status)
            assert (error["message"], error["code"]) == ("the step failed", code)
            last = events(http.post("/v1/completions", json=body | {"stream": True}).text)[-1]
            assert last["error"] == error
        assert complete(http, "hello")["choices"][0]["text"] == "hello"
        serving.until(lambda: waiting(server) == 0)


# --- the queue


@contextlib.contextmanager
def full(model: Path, hold: Path, **config: Any) -> Iterator[tuple[serving.ServerProcess, httpx.Client]]:
    """A server for three answers at once, two of which wait, that has three to answer, and does not get on."""
    hold.touch()
    with (
        serving.serve(model, env={"FAKE_HOLD": str(hold)}, max_num_seqs=1, max_queued_requests=2, **config) as server,
        client(server) as http,
        ThreadPoolExecutor(3) as pool,
    ):
        serving.until(lambda: http.get("/ready").status_code == 200)
        asked: list[Future[httpx.Response]] = []
        for n in (2, 1):
            asked.append(pool.submit(http.post, "/v1/completions", json={"model": "tiny", "prompt": "hello", "n": n}))
            serving.until(lambda n=n: waiting(server) == (2 if n == 2 else 3))
        yield server, http
        hold.unlink(missing_ok=True)
        for one in asked:
            assert one.result().status_code == 200


def test_past_the_bound_requests_are_refused_until_there_is_room(model: Path, tmp_path: Path) -> None:
    with full(model, tmp_path / "hold") as (server, http):
        for body in ({"model": "tiny", "prompt": "a"}, {"model": "tiny", "prompt": "a", "stream": True}):
            answer = http.post("/v1/completions", json=body)
            error = error_of(answer, 429)
            assert (error["code"], error["type"]) == ("queue_full", "rate_limit_error")
            assert 1 <= int(answer.headers["retry-after"]) <= 60
        answer = http.post("/v1/chat/completions", json={"model": "tiny", "messages": [HELLO]})
        assert error_of(answer, 429)["code"] == "queue_full"
        assert http.get("/ready").status_code == 200
        (tmp_path / "hold").unlink()
        serving.until(lambda: waiting(server) == 0)
        assert complete(http, "hello")["choices"][0]["text"] == "hello"


def test_a_full_server_does_not_tokenize(model: Path, tmp_path: Path) -> None:
    with full(model, tmp_path / "hold") as (_, http):
        # Were it looked at first, it would be refused for what it holds.
        answer = http.post("/v1/completions", json={"model": "tiny", "prompt": [400_000]})
        assert error_of(answer, 429)["code"] == "queue_full"


def test_a_request_wider_than_the_bound_is_told_so(model: Path) -> None:
    with serving.serve(model, max_num_seqs=1, max_queued_requests=2) as server, client(server) as http:
        server.wait_until_ready()
        answer = http.post("/v1/completions", json={"model": "tiny", "prompt": "a", "n": 4})
        assert "4 answers" in error_of(answer, 400)["message"]
        assert len(complete(http, "a", n=3)["choices"]) == 3


def test_a_request_wider_than_the_bound_is_told_so_by_a_full_server_too(model: Path, tmp_path: Path) -> None:
    with full(model, tmp_path / "hold") as (_, http):
        for fields in ({"n": 4}, {"n": 2, "prompt": ["a", "b"]}):
            answer = http.post("/v1/completions", json={"model": "tiny", "prompt": "a", **fields})
            assert error_of(answer, 400)["code"] == "too_many_choices"
        answer = http.post("/v1/chat/completions", json={"model": "tiny", "messages": [HELLO], "n": 4})
        assert error_of(answer, 400)["code"] == "too_many_choices"


def test_a_full_server_does_not_read_a_large_body(model: Path, tmp_path: Path) -> None:
    with full(model, tmp_path / "hold") as (_, http):
        # Were it read first, it would be refused for what it is.
        answer = http.post("/v1/completions", content=b"{" * 100_000, headers={"content-type": "application/json"})
        assert error_of(answer, 429)["code"] == "queue_full"


def test_the_place_of_a_request_that_is_refused_or_leaves_is_free_again(model: Path) -> None:
    with (
        serving.serve(model, max_num_seqs=1, max_queued_requests=2, max_model_len=LONG) as server,
        client(server) as http,
    ):
        server.wait_until_ready()
        for _ in range(5):
            error_of(http.post("/v1/completions", json={"model": "tiny", "prompt": [400_000], "n": 3}), 400)
            with http.stream("POST", "/v1/completions", json=ENDLESS | {"n": 3, "stream": True}) as answer:
                assert next(answer.iter_lines()).startswith("data: ")
            serving.until(lambda: waiting(server) == 0)
        assert len(complete(http, "hello", n=3)["choices"]) == 3


def test_as_many_at_once_as_are_allowed_are_all_answered(model: Path) -> None:
    barrier = threading.Barrier(24)
    with serving.serve(model, max_num_seqs=4, max_queued_requests=20) as server, client(server) as http:
        server.wait_until_ready()

        def ask(index: int) -> str:
            barrier.wait()
            text: str = complete(http, f"number {index}")["choices"][0]["text"]
            return text

        with ThreadPoolExecutor(24) as pool:
            assert list(pool.map(ask, range(24))) == [f"number {index}" for index in range(24)]
