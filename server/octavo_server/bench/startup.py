"""The start of a real server, from its process to the first token over HTTP, with kernels to compile and without."""

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final
from urllib.parse import urlsplit

from octavo_server.bench.report import Figure, rounded
from octavo_server.errors import EngineError
from octavo_server.model_files import weight_files

# Everything in which a start could find kernels that an earlier one has compiled.
_CACHES: Final = {"TRITON_CACHE_DIR": "triton", "XDG_CACHE_HOME": "cache", "CUDA_CACHE_PATH": "cuda"}
_POLL_SECONDS: Final = 0.01
_LAST_WORDS_SECONDS: Final = 20.0
_READ_BYTES: Final = 16 * 2**20
_PROMPT: Final = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14]


@dataclass(frozen=True, slots=True)
class StartTimes:
    """Seconds from the start of the process; `phases`: of the engine's start, as it tells them, one after the other."""

    listening: float
    ready: float
    first_token: float
    phases: Mapping[str, float]


def time_startup(
    directory: Path, command: Sequence[str], *, weights: bool = True, warm: int = 1, patience: float = 300.0
) -> list[Figure]:
    """Seconds from the process to the first token over HTTP: with an empty cache of kernels, and with a full one.

    command: what starts the server on `directory` and any port. weights: they are read, and are in the page cache
    before. warm: starts with the full cache, of which the fastest counts. Raises EngineError if the server does not
    come up within `patience` seconds.
    """
    if weights:
        read_into_page_cache(weight_files(directory))
    figures = []
    with tempfile.TemporaryDirectory(prefix="octavo-caches-") as folder:
        caches = {name: str(Path(folder) / where) for name, where in _CACHES.items()}
        cold = start_once(command, caches, patience)
        figures.append(_figure("start-cold", cold))
        again = [start_once(command, caches, patience) for _ in range(warm)]
        if again:
            figures.append(_figure("start-warm", min(again, key=lambda times: times.first_token)))
    return figures


def start_once(command: Sequence[str], environment: Mapping[str, str], patience: float = 300.0) -> StartTimes:
    """Starts a server, asks it for one token, and ends it. Raises EngineError with its last words."""
    with tempfile.TemporaryFile() as log:
        begin = time.monotonic()
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, env={**os.environ, **environment}, start_new_session=True
        )
        overdue = threading.Event()

        def end_it() -> None:
            overdue.set()
            process.kill()

        watchdog = threading.Timer(patience, end_it)
        watchdog.start()
        try:
            address = _address(process, log)
            listening = time.monotonic() - begin
            while _status(address) != 200:
                time.sleep(_POLL_SECONDS)
            ready = time.monotonic() - begin
            _first_token(address, patience)
            first_token = time.monotonic() - begin
            return StartTimes(listening, ready, first_token, phases_of(_text(log)))
        except (OSError, http.client.HTTPException, EngineError) as error:
            if overdue.is_set():
                raise EngineError(f"the server did not start within {patience:g} s: {_end_of(log)}") from error
            if isinstance(error, EngineError):
                raise
            with contextlib.suppress(subprocess.TimeoutExpired):  # it closes its port before it says why it ends
                process.wait(_LAST_WORDS_SECONDS)
            raise EngineError(f"the server broke off while it started: {_end_of(log)}") from error
        finally:
            watchdog.cancel()
            _end(process)


def phases_of(log: str) -> dict[str, float]:
    """From the line with which the server tells how long each phase of the engine's start took."""
    found = re.search(r"engine: ready [^(\n]*\((.*)\)", log)
    pairs = re.findall(r"([^,()]+?) ([0-9.]+) s", found[1]) if found else []
    return {name.strip(): float(seconds) for name, seconds in pairs}


def read_into_page_cache(paths: Sequence[Path]) -> None:
    """So that the start is timed and not the disk. In parts, by several threads."""
    parts = [(path, start) for path in paths for start in range(0, path.stat().st_size, _READ_BYTES)]
    with ThreadPoolExecutor(16) as readers:
        for _ in readers.map(lambda part: _read(*part), parts):
            pass


def _read(path: Path, start: int) -> None:
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        file.read(_READ_BYTES)


def _figure(name: str, times: StartTimes) -> Figure:
    details = {
        "listening, s": rounded(times.listening),
        "ready, s": rounded(times.ready),
        **{f"{phase}, s": seconds for phase, seconds in times.phases.items()},
    }
    return Figure(name, rounded(times.first_token), "s", True, details)


def _address(process: "subprocess.Popen[bytes]", log: IO[bytes]) -> tuple[str, int]:
    """Of the line on stdout that says where the server listens."""
    line = b"" if process.stdout is None else process.stdout.readline()
    found = re.search(r"listening on (http://\S+)", line.decode(errors="replace"))
    if found is None:
        raise EngineError(f"the server did not start: {_end_of(log)}")
    url = urlsplit(found[1])
    return url.hostname or "127.0.0.1", url.port or 80


@contextlib.contextmanager
def _connection(address: tuple[str, int], timeout: float) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection(*address, timeout=timeout)
    try:
        yield connection
    finally:
        connection.close()


def _status(address: tuple[str, int]) -> int:
    with _connection(address, 10.0) as connection:
        connection.request("GET", "/ready")
        return connection.getresponse().status


def _first_token(address: tuple[str, int], timeout: float) -> None:
    body = {"prompt": _PROMPT, "max_tokens": 1, "ignore_eos": True, "temperature": 0.0, "stream": True}
    with _connection(address, timeout) as connection:
        connection.request("GET", "/v1/models")
        models = json.loads(connection.getresponse().read())
        body["model"] = models["data"][0]["id"]
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        line = response.readline()
        if response.status != 200 or not line.startswith(b"data: {"):
            said = line.decode(errors="replace")[:500]
            raise EngineError(f"the server answered with status {response.status}: {said}")


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(20.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _text(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read().decode(errors="replace")


def _end_of(log: IO[bytes]) -> str:
    lines = _text(log).splitlines()
    return " / ".join(line.strip() for line in lines[-5:]) or "it said nothing"
