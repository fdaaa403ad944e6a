"""What the API process costs a token, against a bare Starlette handler that streams, in one run.

    python benchmarks/api_overhead.py [--levels STREAMS:TOKENS@MILLISECONDS …] [--kind KIND] [--limited] [--tls]
    python benchmarks/api_overhead.py --profile FILE [--levels …]

Processes beside this one: our API process before an engine that echoes the prompt (`echo_engine.py`), the bare handler
with its timer (`bare_stream.py`: the same uvicorn, uvloop and httptools), and the client (`http_load.py`), which asks
both for the same. In a level, STREAMS requests come at once, and each gets TOKENS tokens, one every so many
MILLISECONDS. Levels take turns between the two servers, and all is repeated; reported are medians.

What counts is CPU time, of all threads: 1 s over what a token takes is what a core can do. (Wall time lies where cores
are shared.) It includes what a request costs: body, validation, hashes of pages, metrics; for the bare handler, only
JSON. `request_us` is that alone: a level of answers of one token. A chunk is a token that has a text: a few of those
that are echoed are parts of characters. If our event loop is late, tokens are merged: `chunks_a_token` falls further.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args

from echo_engine import API_KEY, DEMO, STEP_SECONDS
from http_load import KINDS, Kind, trusting

HERE: Final = Path(__file__).resolve().parent
GOAL: Final = 0.6  # of the bare handler's tokens a second on a core
ONE_TOKEN: Final = "100:200"  # a level of lone requests


@dataclass(frozen=True)
class Level:
    """`streams` requests at once, of `tokens` each, one every `milliseconds`."""

    streams: int
    tokens: int
    milliseconds: float

    @classmethod
    def parse(cls, text: str) -> "Level":
        """STREAMS:TOKENS@MILLISECONDS."""
        streams, _, rest = text.partition(":")
        tokens, _, milliseconds = rest.partition("@")
        return cls(int(streams), int(tokens), float(milliseconds))


LEVELS: Final = (Level(1, 1000, 3.0), Level(64, 128, 15.0), Level(256, 128, 50.0), Level(1000, 128, 150.0))


class Server:
    """One of the two servers."""

    def __init__(self, name: str, process: "subprocess.Popen[str]") -> None:
        if process.stdout is None:
            raise RuntimeError("the server was started without a pipe")
        self.name, self.pid = name, process.pid
        self.url = process.stdout.readline().split()[-1]

    def cpu_seconds(self) -> tuple[float, float]:
        """(of the event loop's thread, of all others)."""
        found = [0.0, 0.0]
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            found[task.name != str(self.pid)] += int((task / "schedstat").read_text().split()[0]) / 1e9
        return found[0], found[1]


@contextlib.contextmanager
def servers(step_file: Path, options: argparse.Namespace) -> Iterator[list[Server]]:
    """Ours and the bare one."""
    ours = [str(HERE / "echo_engine.py"), "--as", "api", *(["--profile", options.profile] if options.profile else [])]
    ours += ["--limited"] if options.limited else []
    ours += ["--thinks"] if options.kind == "thoughts" else []
    tls = ["--tls", str(certificate(step_file.parent))] if options.tls else []
    processes = []
    try:
        for command in ([*ours, *tls], [str(HERE / "bare_stream.py"), *tls]):
            environment = {**os.environ, STEP_SECONDS: str(step_file)}
            processes.append(
                subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True, env=environment)
            )
        found = [Server(name, process) for name, process in zip(("octavo", "bare"), processes, strict=True)]
        until_ready(found[0].url)
        yield found
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(60)


def certificate(folder: Path) -> Path:
    """A file with a key and a certificate for it, as most servers have them: on the curve P-256."""
    path = folder / "tls.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", "/CN=127.0.0.1", "-keyout", str(path), "-out", str(folder / "certificate.pem")]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    path.write_text(path.read_text() + (folder / "certificate.pem").read_text())
    return path


def set_step(step_file: Path, seconds: float) -> None:
    """Replaced as a whole: it is read all the time."""
    beside = step_file.with_suffix(".new")
    beside.write_text(str(seconds))
    beside.replace(step_file)


