"""Keys, tenants, limits and bounds at the gateway's door."""

import asyncio
import io
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from gateways import FakeReplica, gateway_over, until
from octavo_common import logs
from octavo_gateway.asked import ROUTES
from octavo_gateway.bodies import MAX_BODY_BYTES

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}
ALICE, BOB = {"Authorization": "Bearer alices"}, {"Authorization": "Bearer bobs"}


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(
        "- {name: alice, key: alices, requests_per_minute: 2}\n- {name: bob, key: bobs}\n"
        "- {name: bob, key: bobs-next}\n"
        "- {name: carol, key: carols, tokens_per_minute: 1000}\n- {name: dave, key: daves, concurrent_requests: 1}\n"
    )
    return path


async def test_every_route_needs_a_key_but_those_for_probes(keys: Path) -> None:
    async with gateway_over(FakeReplica("a"), api_key_file=(keys,)) as gateway:
        for path in (*ROUTES, "/v1/models", "/v1/models/m", "/metrics", "/version", "/", "/v1/responses/resp_x", "/no"):
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic bobs"}):
                async with gateway.client.get(gateway.url + path, headers=headers) as answer:
                    assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer"), path
        for path in ("/health", "/ready"):
            async with gateway.client.get(gateway.url + path) as answer:
                assert answer.status == 200
        assert (await gateway.read(CHAT, **BOB))[0] == 200
        assert (await gateway.read(CHAT, Authorization="Bearer bobs-next"))[0] == 200


