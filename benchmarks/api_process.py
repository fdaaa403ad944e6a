"""The API process alone, on the CPU: the chunks a second that it streams, and what it adds to the first token's time.

    python benchmarks/api_process.py [--levels STREAMS@MILLISECONDS ...] [--json FILE] [--profile FILE]

Behind the real API process stands an engine without a model, which speaks the real protocol: it takes the requests that
are there, and every so many MILLISECONDS gives each of them a token of the vocabulary, at random. In front of it is the
client of `http_load.py`, in a process of its own. A level of 0 milliseconds answers at once with the only token of an
answer: that is the latency of an idle server.

What counts is CPU time, of the event loop's thread and of all others: the two share the interpreter, so 1 s over their
sum is what a core can do. (Wall time lies where cores are shared.) If an event loop is late, tokens are merged, and
there are fewer chunks than tokens.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / name) for name in ("kernels", "server", "operator", "benchmarks")]

import zmq  # noqa: E402

from octavo_server import ipc  # noqa: E402

DEMO: Final = ROOT / "server/octavo_server/demo_model"
BLOCK_SIZE: Final = 16
MAX_MODEL_LEN: Final = 2048
MAX_NUM_SEQS: Final = 1024
TICK_SECONDS: Final = "API_PROCESS_TICK"  # in the environment of the engine: a file that holds the seconds of a step
_SECONDS_A_TICK: Final = 1 / os.sysconf("SC_CLK_TCK")


# --- the engine


class TokenSource:
    """An engine that computes nothing: all requests are in every step, and a step gives each a token."""

    def __init__(self, socket: Any, epoch: int, vocab: int) -> None:
        chance = random.Random(0)
        self._ids = [chance.randrange(10, vocab) for _ in range(8191)]
        self._socket, self._epoch = socket, epoch
        self._left: dict[str, int] = {}
        self._steps = 0

    def run(self, seconds_file: Path) -> None:
        """Until it is told to end, or nobody is there any more."""
        due, parent = time.monotonic(), os.getppid()
        while os.getppid() == parent:
            # Waiting for the next step it takes requests in, as an engine does between its steps.
            if self._socket.poll(max(0.0, due - time.monotonic()) * 1000 if self._left else 500):
                idle = not self._left
                if not self._take(ipc.frontend_decoder.decode(self._socket.recv())):
                    return
                if not idle:
                    continue
                due = time.monotonic()
            if time.monotonic() >= due:
                self._step()
                due += float(seconds_file.read_text())

    def _take(self, message: ipc.FrontendMessage) -> bool:
        match message:
            case ipc.AddRequest():
                self._left[message.request_id] = message.sampling.max_tokens
            case ipc.AddChoices():
                for request in ipc.requests_of(message):
                    self._take(request)
            case ipc.Abort():
                for request_id in message.request_ids:
                    self._left.pop(request_id, None)
        return not isinstance(message, ipc.Shutdown)

    def _step(self) -> None:
        ids, at, left = self._ids, self._steps, self._left
        self._steps += 1
        outputs = []
        for number, (request_id, remaining) in enumerate(list(left.items())):
            token = [ids[(at * 31 + number * 17) % len(ids)]]
            if remaining > 1:
                left[request_id] = remaining - 1
                outputs.append(ipc.RequestOutput(request_id, token))
            else:
                del left[request_id]
                outputs.append(ipc.RequestOutput(request_id, token, "length"))
        stats = ipc.EngineStats(len(left), 0, 0, 0, 4096, BLOCK_SIZE, 0, 0, 0, self._steps, 0.0)
        self._socket.send(ipc.encoder.encode(ipc.Outputs(self._epoch, outputs, stats)))


def run_engine() -> None:
    """The engine process: the start message is a line of JSON on stdin."""
    start = json.loads(sys.stdin.readline())
    context: zmq.Context[Any] = zmq.Context()
    socket = context.socket(zmq.PAIR)
    socket.setsockopt(zmq.LINGER, 1000)
    socket.connect(f"ipc://{start['socket']}")
    vocab = json.loads((Path(start["config"]["model"]) / "config.json").read_text())["vocab_size"]
    ready = ipc.Ready(
        epoch=start["epoch"],
        version=ipc.PROTOCOL_VERSION,
        max_model_len=MAX_MODEL_LEN,
        block_size=BLOCK_SIZE,
        num_blocks=4096,
        phases={},
        max_num_seqs=MAX_NUM_SEQS,
        prefix_caching=True,
    )
    socket.send(ipc.encoder.encode(ready))
    TokenSource(socket, start["epoch"], vocab).run(Path(os.environ[TICK_SECONDS]))
    socket.close()
    context.term()


# --- the API process


def run_api(model: Path, profile: str | None) -> None:
    """`octavo serve` with the engine above; `profile`: what the event loop's thread does goes to this file."""
    from octavo_server.config import ServerConfig
    from octavo_server.frontend.server import run

    command = (sys.executable, str(Path(__file__).resolve()), "--as", "engine")
    config = ServerConfig(model=model, port=0, max_num_seqs=MAX_NUM_SEQS, device="cpu", served_model_name=("bare",))
    if profile is None:
        sys.exit(run(config, command))
    import cProfile

    profiler = cProfile.Profile()
    try:
        profiler.runcall(run, config, command)
    finally:
        profiler.dump_stats(profile)


