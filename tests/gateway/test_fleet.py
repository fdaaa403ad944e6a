"""Three real servers behind a real gateway: replicas die and drain under their streams, and no client notices."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import httpx
import openai
import pytest

import serving
from gateways import Stream
from serving import ServerProcess

DEMO: Final = Path(__file__).resolve().parents[2] / "server" / "octavo_server" / "demo_model"
QUESTIONS: Final = ["What is a page?", "What is paged attention?", "What is a block table?", "What is Octavo?"]
SCHEMA: Final = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 40}}, "required": ["name"]}
TOOLS: Final = [{"type": "function", "function": {"name": "look_up", "description": "Look up.", "parameters": SCHEMA}}]
CLIENT: Final = {"Authorization": "Bearer alices"}


@dataclass
class Fleet:
    """Servers, the file that names them, and the gateway before them."""

    directory: Path
    stack: ExitStack
    servers: dict[str, ServerProcess] = field(default_factory=dict)
    url: str = ""

    def start(self, *names: str) -> None:
        for name in names:
            keys = {"api_key": ["servers"], "gateway_api_key_file": str(self.directory / "own")}
            server = serving.serve(DEMO, fake=False, env={"OMP_NUM_THREADS": "1"}, served_model_name=["demo"], **keys)
            self.servers[name] = self.stack.enter_context(server)
        for name in names:
            self.servers[name].wait_until_ready()

    def publish(self, *draining: str, without: tuple[str, ...] = ()) -> None:
        replicas = [
            {"id": name, "url": server.url, "draining": name in draining}
            for name, server in self.servers.items()
            if name not in without
        ]
        new = self.directory / "new"
        new.write_text(json.dumps({"models": {"demo": replicas}}))
        new.replace(self.directory / "endpoints")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    directory = tmp_path_factory.mktemp("fleet")
    (directory / "own").write_text("gateways-own\n")
    (directory / "keys").write_text("alice: alices\n")
    with ExitStack() as stack:
        found = Fleet(directory, stack)
        found.start("a", "b", "c")
        found.publish()
        process = stack.enter_context(running_gateway(directory))
        line = process.stdout.readline() if process.stdout is not None else ""
        assert line.startswith("octavo gateway: listening on "), line
        found.url = line.split()[-1]
        yield found
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def running_gateway(directory: Path) -> "subprocess.Popen[str]":
    flags = ["--port", "0", "--endpoints-file", "endpoints", "--api-key-file", "keys", "--replica-api-key-file", "own"]
    command = [
        sys.executable,
        "-m",
        "octavo_cli",
        "gateway",
        *flags,
        "--drain-delay-seconds",
        "0",
        "--log-requests",
        "none",
    ]
    with tempfile.TemporaryFile() as log:
        return subprocess.Popen(command, cwd=directory, stdout=subprocess.PIPE, stderr=log, text=True)


def chat(number: int) -> dict[str, Any]:
    """Half of them greedy, half of them with chance; calls, log-probabilities, completions with an echo and without."""
    body: dict[str, Any] = {
        "model": "demo",
        "messages": [{"role": "user", "content": f"{QUESTIONS[number % 4]} ({number})"}],
        "max_tokens": 48,
        "min_tokens": 40,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if number % 10 == 3:
        body |= {"tools": TOOLS, "tool_choice": "required", "min_tokens": 0, "max_tokens": 60}
    if number % 5 == 1:
        body["prompt"] = body.pop("messages")[0]["content"]
        body["echo"] = number % 10 == 1
    if number % 10 == 4:
        body |= {"logprobs": True, "top_logprobs": 1}
    return body | ({"temperature": 0} if number % 2 else {"temperature": 1.0, "seed": number})


async def ask(client: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> tuple[int, str]:
    route = "completions" if "prompt" in body else "chat/completions"
    async with client.post(f"{url}/v1/{route}", json=body, headers=CLIENT) as answer:
        return answer.status, await answer.text()


def told(text: str) -> Any:
    """All that a client makes of a stream, but for how it was cut into events."""
    stream = Stream.of(text)
    usage = [(each["prompt_tokens"], each["completion_tokens"]) for each in stream.usages]
    content = stream.text, stream.calls, stream.logprobs
    return content, stream.roles, stream.finishes, usage, stream.errors, stream.done, len(stream.ids), stream.extra


async def test_of_100_streams_none_notices_that_one_replica_is_killed_and_one_drained(fleet: Fleet) -> None:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as client:
        undisturbed = await asyncio.gather(*(ask(client, fleet.url, chat(number)) for number in range(100)))
        assert {status for status, _ in undisturbed} == {200}
        tasks = [asyncio.create_task(ask(client, fleet.url, chat(number))) for number in range(100)]
        await asyncio.to_thread(serving.until, lambda: running(fleet, "a") and running(fleet, "b"))
        os.kill(fleet.servers["b"].engine_pid(), signal.SIGKILL)
        fleet.servers["b"].process.kill()
        fleet.publish("a")
        fleet.servers["a"].process.send_signal(signal.SIGTERM)
        disturbed = await asyncio.gather(*tasks)
        figures = await metrics(client, fleet.url)
    assert [told(text) for _, text in disturbed] == [told(text) for _, text in undisturbed]
    assert {status for status, _ in disturbed} == {200}
    assert figures["octavo:gateway_resumed_total"] > 0
    assert figures["octavo:gateway_lost_total"] == 0
    await asyncio.to_thread(serving.end, fleet.servers.pop("a").process)
    await asyncio.to_thread(serving.end, fleet.servers.pop("b").process)
    fleet.publish()


def running(fleet: Fleet, name: str) -> bool:
    server = fleet.servers[name]
    text = httpx.get(f"{server.url}/metrics", headers={"Authorization": "Bearer servers"}).text
    tokens = [line for line in text.splitlines() if line.startswith("vllm:generation_tokens_total")]
    return serving_count(text) > 3 and float(tokens[0].split()[-1]) > 0


def serving_count(text: str) -> float:
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("vllm:num_requests_running"))


async def metrics(client: aiohttp.ClientSession, url: str) -> dict[str, float]:
    async with client.get(f"{url}/metrics", headers=CLIENT) as answer:
        text = await answer.text()
    figures: dict[str, float] = {"octavo:gateway_lost_total": 0.0}
    for line in text.splitlines():
        if not line.startswith("#"):
            name = line.partition("{")[0]
            figures[name] = figures.get(name, 0.0) + float(line.split()[-1])
    return figures


def test_openais_client_works_through_the_gateway(fleet: Fleet) -> None:
    with openai.OpenAI(base_url=f"{fleet.url}/v1", api_key="alices") as client:
        assert [model.id for model in client.models.list()] == ["demo"]
        question: Any = [{"role": "user", "content": "What is a page?"}]
        whole = client.chat.completions.create(model="demo", messages=question, max_tokens=20, temperature=0)
        pieces = client.chat.completions.create(
            model="demo", messages=question, max_tokens=20, temperature=0, stream=True
        )
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == whole.choices[0].message.content
        first = client.responses.create(model="demo", input="My name is Zelda.", temperature=0)
        second = client.responses.create(
            model="demo", input="What is my name?", previous_response_id=first.id, temperature=0
        )
        assert "Zelda" in second.output_text
        assert client.responses.retrieve(first.id).output_text == first.output_text
        client.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(first.id)
        with pytest.raises(openai.NotFoundError, match="served here: demo"):
            client.chat.completions.create(model="none", messages=question)


QUESTION: Final = [{"role": "user", "content": "What is a page?"}]
ASKED: Final[list[tuple[str, dict[str, Any]]]] = [
    ("/v1/chat/completions", {"messages": QUESTION, "max_tokens": 12, "temperature": 0, "n": 2, "seed": 1}),
    ("/v1/chat/completions", {"messages": QUESTION, "max_tokens": 12, "temperature": 0, "return_token_ids": True}),
    ("/v1/completions", {"prompt": ["A page", "A block"], "max_tokens": 12, "temperature": 1, "seed": 5, "n": 2}),
    ("/v1/completions", {"prompt": [1, 2, 3], "max_tokens": 5, "temperature": 0, "logprobs": 1, "echo": True}),
    ("/v1/completions", {"prompt": "A page", "max_tokens": 12, "stream": True, "temperature": 0}),
    ("/v1/chat/completions", {"messages": QUESTION, "max_tokens": 12, "stream": True, "n": 2, "temperature": 0}),
    ("/v1/embeddings", {"input": ["a", "b"]}),
    ("/tokenize", {"messages": QUESTION}),
    ("/detokenize", {"tokens": [1, 2, 3]}),
    ("/v1/responses/input_tokens", {"input": "hello"}),
    ("/v1/chat/completions", {"messages": QUESTION, "temperature": 3}),
    ("/v1/chat/completions", {"messages": [], "nonsense": True}),
    ("/v1/completions", {"prompt": {"x": 1}}),
    ("/v1/responses", {"input": 7}),
]


@pytest.mark.parametrize(("path", "fields"), ASKED)
def test_every_route_answers_as_the_server_itself_does(fleet: Fleet, path: str, fields: dict[str, Any]) -> None:
    body = {"model": "demo", **fields}
    server = next(iter(fleet.servers.values()))
    direct = httpx.post(f"{server.url}{path}", json=body, headers={"Authorization": "Bearer servers"})
    through = httpx.post(f"{fleet.url}{path}", json=body, headers=CLIENT)
    assert (through.status_code, through.headers["content-type"]) == (
        direct.status_code,
        direct.headers["content-type"],
    )
    assert alike(through.text) == alike(direct.text)


def alike(text: str) -> str:
    """An answer but for its name, its time, and what the cache had; a stream but for how it was cut into events."""
    text = re.sub(r'"(id|created|cached_tokens)":("[^"]*"|\d+)', "", text)
    if not text.startswith("data: "):
        return text
    choices = re.findall(r'"index":(\d).*?"(?:content|text)":"((?:[^"\\]|\\.)*)"', text)
    return repr({index: "".join(piece for at, piece in choices if at == index) for index, _ in choices})


async def test_scaled_to_zero_requests_wait_and_are_answered_when_a_replica_is_there(fleet: Fleet) -> None:
    fleet.publish(without=tuple(fleet.servers))
    async with aiohttp.ClientSession() as client:

        async def until_told(name: str, value: float) -> None:
            while (await metrics(client, fleet.url))[name] != value:  # noqa: ASYNC110 (it is another process)
                await asyncio.sleep(0.05)

        await until_told("octavo:gateway_replicas", 0)
        task = asyncio.create_task(ask(client, fleet.url, chat(1)))
        await until_told("octavo:gateway_held_requests", 1)
        fleet.publish()
        status, text = await task
    assert status == 200
    assert Stream.of(text).done