async def test_replicas_see_the_gateways_key_and_no_clients(keys: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("gateways-own\n")
    replica = FakeReplica("a", needs_key="gateways-own")
    async with gateway_over(replica, api_key_file=(keys,), replica_api_key_file=own) as gateway:
        assert (await gateway.read(CHAT, **BOB, **{"X-Request-Id": "mine", "Cookie": "secret=1"}))[0] == 200
        own.write_text("another\n")
        gateway.gateway.read_replica_key()
        status, text = await gateway.read(CHAT, **BOB)
        assert (status, "--replica-api-key-file" in text) == (502, True)
    (_, headers), _ = replica.asked
    assert headers["x-request-id"] == "mine"
    assert not headers.keys() & {"cookie", "user-agent"}


async def test_without_keys_of_ours_clients_keys_are_passed_on() -> None:
    async with gateway_over(FakeReplica("a", needs_key="theirs")) as gateway:
        assert (await gateway.read(CHAT, Authorization="Bearer theirs"))[0] == 200
        assert (await gateway.read(CHAT, Authorization="Bearer other"))[0] == 401


async def test_tenants_share_no_pages_whatever_salt_they_say(keys: Path) -> None:
    replica = FakeReplica("a")
    async with gateway_over(replica, api_key_file=(keys,)) as gateway:
        for headers in (BOB, {"Authorization": "Bearer bobs-next"}, ALICE):
            await gateway.read(CHAT, **headers)
        salts = [body["cache_salt"] for body in replica.bodies]
        assert salts[0] == salts[1] != salts[2]
        await gateway.read({**CHAT, "cache_salt": salts[2]}, **BOB)
        await gateway.read({**CHAT, "cache_salt": "mine"}, **BOB)
        await gateway.read({**CHAT, "cache_salt": "mine"}, **BOB)
        said = [body["cache_salt"] for body in replica.bodies[3:]]
        assert salts[2] not in said
        assert said[1] == said[2] not in (salts[0], "mine")


async def test_past_its_requests_a_key_is_told_when_to_come_back_and_others_are_not_touched(keys: Path) -> None:
    async with gateway_over(FakeReplica("a"), api_key_file=(keys,)) as gateway:
        for left in (1, 0):
            async with gateway.post(CHAT, **ALICE) as answer:
                assert (answer.status, answer.headers["x-ratelimit-remaining-requests"]) == (200, str(left))
        async with gateway.post(CHAT, **ALICE) as answer:
            assert answer.status == 429
            assert 1 <= int(answer.headers["Retry-After"]) <= 60
            assert (await answer.json())["error"]["type"] == "requests"
        assert (await gateway.read(CHAT, **BOB))[0] == 200


async def test_tokens_are_reserved_and_what_is_not_used_comes_back(keys: Path) -> None:
    carol = {"Authorization": "Bearer carols"}
    async with gateway_over(FakeReplica("a"), api_key_file=(keys,)) as gateway:
        for _ in range(5):  # 700 are reserved each time, and a dozen used
            async with gateway.post({**CHAT, "max_tokens": 700, "stream": True}, **carol) as answer:
                assert answer.status == 200
                await answer.read()
        async with gateway.post({**CHAT, "max_tokens": 2000}, **carol) as answer:
            assert (answer.status, answer.headers["x-should-retry"]) == (429, "false")


async def test_a_key_may_have_so_many_requests_open(keys: Path) -> None:
    replica, dave = FakeReplica("a", gate=asyncio.Event()), {"Authorization": "Bearer daves"}
    async with gateway_over(replica, api_key_file=(keys,)) as gateway:
        task = asyncio.create_task(gateway.read(CHAT, **dave))
        await until(lambda: replica.running)
        assert (await gateway.read(CHAT, **dave))[0] == 429
        assert replica.gate is not None
        replica.gate.set()
        assert (await task)[0] == 200
        assert (await gateway.read(CHAT, **dave))[0] == 200


async def test_tokens_are_counted_by_key_and_model(keys: Path) -> None:
    async with gateway_over(FakeReplica("a"), api_key_file=(keys,)) as gateway:
        for stream in (True, False):
            assert (await gateway.read({**CHAT, "stream": stream}, **BOB))[0] == 200
        labels = {"key": "bob", "model": "m"}
        assert gateway.metric("octavo:gateway_tokens_total", **labels, kind="prompt") == 6
        assert gateway.metric("octavo:gateway_tokens_total", **labels, kind="completion") == 16
        assert gateway.metric("octavo:gateway_requests_total", **labels, status="200") == 2


async def test_responses_are_found_by_their_tenant_at_the_replica_that_keeps_them(keys: Path) -> None:
    replicas = [FakeReplica(name) for name in "abc"]
    async with gateway_over(*replicas, api_key_file=(keys,)) as gateway:
        async with gateway_over() as second:  # another gateway, which has seen nothing
            second.gateway.access = gateway.gateway.access
            second.publish(*replicas)
            for number in range(6):
                asked = {"model": "m", "input": f"question {number}"}
                async with gateway.post(asked, "/v1/responses", **BOB) as answer:
                    name = (await answer.json())["id"]
                async with second.client.get(f"{second.url}/v1/responses/{name}", headers=BOB) as answer:
                    assert (await answer.json())["text"] == f"question {number}"
                follow = {"model": "m", "input": "and?", "previous_response_id": name}
                assert (await second.read(follow, "/v1/responses", **BOB))[0] == 200
                holder = next(replica for replica in replicas if name in replica.stored)
                assert holder.bodies[-1]["previous_response_id"] == name
                async with second.client.get(f"{second.url}/v1/responses/{name}", headers=ALICE) as answer:
                    assert answer.status in (404, 429)
        gateway.publish(*(replica for replica in replicas if name not in replica.stored))
        status, text = await gateway.read(follow, "/v1/responses", **BOB)
        assert (status, "previous_response_not_found" in text) == (400, True)
        assert "send the conversation's items" in text


async def test_a_broken_stream_of_a_response_ends_with_an_error_event() -> None:
    async with gateway_over(FakeReplica("a", dies_after=1), FakeReplica("b", dies_after=1)) as gateway:
        status, text = await gateway.read({"model": "m", "input": "hello", "stream": True}, "/v1/responses")
        assert status == 200
        assert text.rstrip().rpartition("\n\n")[2].startswith('event: error\ndata: {"type":"error","sequence_number":2')


async def test_bodies_and_headers_are_bounded() -> None:
    async with gateway_over(FakeReplica("a")) as gateway:
        url = f"{gateway.url}/v1/chat/completions"
        async with gateway.client.post(url, data=io.BytesIO(b"x" * (MAX_BODY_BYTES + 1))) as answer:
            assert answer.status == 413
        async with gateway.client.post(url, data=b"{}", headers={"X-Long": "x" * 20_000}) as answer:
            assert answer.status in (400, 431)
        async with gateway.client.post(url, data=b"x", headers={"Content-Encoding": "gzip"}) as answer:
            assert answer.status in (400, 415)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b"nonsense", b'{"model":7}', b'{"model":null}', b"{}", b"\xff", b"[" * 5000]
)
async def test_what_is_no_request_is_refused_as_openai_does(body: bytes) -> None:
    async with gateway_over(FakeReplica("a")) as gateway:
        for path in ROUTES:
            async with gateway.client.post(gateway.url + path, data=body) as answer:
                assert (answer.status, set((await answer.json())["error"])) == (
                    400,
                    {"message", "type", "param", "code"},
                )