# --- measuring


def cpu_seconds(pid: int) -> tuple[float, float]:
    """(of the main thread, of all others), user and system."""
    found = [0.0, 0.0]
    for task in Path(f"/proc/{pid}/task").iterdir():
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        found[task.name != str(pid)] += (int(fields[11]) + int(fields[12])) * _SECONDS_A_TICK
    return found[0], found[1]


def measure(levels: list[tuple[int, float]], options: argparse.Namespace) -> list[dict[str, Any]]:
    """One API process for all levels of (streams, milliseconds of a step)."""
    tick = Path(options.folder) / "tick"
    tick.write_text("0.005")
    command = [sys.executable, str(Path(__file__).resolve()), "--as", "api", "--model", str(options.model)]
    command += ["--profile", options.profile] if options.profile else []
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, TICK_SECONDS: str(tick)})
    found = []
    try:
        url = server.stdout.readline().split()[-1] if server.stdout is not None else ""
        until_ready(url)
        vocab = json.loads((options.model / "config.json").read_text())["vocab_size"]
        client(url, vocab, options, "0:8,0:64", options.answer)
        for streams, milliseconds in levels:
            tick.write_text(str(milliseconds / 1000))
            before, began = cpu_seconds(server.pid), time.monotonic()
            if milliseconds:
                (level,) = client(url, vocab, options, f"0:{streams}", options.answer)
            else:
                (level,) = client(url, vocab, options, f"100:{streams}", 1)
            used = [after - start for after, start in zip(cpu_seconds(server.pid), before, strict=True)]
            found.append(row(level, streams, milliseconds, used) | {"wall_s": round(time.monotonic() - began, 2)})
            print(json.dumps(found[-1]), flush=True)
    finally:
        server.terminate()
        server.wait(60)
    return found


def row(level: dict[str, Any], streams: int, milliseconds: float, used: list[float]) -> dict[str, Any]:
    """The figures of a level: CPU time by chunk, and the chunks a second that a core would do."""
    tokens = round(level["out_tok_s"] * level["s"])
    per_chunk = [seconds / max(1, level["chunks"]) * 1e6 for seconds in used]
    return {
        "streams": streams,
        "step_ms": milliseconds,
        "ok": level["ok"],
        "tokens": tokens,
        "chunks": level["chunks"],
        "chunks_s": level["chunks_s"],
        "loop_us": round(per_chunk[0], 1),
        "others_us": round(per_chunk[1], 1),
        "chunks_s_a_core": round(1e6 / max(1e-9, sum(per_chunk))),
        "tokens_s_a_core": round(tokens / max(1e-9, sum(used))),
        "ttft_ms": level["ttft_ms"],
        "tpot_ms": level["tpot_ms"],
    }


def client(url: str, vocab: int, options: argparse.Namespace, levels: str, answer: int) -> list[dict[str, Any]]:
    """Levels of `http_load`, in a process of their own."""
    command = [sys.executable, str(ROOT / "benchmarks/http_load.py"), url, "bare", "--no-warm-up", "--levels", levels]
    command += ["--vocab", str(vocab), "--prompt", str(options.prompt), "--answer", str(answer)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in result.stdout.splitlines()]


def until_ready(url: str) -> None:
    """Raises TimeoutError if it takes a minute."""
    import urllib.error
    import urllib.request

    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/ready", timeout=5):
                return
        except urllib.error.HTTPError:
            time.sleep(0.05)
    raise TimeoutError(f"{url}/ready")


def parse_level(text: str) -> tuple[int, float]:
    """STREAMS@MILLISECONDS."""
    streams, milliseconds = text.split("@")
    return int(streams), float(milliseconds)


def main() -> None:
    """The command line; `--as` is for the processes that it starts."""
    import tempfile

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument(
        "--levels", nargs="+", type=parse_level, default=[(300, 0.0), (64, 10.0), (256, 40.0), (512, 50.0)]
    )
    parser.add_argument("--model", type=Path, default=DEMO, help="whose tokenizer is used")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--answer", type=int, default=128)
    parser.add_argument("--json")
    parser.add_argument("--profile", help="cProfile of the event loop's thread goes there")
    parser.add_argument("--as", dest="role", choices=("engine", "api"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role == "engine":
        run_engine()
        return
    if options.role == "api":
        run_api(options.model, options.profile)
        return
    with tempfile.TemporaryDirectory() as options.folder:
        found = measure(options.levels, options)
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
