"""What `octavo gateway` costs: against a direct connection and nginx as a plain reverse proxy, in one run.

    python benchmarks/gateway.py [--requests 400] [--streams 128] [--rate 50] [--seconds 6] [--prompt 2000] [--json]

The replica is a small program of its own that answers at once, in the form of `octavo serve`'s events, so that what is
timed is the way. *First token*: one request at a time, the three ways in turns; of gateway and nginx it is told what
they add. *Chunks*: many streams at a steady pace; each proxy's CPU time, from /proc, tells how many chunks a second a
core could pass on: that holds on a busy machine, too. nginx is left out where it is not installed.
"""

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
WAYS: Final = ("direct", "gateway", "nginx")
NGINX: Final = """
worker_processes 1; daemon off; pid {directory}/pid; error_log {directory}/error;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/f; uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;
  upstream replica {{ server 127.0.0.1:{replica}; keepalive 256; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://replica; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; client_max_body_size 16m; client_body_buffer_size 16m;
    }}
  }}
}}
"""


class Replica(asyncio.Protocol):
    """Answers each request with `max_tokens` events, `seed` of them a second; 0: all at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A connection."""
        self.transport, self.data = transport, b""
        self.task: asyncio.Task[None] | None = None

    def data_received(self, data: bytes) -> None:
        """A part of a request."""
        self.data += data
        head, found, body = self.data.partition(b"\r\n\r\n")
        if not found:
            return
        lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        if not lengths:
            self.data = b""
            self._write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
        elif len(body) >= int(lengths[0]):
            self.data = b""
            self.task = asyncio.create_task(self._answer(json.loads(body)))

    def _write(self, data: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(data)  # type: ignore[attr-defined]

    async def _answer(self, body: dict[str, Any]) -> None:
        ids = ',"token_ids":[1234]' if body.get("return_token_ids") else ""
        pause = 1 / body["seed"] if body["seed"] else 0
        choice = '{"index":0,"delta":{"content":" word"},"finish_reason":null,"logprobs":null' + ids + "}"
        name = '"id":"chatcmpl-0123456789abcdef0123456789abcdef","created":1790000000,"model":"m"'
        event = _chunk(f'data: {{{name},"choices":[{choice}],"object":"chat.completion.chunk"}}\n\n'.encode())
        due = time.monotonic()
        self._write(HEAD + event)
        for _ in range(body["max_tokens"] - 1):
            if pause:
                due += pause
                await asyncio.sleep(max(0.0, due - time.monotonic()))
            self._write(event)
        self._write(_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def serve_replica(port: int) -> None:
    """The replica's process."""
    server = await asyncio.get_running_loop().create_server(Replica, "127.0.0.1", port)
    await server.serve_forever()


def free_port() -> int:
    """One that was free a moment ago."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def started(directory: Path) -> Iterator[dict[str, tuple[int, int]]]:
    """Port and process of each way."""
    ports = {way: free_port() for way in WAYS}
    endpoints = directory / "endpoints"
    endpoints.write_text(json.dumps({"models": {"m": [{"id": "r", "url": f"http://127.0.0.1:{ports['direct']}"}]}}))
    gateway = ["-m", "octavo_cli", "gateway", "--port", str(ports["gateway"]), "--endpoints-file", str(endpoints)]
    commands = {
        "direct": [sys.executable, __file__, "--replica", str(ports["direct"])],
        "gateway": [sys.executable, *gateway, "--log-requests", "errors"],
    }
    if (nginx := shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")) is not None:
        conf = directory / "nginx.conf"
        conf.write_text(NGINX.format(directory=directory, replica=ports["direct"], port=ports["nginx"]))
        commands["nginx"] = [nginx, "-c", str(conf), "-e", str(directory / "error")]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    processes = {way: subprocess.Popen(command, **quiet) for way, command in commands.items()}
    try:
        for way in processes:
            _wait_for(ports[way])
        yield {way: (ports[way], process.pid) for way, process in processes.items()}
    finally:
        for process in processes.values():
            process.send_signal(signal.SIGINT)
        for process in processes.values():
            process.wait(20)


def _wait_for(port: int) -> None:
    for _ in range(200):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise TimeoutError(f"nothing listens at port {port}")


def cpu_seconds(pid: int) -> float:
    """Of a process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return own + sum(cpu_seconds(int(child)) for child in children)


def request(prompt: str, tokens: int, rate: float) -> bytes:
    """A chat. The pace stands in `seed`, which a gateway passes on as it is."""
    message = {"role": "user", "content": prompt}
    body = {"model": "m", "messages": [message], "stream": True, "max_tokens": tokens, "seed": int(rate)}
    data = json.dumps(body).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json"
    return f"{head}\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data


class Client:
    """One connection, used again and again."""

    @classmethod
    async def to(cls, port: int) -> "Client":
        """Connected to a port."""
        client = cls()
        client.reader, client.writer = await asyncio.open_connection("127.0.0.1", port, limit=2**22)
        return client

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def stream(self, data: bytes) -> tuple[float, int]:
        """(seconds to the first event, events) of one answer."""
        begin = time.perf_counter()
        self.writer.write(data)
        rest = await self.reader.readuntil(b"data: ")
        first = time.perf_counter() - begin
        count = 1
        while not rest.endswith(b"0\r\n\r\n"):
            piece = await self.reader.read(2**16)
            if not piece:
                raise ConnectionError("the stream broke")
            rest = (rest + piece)[-6:] if b"0\r\n\r\n" in piece[-6:] else piece[-6:]
            count += piece.count(b"data: ")
        return first, count


async def first_tokens(ways: dict[str, tuple[int, int]], count: int, prompt: int) -> dict[str, list[float]]:
    """Seconds to the first event, in turns."""
    clients = {way: await Client.to(port) for way, (port, _) in ways.items()}
    found: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(count + 20):
        data = request(f"{number} " + "word " * (prompt // 5), 2, 0)
        for way, client in clients.items():
            seconds, _ = await client.stream(data)
            if number >= 20:
                found[way].append(seconds)
    return found


async def chunks(way: tuple[int, int], streams: int, rate: float, seconds: float) -> tuple[int, float, float]:
    """(events, the proxy's CPU seconds, seconds) of so many streams at once."""
    port, pid = way
    clients = [await Client.to(port) for _ in range(streams)]
    data = request("hello", int(rate * seconds), rate)
    before, begin = cpu_seconds(pid), time.perf_counter()
    counts = [count for _, count in await asyncio.gather(*(client.stream(data) for client in clients))]
    return sum(counts), cpu_seconds(pid) - before, time.perf_counter() - begin


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    told: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory, started(Path(directory)) as ways:
        times = await first_tokens(ways, options.requests, options.prompt)
        for way, seconds in times.items():
            ordered = sorted(seconds)
            told[way] = {
                "first_token_ms": {
                    "p50": 1000 * statistics.median(ordered),
                    "p99": 1000 * ordered[int(0.99 * len(ordered))],
                }
            }
            if way != "direct":
                added = sorted(one - two for one, two in zip(seconds, times["direct"], strict=True))
                told[way]["added_ms"] = {"p50": 1000 * statistics.median(added)}
        for way in ways:
            count, cpu, took = await chunks(ways[way], options.streams, options.rate, options.seconds)
            told[way] |= {"chunks": count, "seconds": took, "cpu_seconds": cpu, "chunks_per_core_second": count / cpu}
    return told


def main() -> None:
    """Measure and tell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=400, help="for the time to the first token, each way")
    parser.add_argument("--prompt", type=int, default=2000, help="bytes of the prompt")
    parser.add_argument("--streams", type=int, default=128)
    parser.add_argument("--rate", type=float, default=50.0, help="chunks a second of a stream")
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--replica", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.replica is not None:
        asyncio.run(serve_replica(options.replica))
        return
    told = asyncio.run(measure(options))
    if options.json:
        print(json.dumps(told))
        return
    print(
        "| way | first token p50 / p99, ms | added, p50, ms | chunks a second and core |\n| --- | ---: | ---: | ---: |"
    )
    for way, found in told.items():
        first, added = found["first_token_ms"], found.get("added_ms", {}).get("p50")
        shown = "" if added is None else f"{added:.2f}"
        print(f"| {way} | {first['p50']:.2f} / {first['p99']:.2f} | {shown} | {found['chunks_per_core_second']:,.0f} |")


if __name__ == "__main__":
    main()
