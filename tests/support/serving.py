"""Real server processes for tests: `octavo serve`'s own, with the real engine or the fake one."""

import contextlib
import fcntl
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Final

import httpx

import forked
import tiny_tokenizers

SUPPORT: Final = Path(__file__).parent
PAGES: Final = (
    1024  # of a real engine, if nothing else is said: to fill a gigabyte takes it longer than to read a model
)
Process = subprocess.Popen[str] | forked.ForkedProcess
PATIENCE_SECONDS: Final = 60.0  # a bound for a machine under load, not an expectation


class ServerProcess:
    """A running server. `url` has no trailing slash and no /v1."""

    def __init__(self, process: Process, log: IO[bytes]) -> None:
        self.process = process
        self._log = log
        if process.stdout is None:
            raise RuntimeError("the server was started without a pipe")
        line = process.stdout.readline()
        match = re.fullmatch(r"octavo: listening on (https?://\S+)\n", line)
        if match is None:
            process.wait(PATIENCE_SECONDS)
            raise RuntimeError(f"no address but {line!r}; the log: {self.log}")
        self.url = match[1]

    @property
    def log(self) -> str:
        """What it wrote on stderr."""
        self._log.seek(0)
        return self._log.read().decode()

    @property
    def admin_url(self) -> str:
        """That of the second port, where there is one."""
        found = re.search(r"the admin port is (https?://\S+)", self.log)
        return self.url if found is None else found[1]

    def wait_until_ready(self) -> None:
        """Until /ready says so."""
        until(lambda: httpx.get(f"{self.url}/ready").status_code == 200 or self._gone(), self.process)

    def engine_pid(self) -> int:
        """Process id of the engine."""
        (pid,) = [pid for pid, command in self.children().items() if "engine" in command]
        return pid

    def children(self) -> dict[int, str]:
        """Process ids and command lines of the processes that it started."""
        lists = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        pids = [int(word) for path in lists for word in path.read_text().split()]
        return {pid: Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in pids}

    def metric(self, name: str, **labels: str) -> float:
        """A sample of /metrics."""
        from prometheus_client.parser import text_string_to_metric_families

        text = httpx.get(f"{self.admin_url}/metrics").text
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    return sample.value
        raise KeyError(name)

    def _gone(self) -> bool:
        if self.process.poll() is not None:
            raise RuntimeError(f"the server ended with {self.process.returncode}; the log: {self.log}")
        return False


@contextlib.contextmanager
def serve(
    model: Path,
    *,
    fake: bool = True,
    env: Mapping[str, str] | None = None,
    prelude: str = "",
    execute: bool = False,
    **config: Any,
) -> Iterator[ServerProcess]:
    """A server on a free port, with `config` besides the model; ended at the end, by force if need be.

    A real engine has `PAGES` pages; `prelude` is code that it runs first, to break something on purpose. With `execute`
    the server is the program of its process from the beginning, which takes a second longer: for what /proc tells of a
    program's start.
    """
    defaults = {"model": str(model), "port": 0, "served_model_name": ["tiny"], "device": "cpu"}
    if not fake:
        defaults["num_gpu_blocks_override"] = PAGES
    with tempfile.TemporaryFile() as log, tempfile.TemporaryDirectory() as reports:
        values = json.dumps(defaults | {"crash_report_dir": reports} | config)
        arguments = ["fake" if fake else "real", values]
        environment = {**os.environ, **(env or {}), "ENGINE_PRELUDE": prelude}
        process = _execute(arguments, environment, log) if execute else forked.start(arguments, environment, log)
        try:
            yield ServerProcess(process, log)
        finally:
            end(process)


def _execute(arguments: list[str], environment: Mapping[str, str], log: IO[bytes]) -> Process:
    command = [sys.executable, str(SUPPORT / "serving.py"), *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment, start_new_session=True
    )


def end(process: Process) -> None:
    """In order if possible."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    try:
        process.wait(PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def until(condition: Any, process: Process | None = None) -> None:
    """Wait for a condition, which is looked at again and again."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {PATIENCE_SECONDS} s: {condition}")
        time.sleep(0.02)


def event_schema(stream: Any) -> Any:
    """Of an event's data in a stream, from the description of the stream; errors are described beside it."""
    data = stream["itemSchema"]["properties"]["data"]
    schema, _ = (data["anyOf"][0] if "anyOf" in data else data)["contentSchema"]["anyOf"]
    return schema


def event_validator(stream: Any) -> Any:
    """Of `event_schema`, which is checked here and once: that takes longer than all events of a stream."""
    import jsonschema  # not at the top: servers begin as forks of a process that has imported this module

    validator = jsonschema.Draft202012Validator(event_schema(stream))
    validator.check_schema(validator.schema)
    return validator


def is_alive(pid: int) -> bool:
    """Whether a process runs (one that only waits to be reaped does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def text_model(directory: Path) -> Path:
    """A model's directory without weights, which is all that the fake engine needs."""
    tokenizer = tiny_tokenizers.byte_level_bpe()
    tiny_tokenizers.save(tokenizer, directory, chat_template=tiny_tokenizers.CHATML)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 512,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "rope_theta": 10000.0,
        "dtype": "float32",
        "bos_token_id": tokenizer.token_to_id("<s>"),
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
    }
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def main(kind: str, values: str) -> int:
    """The server process itself; errors as the command line tells them."""
    from octavo_server.config import ServerConfig
    from octavo_server.errors import OctavoError
    from octavo_server.frontend import client, start_watch
    from octavo_server.frontend.engine_child import ENGINE_COMMAND
    from octavo_server.frontend.server import run

    if limit := os.environ.get("HANG_SECONDS"):
        client.HANG_SECONDS = float(limit)  # type: ignore[misc]  # so that no test waits for the real one
    if limit := os.environ.get("START_HANG_SECONDS"):
        start_watch.START_HANG_SECONDS = float(limit)  # type: ignore[misc]
    if directory := os.environ.get("BLOCK_COUNTS"):
        import block_counts

        block_counts.install(Path(directory))
    if limits := os.environ.get("OPEN_FILES"):
        soft, hard = map(int, limits.split(":"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    command = ENGINE_COMMAND if kind == "real" else (sys.executable, str(SUPPORT / "fake_engine.py"))
    if prelude := os.environ["ENGINE_PRELUDE"]:
        start = "import sys\nfrom octavo_server.engine_process import main\nsys.exit(main())"
        command = (sys.executable, "-c", f"# engine\n{prelude}\n{start}")
    try:
        return run(ServerConfig.model_validate_json(values), command)
    except OctavoError as error:
        print(f"octavo: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))


def unread_bytes(pid: int) -> int:
    """That wait on a process's stdin."""
    pipe = os.open(f"/proc/{pid}/fd/0", os.O_RDONLY | os.O_NONBLOCK)
    try:
        return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)
    finally:
        os.close(pipe)
