"""The figures over HTTP: time to the first token, time per token and throughput of `octavo serve`, on a GPU.

    python benchmarks/http_figures.py [--models 0.6b 8b] [--levels 8:100,0:512] [--json FILE] [-- SERVE ARGUMENTS]

For each model a directory with its shape and a server with random weights, on the same machine as the client of
`http_load.py`; prompts of 512 token ids, answers of 128, prefix caching as it is by default. Measuring begins when the
server is ready and its engine has nothing to do any more (it captures graphs while it is idle). A failed request, or a
server that does not answer, ends it with exit status 1.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
SOURCES: Final = [str(ROOT / name) for name in ("kernels", "server", "operator")]
sys.path[:0] = [str(ROOT / "benchmarks")]

import uvloop  # noqa: E402
from http_load import Load, parse_levels, run_levels  # noqa: E402

LEVELS: Final = {"0.6b": "8:80,32:256,64:512,0:512", "8b": "8:80,16:160,32:320,0:256"}
START_SECONDS: Final = 180.0
QUIET_SECONDS: Final = 1.5  # an engine that used less than a tenth of a core for so long is idle
PROMPT: Final = 512
ANSWER: Final = 128


class Server:
    """`octavo serve` over a model directory, with its log in a file."""

    def __init__(self, directory: Path, arguments: list[str], log: Path) -> None:
        command = [sys.executable, "-m", "octavo_cli", "serve", str(directory), "--port", "0", *arguments]
        path = os.pathsep.join([*SOURCES, os.environ.get("PYTHONPATH", "")])
        self._log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=file, text=True, env={**os.environ, "PYTHONPATH": path}
            )
        self.url = self._first_line().split()[-1]

    def wait(self) -> dict[str, float]:
        """Seconds until it was ready, and until its engine was idle. Raises RuntimeError if it fails to."""
        began = time.monotonic()
        while not self._is_ready():
            self._check(began)
            time.sleep(0.1)
        ready = time.monotonic()
        engine, used, since = self._engine(), -1.0, ready
        while time.monotonic() - since < QUIET_SECONDS:
            self._check(began)
            time.sleep(0.25)
            now = cpu_seconds(engine)
            if now - used > 0.1 * QUIET_SECONDS:
                used, since = now, time.monotonic()
        return {"ready": round(ready - began, 2), "idle": round(since - began, 2)}

    def end(self) -> None:
        """In order, or by force."""
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _first_line(self) -> str:
        line = "" if self.process.stdout is None else self.process.stdout.readline()
        if not line:
            self.process.wait()
            raise RuntimeError(f"the server ended with {self.process.returncode}:\n{self._tail()}")
        return line

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/ready", timeout=5):
                return True
        except (urllib.error.HTTPError, OSError):
            return False

    def _check(self, began: float) -> None:
        if self.process.poll() is not None or time.monotonic() - began > START_SECONDS:
            raise RuntimeError(f"the server did not start:\n{self._tail()}")

    def _engine(self) -> int:
        lists = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        children = [int(word) for path in lists for word in path.read_text().split()]
        return next(pid for pid in children if b"engine_process" in Path(f"/proc/{pid}/cmdline").read_bytes())

    def _tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])


def cpu_seconds(pid: int) -> float:
    """That a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(model: str, levels: str, arguments: list[str], folder: Path) -> dict[str, Any]:
    """Start, levels, end; what came of them."""
    directory = folder / f"random-{model}"
    subprocess.run([sys.executable, str(ROOT / "benchmarks/random_model.py"), model, str(directory)], check=True)
    vocab = json.loads((directory / "config.json").read_text())["vocab_size"]
    server = Server(directory, ["--load-format", "random", *arguments], folder / f"{model}.log")
    try:
        found: dict[str, Any] = {"start": server.wait()}
        print(f"{model}: {found['start']}", flush=True)
        api, engine = server.process.pid, server._engine()
        used = cpu_seconds(api), cpu_seconds(engine)
        load = Load(server.url, directory.name, vocab, PROMPT, ANSWER)
        found["levels"] = uvloop.run(run_levels(load, parse_levels(levels)))
        found["cpu_seconds"] = {"api": cpu_seconds(api) - used[0], "engine": cpu_seconds(engine) - used[1]}
        return found
    finally:
        server.end()


def rows_of(model: str, found: dict[str, Any], command: str) -> list[dict[str, Any]]:
    """A row for each figure, by the names of the tables; the rest of what was seen is in its details."""
    rows = []
    for level in found["levels"]:
        details = {key: level[key] for key in ("n", "ttft_ms", "tpot_ms", "itl_ms", "out_tok_s", "chunks", "s")}
        name = f"http-{model}-{level['rate']:g}" if level["rate"] else f"http-{model}-all"
        values = [("", level["out_tok_s"], "out tok/s", False)]
        if level["rate"]:
            values = [(f"-{kind}", level[f"{kind}_ms"]["p50"], "ms", True) for kind in ("ttft", "tpot")]
        for suffix, value, unit, lower in values:
            row = {"name": name + suffix, "value": value, "unit": unit, "lower_is_better": lower}
            rows.append({**row, "command": command, "details": details})
    return rows


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--models", nargs="+", choices=tuple(LEVELS), default=list(LEVELS))
    parser.add_argument("--levels", help="instead of " + "; ".join(f"{name}: {text}" for name, text in LEVELS.items()))
    parser.add_argument("--json")
    parser.add_argument("serve", nargs="*", help="arguments of `octavo serve`, behind --")
    options = parser.parse_args()
    rows, failures = [], []
    command = "python benchmarks/http_figures.py" + (f" -- {' '.join(options.serve)}" if options.serve else "")
    with tempfile.TemporaryDirectory() as folder:
        for model in options.models:
            try:
                found = measure(model, options.levels or LEVELS[model], options.serve, Path(folder))
            except (RuntimeError, subprocess.CalledProcessError) as error:
                failures.append(f"{model}: {error}")
                continue
            print(f"{model}: CPU seconds {found['cpu_seconds']}", flush=True)
            failures += [
                f"{model}, {level['rate']:g}: {level['errors']}" for level in found["levels"] if level["errors"]
            ]
            rows += rows_of(model, found, command)
            if options.json:
                Path(options.json).write_text(json.dumps(rows, indent=1))
    print(json.dumps({row["name"]: row["value"] for row in rows}))
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