def until_ready(url: str) -> None:
    """Raises TimeoutError if it takes a minute."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/ready", timeout=5, context=trusting()):
                return
        except urllib.error.HTTPError:
            time.sleep(0.05)
    raise TimeoutError(f"{url}/ready")


def ask(server: Server, level: str, options: argparse.Namespace, tokens: int) -> dict[str, Any]:
    """A level of `http_load`, in a process of its own, and what it took of the server: microseconds in all."""
    vocab = json.loads((DEMO / "config.json").read_text())["vocab_size"]
    command = [sys.executable, str(HERE / "http_load.py"), server.url, "bare", "--no-warm-up", "--levels", level]
    command += ["--vocab", str(vocab), "--prompt", str(options.prompt), "--answer", str(tokens)]
    command += ["--kind", options.kind, "--key", API_KEY]
    before = server.cpu_seconds()
    (found,) = map(
        json.loads, subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    )
    loop, others = (after - start for after, start in zip(server.cpu_seconds(), before, strict=True))
    if found["ok"] != found["n"]:
        raise RuntimeError(f"{server.name}: {found}")
    return dict(found) | {"loop_us": loop * 1e6, "others_us": others * 1e6}


def measure(found: list[Server], step_file: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All levels with all servers, again and again; a row for each level."""
    for server in found:  # what only the first requests cost
        set_step(step_file, 0.002)
        ask(server, "0:64", options, 32)
    runs: dict[tuple[Level | None, str], list[dict[str, Any]]] = {}
    for repeat in range(options.repeats):
        for level in (None, *options.levels):
            for server in found if repeat % 2 else found[::-1]:
                set_step(step_file, 0.002 if level is None else level.milliseconds / 1000)
                wanted, tokens = (ONE_TOKEN, 1) if level is None else (f"0:{level.streams}", level.tokens)
                runs.setdefault((level, server.name), []).append(ask(server, wanted, options, tokens))
    names = [server.name for server in found]
    for name in names:
        request = [(run["loop_us"] + run["others_us"]) / run["n"] for run in runs[None, name]]
        print(f"{name}: {statistics.median(request):.0f} µs a lone request with its token", flush=True)
    rows = [row(level, {name: runs[level, name] for name in names}) for level in options.levels]
    rows[0]["request_us"] = {
        name: round(statistics.median((run["loop_us"] + run["others_us"]) / run["n"] for run in runs[None, name]), 1)
        for name in names
    }
    return rows


def row(level: Level, runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians of a level, and ours as a share of the bare handler's: of each pair of neighbours, the median."""
    found: dict[str, Any] = {"streams": level.streams, "tokens": level.tokens, "step_ms": level.milliseconds}
    costs = {name: [(run["loop_us"] + run["others_us"]) / run["chunks"] for run in each] for name, each in runs.items()}
    for name, each in runs.items():
        found[name] = {
            "us_a_chunk": round(statistics.median(costs[name]), 1),
            "us_a_token": round(
                statistics.median((run["loop_us"] + run["others_us"]) / level.streams / level.tokens for run in each),
                1,
            ),
            "us_of_all_runs": [round(cost, 1) for cost in costs[name]],
            "loop_us": round(statistics.median(run["loop_us"] / run["chunks"] for run in each), 1),
            "chunks_s_a_core": round(1e6 / statistics.median(costs[name])),
            "chunks_a_token": round(statistics.median(run["chunks"] for run in each) / level.streams / level.tokens, 3),
            "bytes_a_chunk": statistics.median(run["bytes_a_chunk"] for run in each),
            "ttft_ms_p50": statistics.median(run["ttft_ms"]["p50"] for run in each),
            "ttft_ms_p99": statistics.median(run["ttft_ms"]["p99"] for run in each),
        }
    shares = [bare / ours for ours, bare in zip(costs["octavo"], costs["bare"], strict=True)]
    found["share"] = round(statistics.median(shares), 3)
    print(json.dumps(found), flush=True)
    return found


def main() -> None:
    """The command line. Exit status 1 if a level's share is below the goal."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--levels", nargs="+", type=Level.parse, default=LEVELS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=64, help="tokens")
    parser.add_argument("--kind", choices=get_args(Kind), default="completions", help=KINDS)
    parser.add_argument("--limited", action="store_true", help="ours takes only a key, which has limits of every kind")
    parser.add_argument("--tls", action="store_true", help="both speak TLS")
    parser.add_argument("--json")
    parser.add_argument("--profile", help="cProfile of our event loop's thread goes there: its figures mean nothing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        step_file = Path(folder) / "step"
        set_step(step_file, 0.005)
        with servers(step_file, options) as found:
            rows = measure(found, step_file, options)
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1))
    short = [found["streams"] for found in rows if found["share"] < GOAL]
    sys.exit(f"below {GOAL:.0%} of the bare handler at {short} streams" if short else 0)


if __name__ == "__main__":
    main()
