"""Load over HTTP: streamed completions of random token ids, at several rates of arrival, in one process.

    python benchmarks/http_load.py URL MODEL --levels 8:100,0:512 [--vocab N] [--prompt N] [--answer N] [--json FILE]
    python benchmarks/http_load.py --ceiling [--streams N] [--answer N]

A level is RATE:N: N requests that arrive as a Poisson process of RATE a second, or all at once where RATE is 0. Two
levels that are not reported, of 8 and of 64 at once, come first. Reported are the time to the first token (TTFT, from
before the request is sent), the mean time of an answer's further tokens (TPOT: a chunk may bring several), the time
between two chunks (ITL), in milliseconds, and tokens of answers a second. Answers are greedy and ignore the end of
sequence.

`--ceiling` measures the client itself, against a bare server in another process that writes one chunk of each stream
after the other: a server's figures mean something only well below it.
"""

import argparse
import asyncio
import contextlib
import json
import math
import multiprocessing
import os
import random
import resource
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args
from urllib.parse import urlsplit

import httptools
import uvloop

WARM_UP: Final = ((0.0, 8), (0.0, 64))
PATIENCE_SECONDS: Final = 300.0
_EVENT: Final = b"data: {"
EVENT_WITH_TEXT: Final = (
    b'data: {"id":"cmpl-0123456789abcdef0123456789abcdef","created":1700000000,"model":"bare",'
    b'"choices":[{"index":0,"text":" word","finish_reason":null,"logprobs":null,"stop_reason":null}],'
    b'"object":"text_completion"}\n\n'
)

CHAT_EVENT: Final = (
    b'data: {"id":"chatcmpl-0123456789abcdef0123456789abcdef","created":1700000000,"model":"bare",'
    b'"choices":[{"index":0,"delta":{"content":" word"},"finish_reason":null,"logprobs":null}],'
    b'"object":"chat.completion.chunk"}\n\n'
)
WORDS: Final = ("the", "of", "and", "to", "in", "a", "is", "that", "for", "it", "was", "on", "are", "as", "with", "his")
TOOL: Final = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
KINDS: Final = "tools: a chat with one at hand; thoughts: a chat whose answer begins with them"
Kind = Literal["completions", "chat", "tools", "thoughts"]
END_OF_THOUGHTS: Final = "</think>"


@dataclass(slots=True)
class Record:
    """One request: when it was sent, when its chunks came (an entry for each event), and what went wrong."""

    sent: float = 0.0
    chunks: list[float] = field(default_factory=list)
    size: int = 0  # bytes of the body
    error: str | None = None


class Connection(asyncio.Protocol):
    """A connection that carries one request at a time. Counts events: parsing their JSON would measure this client."""

    def __init__(self) -> None:
        self._parser: Any = None
        self._record = Record()
        self._done: asyncio.Future[None] | None = None
        self._tail = b""  # an event may be cut anywhere
        self._refusal = bytearray()
        self.transport: Any = None  # None again once it is closed

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    async def ask(self, request: bytes, record: Record) -> None:
        """Send a request and fill in its record."""
        self._record, self._tail, self._refusal = record, b"", bytearray()
        self._parser = httptools.HttpResponseParser(self)
        self._done = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        await asyncio.wait_for(self._done, PATIENCE_SECONDS)

    def data_received(self, data: bytes) -> None:
        self._now = time.perf_counter()
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        if self._parser.get_status_code() != 200:
            self._refusal += body
            return
        self._record.size += len(body)
        if self._tail:
            body = self._tail + body
        events, self._tail = (body, b"") if body.endswith(b"\n\n") else self._cut(body)
        if (count := events.count(_EVENT)) == 1:
            self._record.chunks.append(self._now)
        elif count:
            self._record.chunks += [self._now] * count

    def on_message_complete(self) -> None:
        if self._refusal:
            self._record.error = self._refusal[:300].decode(errors="replace")
        self._end()

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        if self._done is not None and not self._done.done():
            self._record.error = f"the connection broke: {error}"
            self._end()

    def _end(self) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    @staticmethod
    def _cut(body: bytes) -> tuple[bytes, bytes]:
        at = body.rfind(b"\n\n") + 2
        return (body[:at], body[at:]) if at > 1 else (b"", body)


