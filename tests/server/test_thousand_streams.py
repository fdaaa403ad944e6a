"""A thousand streams at a time on one API process, and what a process does that may not have so many files open."""

import asyncio
import json
import resource
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

import serving

STREAMS = 1000
DEAF = 50  # of them; they read nothing before all others have ended
TOKENS = 40
BYTES_A_STREAM = 128 * 1024  # of the API process, the kernel's buffers not counted


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return serving.text_model(tmp_path_factory.mktemp("thousand") / "model")


@pytest.fixture
def sockets() -> Iterator[None]:
    """This process has the other end of each connection."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < STREAMS + 200:
        pytest.skip(f"this machine allows {hard} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, STREAMS + 200), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Client:
    """One stream."""

    def __init__(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.prompt = f"number {number}, "
        self._reader, self._writer = reader, writer

    @property
    def deaf(self) -> bool:
        """Whether it reads nothing."""
        return not self._writer.transport.is_reading()

    @deaf.setter
    def deaf(self, deaf: bool) -> None:
        if deaf != self.deaf:
            (self._writer.transport.pause_reading if deaf else self._writer.transport.resume_reading)()

    @classmethod
    async def connect(cls, url: str, number: int) -> "Client":
        place = urlsplit(url)
        return cls(number, *await asyncio.open_connection(place.hostname, place.port))

    async def ask(self) -> None:
        fields = {"model": "tiny", "prompt": self.prompt, "max_tokens": TOKENS, "ignore_eos": True, "stream": True}
        body = json.dumps(fields).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        self._writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
        await self._writer.drain()

    async def answer(self) -> str:
        """The text, once the stream has ended as it should."""
        self.deaf = False
        assert (await self._reader.readline()).startswith(b"HTTP/1.1 200")
        while (await self._reader.readline()).strip():
            pass
        body = b""
        while size := int(await self._reader.readline(), 16):
            body += (await self._reader.readexactly(size + 2))[:-2]
        self._writer.close()
        *events, done, end = body.decode().split("\n\n")
        assert (done, end) == ("data: [DONE]", "")
        choices = [json.loads(event.removeprefix("data: "))["choices"][0] for event in events]
        assert [choice["finish_reason"] for choice in choices[:-1]] == [None] * (len(choices) - 1)
        assert choices[-1]["finish_reason"] == "length"
        return "".join(choice["text"] for choice in choices)


def resident_bytes(pid: int) -> int:
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) * 1024


def limit_of(pid: int) -> int:
    """Files that a process may have open."""
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("Max open files")]
    return int(line.split()[3])


async def until(server: serving.ServerProcess, name: str, wanted: float) -> None:
    async with asyncio.timeout(serving.PATIENCE_SECONDS):
        while await asyncio.to_thread(server.metric, name) != wanted:  # noqa: ASYNC110 (it is another process's)
            await asyncio.sleep(0.05)


def test_a_thousand_streams_at_once_are_answered_whole_and_each_with_its_own(
    model: Path, tmp_path: Path, sockets: None
) -> None:
    hold = tmp_path / "hold"
    hold.touch()
    env = {"FAKE_HOLD": str(hold), "FAKE_STEP_SECONDS": "0.02", "OPEN_FILES": f"200:{STREAMS + 200}"}
    with serving.serve(model, env=env, max_num_seqs=STREAMS, max_queued_requests=0) as server:
        server.wait_until_ready()
        assert limit_of(server.process.pid) == STREAMS + 200  # it has raised what it was given
        assert "files open" not in server.log

        async def crowd() -> None:
            first = await Client.connect(server.url, 0)  # what only a first request takes is not meant here
            await first.ask()
            await until(server, "vllm:num_requests_running", 1)
            before = resident_bytes(server.process.pid)
            clients = [await Client.connect(server.url, number) for number in range(1, STREAMS)]
            for client in clients:
                await client.ask()
            await until(server, "vllm:num_requests_running", STREAMS)
            assert (resident_bytes(server.process.pid) - before) / STREAMS < BYTES_A_STREAM
            clients = [first, *clients]
            deaf, others = clients[:DEAF], clients[DEAF:]
            for client in deaf:
                client.deaf = True
            hold.unlink()
            async with asyncio.timeout(serving.PATIENCE_SECONDS):
                answers = await asyncio.gather(*(client.answer() for client in others))
                answers = [*await asyncio.gather(*(client.answer() for client in deaf)), *answers]
            for client, answer in zip(clients, answers, strict=True):
                assert answer.startswith(client.prompt) and answer == (client.prompt * TOKENS)[: len(answer)]

        asyncio.run(crowd())
        assert server.metric("vllm:request_success_total", finished_reason="length") == STREAMS
        assert server.metric("vllm:num_requests_running") == 0
        assert "ERROR" not in server.log


def test_past_the_limit_of_open_files_clients_wait_or_are_let_go_and_the_server_lives_on(model: Path) -> None:
    with serving.serve(model, env={"OPEN_FILES": "80:200"}) as server:
        server.wait_until_ready()
        assert "may have 200 files open" in server.log and "ulimit" in server.log
        place = urlsplit(server.url)
        connections = [socket.create_connection((place.hostname, place.port)) for _ in range(300)]
        answered = 0
        for connection in connections:
            connection.settimeout(0.2)
            try:
                connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
                answered += connection.recv(12) == b"HTTP/1.1 200"
            except OSError:
                pass
            finally:
                connection.close()
        assert 30 < answered < len(connections)
        assert httpx.get(f"{server.url}/health").status_code == 200
        body = {"model": "tiny", "prompt": "hello"}
        assert httpx.post(f"{server.url}/v1/completions", json=body).json()["choices"][0]["text"] == "hello"