async def test_models_are_listed_together_with_what_replicas_say_of_them() -> None:
    replica = FakeReplica("a")
    async with gateway_over(replica) as gateway:
        gateway.gateway.publish({"m": (replica.endpoint,), "asleep": ()})
        pool = gateway.gateway.pools["m"]
        await gateway.gateway.scraper._ask(pool, pool.replicas["a"])
        async with gateway.client.get(f"{gateway.url}/v1/models") as answer:
            asleep, awake = (await answer.json())["data"]
        assert (asleep["id"], awake["id"], awake["max_model_len"]) == ("asleep", "m", 77)
        for name, status in (("m", 200), ("asleep", 200), ("none", 404)):
            async with gateway.client.get(f"{gateway.url}/v1/models/{name}") as answer:
                assert answer.status == status


async def test_the_log_tells_who_asked_for_what_and_nothing_that_was_said(
    keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    lines = logging.StreamHandler(stream)
    lines.setFormatter(logs.JsonLines())
    monkeypatch.setattr(logging.root, "handlers", [lines])
    async with gateway_over(FakeReplica("a"), api_key_file=(keys,)) as gateway:
        logging.getLogger("octavo.access").setLevel(logging.INFO)
        said = {**CHAT, "messages": [{"role": "user", "content": "a secret"}]}
        assert (await gateway.read(said, **BOB, **{"X-Request-Id": "one"}))[0] == 200

        def fail(*_: object) -> None:
            raise ValueError(said["messages"])

        monkeypatch.setattr("octavo_gateway.handler.Delivery", fail)
        assert (await gateway.read(said, **BOB, **{"X-Request-Id": "two"}))[0] == 500
    first, trace, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (first["request_id"], first["key"], first["model"], first["replica"]) == ("one", "bob", "m", "a")
    assert (first["prompt_tokens"], first["completion_tokens"], first["status"]) == (3, 8, 200)
    assert (trace["request_id"], "ValueError" in trace["exception"]) == ("two", True)
    assert (second["status"], second["error"]) == (500, "server_error")
    assert "secret" not in stream.getvalue()
    assert "bobs" not in stream.getvalue()


@pytest.mark.parametrize(
    "rest",
    [
        b"transfer-encoding: chunked\r\n\r\nnonsense\r\n",
        b'transfer-encoding: chunked\r\n\r\n5\r\n{"a":nonsense\r\n',
        b"content-length: x\r\n\r\n",
        b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello",
    ],
)
async def test_what_is_no_http_is_refused_and_the_connection_closed(rest: bytes) -> None:
    async with gateway_over(FakeReplica("a")) as gateway:
        port = int(gateway.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n" + rest)
        told = await reader.read()
        assert told.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400"))
        writer.close()
        await until(lambda: not gateway.gateway.open)