def trusting() -> ssl.SSLContext:
    """TLS with whoever it is."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


@dataclass(frozen=True)
class Load:
    """What is asked of whom."""

    url: str
    model: str
    vocab: int
    prompt: int
    answer: int
    kind: Kind = "completions"
    key: str = ""

    def request(self, chance: random.Random) -> bytes:
        """One request, as bytes."""
        fields = {"model": self.model, **self._asked(chance), "max_tokens": self.answer, "temperature": 0.0}
        body = json.dumps(fields | {"ignore_eos": True, "stream": True})
        path = "/v1/completions" if self.kind == "completions" else "/v1/chat/completions"
        head = f"POST {path} HTTP/1.1\r\nhost: {urlsplit(self.url).netloc}\r\ncontent-type: application/json\r\n"
        head += f"authorization: Bearer {self.key}\r\n" if self.key else ""
        return f"{head}content-length: {len(body)}\r\n\r\n{body}".encode()

    def _asked(self, chance: random.Random) -> dict[str, Any]:
        """Random token ids, or a chat of as many random words, with a tool at hand or without.

        thoughts: for a server that echoes the prompt's end. In its middle (about) is where the thoughts end.
        """
        if self.kind == "completions":
            return {"prompt": [chance.randrange(10, self.vocab) for _ in range(self.prompt)]}
        words = [chance.choice(WORDS) for _ in range(self.prompt)]
        if self.kind == "thoughts":
            words.insert(max(0, self.prompt - self.answer // 2), END_OF_THOUGHTS)
        text = " ".join(words)
        tools = {"tools": [TOOL]} if self.kind == "tools" else {}
        return {"messages": [{"role": "user", "content": text}], **tools}

    @property
    def tls(self) -> ssl.SSLContext | None:
        """With https."""
        if urlsplit(self.url).scheme != "https":
            return None
        return trusting()

    async def level(self, rate: float, count: int, seed: int) -> dict[str, Any]:
        """Run one level; connections are kept and used again within it."""
        chance = random.Random(seed)
        requests = [self.request(chance) for _ in range(count)]
        records = [Record() for _ in range(count)]
        free: list[Connection] = []
        tasks, tls = [], self.tls
        due = started = time.perf_counter()
        for request, record in zip(requests, records, strict=True):
            tasks.append(asyncio.create_task(self._ask(request, record, free, tls)))
            if rate > 0:
                due += chance.expovariate(rate)
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
        await asyncio.gather(*tasks)
        seconds = time.perf_counter() - started
        for connection in free:
            if connection.transport is not None:
                connection.transport.close()
        return {"rate": rate, "n": count, **summary(records, self.answer, seconds)}

    async def _ask(self, request: bytes, record: Record, free: list[Connection], tls: ssl.SSLContext | None) -> None:
        record.sent = time.perf_counter()
        connection = next((free.pop() for _ in range(len(free)) if free[-1].transport is not None), None)
        if connection is None:
            place = urlsplit(self.url)
            try:
                _, connection = await asyncio.get_running_loop().create_connection(
                    Connection, place.hostname, place.port, ssl=tls
                )
            except OSError as error:
                record.error = str(error)
                return
        try:
            await connection.ask(request, record)
        except TimeoutError:
            record.error = f"nothing more within {PATIENCE_SECONDS:.0f} s"
        else:
            free.append(connection)


def summary(records: Sequence[Record], answer: int, seconds: float) -> dict[str, Any]:
    """Figures of a level; times in milliseconds."""
    good = [record for record in records if record.error is None and record.chunks]
    chunks = sum(len(record.chunks) for record in good)
    return {
        "ok": len(good),
        "errors": list(dict.fromkeys(record.error for record in records if record.error))[:2],
        "s": round(seconds, 2),
        "chunks": chunks,
        "bytes_a_chunk": round(sum(record.size for record in good) / max(1, chunks), 1),
        "chunks_s": round(chunks / seconds),
        "out_tok_s": round(len(good) * answer / seconds, 1),
        "ttft_ms": quantiles([record.chunks[0] - record.sent for record in good]),
        "tpot_ms": quantiles([(record.chunks[-1] - record.chunks[0]) / max(1, answer - 1) for record in good]),
        "itl_ms": quantiles([b - a for record in good for a, b in zip(record.chunks, record.chunks[1:], strict=False)]),
    }


def quantiles(seconds: list[float]) -> dict[str, float] | None:
    """p50, p90 and p99 between neighbours, and the mean; in milliseconds."""
    if not seconds:
        return None
    ordered = sorted(value * 1000 for value in seconds)

    def at(share: float) -> float:
        place = share * (len(ordered) - 1)
        below, above = ordered[math.floor(place)], ordered[math.ceil(place)]
        return round(below + (above - below) * (place - math.floor(place)), 2)

    return {"mean": round(sum(ordered) / len(ordered), 2), "p50": at(0.5), "p90": at(0.9), "p99": at(0.99)}


def parse_levels(text: str) -> list[tuple[float, int]]:
    """RATE:N, separated by commas."""
    pairs = [entry.split(":") for entry in text.split(",")]
    return [(float(rate), int(count)) for rate, count in pairs]


async def run_levels(
    load: Load, levels: Sequence[tuple[float, int]], *, warm_up: bool = True, told: bool = True
) -> list[dict[str, Any]]:
    """All levels, one after the other; each is printed as it ends, if they are to be told."""
    for rate, count in WARM_UP if warm_up else ():
        await load.level(rate, count, seed=1000 + count)
    found = []
    for seed, (rate, count) in enumerate(levels):
        before = time.process_time()
        found.append(await load.level(rate, count, seed))
        found[-1]["client_us_a_chunk"] = round((time.process_time() - before) / max(1, found[-1]["chunks"]) * 1e6, 1)
        if told:
            print(json.dumps(found[-1]), flush=True)
    return found


# --- the bare server


class BareServer(asyncio.Protocol):
    """Answers a request with `answer` chunks; all open streams get their next one in turn."""

    def __init__(self, streams: dict["BareServer", int], answer: int) -> None:
        self._streams, self._answer = streams, answer
        self._parser = httptools.HttpRequestParser(self)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        self.transport.write(head)
        self._streams[self] = self._answer

    def connection_lost(self, error: Exception | None) -> None:
        self._streams.pop(self, None)

    def write_chunk(self) -> None:
        left = self._streams[self] = self._streams[self] - 1
        chunk = b"%x\r\n%s\r\n" % (len(EVENT_WITH_TEXT), EVENT_WITH_TEXT)
        self.transport.write(chunk if left else chunk + b"0\r\n\r\n")
        if not left:
            del self._streams[self]


def serve_bare(connection: Any, answer: int) -> None:
    """A process that tells its port and serves until it is ended."""

    async def serve() -> None:
        streams: dict[BareServer, int] = {}
        server = await asyncio.get_running_loop().create_server(lambda: BareServer(streams, answer), "127.0.0.1", 0)
        connection.send(server.sockets[0].getsockname()[1])
        while True:
            for stream in list(streams):
                stream.write_chunk()
            await asyncio.sleep(0 if streams else 0.001)

    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(serve())


def measure_ceiling(streams: int, answer: int) -> dict[str, Any]:
    """The client against the bare server; CPU time a chunk of both: that of the server is what no server gets below."""
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve_bare, args=(theirs, answer), daemon=True)
    server.start()
    try:
        load = Load(f"http://127.0.0.1:{ours.recv()}", "bare", 1000, 512, answer)
        (found,) = uvloop.run(run_levels(load, [(0.0, streams)], told=False))
        used = sum(map(int, Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
        chunks = found["chunks"] + sum(count for _, count in WARM_UP) * answer
        found["server_us_a_chunk"] = round(used / os.sysconf("SC_CLK_TCK") / chunks * 1e6, 1)
    finally:
        server.kill()
        server.join()
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("url", nargs="?")
    parser.add_argument("model", nargs="?")
    parser.add_argument("--levels", default="8:100,32:300,64:512,0:512")
    parser.add_argument("--vocab", type=int, default=2000, help="ids are drawn from 10 to this")
    parser.add_argument("--prompt", type=int, default=512, help="tokens")
    parser.add_argument("--answer", type=int, default=128, help="tokens")
    parser.add_argument("--kind", choices=get_args(Kind), default="completions", help=KINDS)
    parser.add_argument("--key", default="", help="API key")
    parser.add_argument("--streams", type=int, default=512, help="of --ceiling")
    parser.add_argument("--ceiling", action="store_true")
    parser.add_argument("--no-warm-up", action="store_true")
    parser.add_argument("--json")
    options = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8192)), hard))
    if options.ceiling:
        found = [measure_ceiling(options.streams, options.answer)]
        print(json.dumps(found[0]))
    elif options.url and options.model:
        load = Load(
            options.url, options.model, options.vocab, options.prompt, options.answer, options.kind, options.key
        )
        levels = parse_levels(options.levels)
        found = uvloop.run(run_levels(load, levels, warm_up=not options.no_warm_up))
    else:
        parser.error("give URL and MODEL, or --ceiling")
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
