"""An engine without a model that speaks the real protocol, and the API process before it: parts of `api_overhead.py`.

    python benchmarks/echo_engine.py --as api [--model DIRECTORY] [--profile FILE] [--limited] [--thinks] [--tls FILE]

The engine takes the requests that are there, and every so many seconds gives each of them a token: those of its prompt,
over and over. The seconds stand in a file, which is read after each step.
"""

import argparse
import json
import os
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
MAX_MODEL_LEN: Final = 4096
MAX_NUM_SEQS: Final = 1024
API_KEY: Final = "benchmark"
LIMITS: Final = ("max_requests_per_minute", "max_tokens_per_minute", "max_concurrent_requests")
STEP_SECONDS: Final = "ECHO_STEP_SECONDS"  # in the environment: a file that holds the seconds of a step


class EchoEngine:
    """An engine that computes nothing: all requests are in every step, and a step gives each a token."""

    def __init__(self, socket: Any, epoch: int) -> None:
        self._socket, self._epoch = socket, epoch
        self._prompts: dict[str, list[int]] = {}
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
                self._prompts[message.request_id] = message.prompt_token_ids
            case ipc.AddChoices():
                for request in ipc.requests_of(message):
                    self._take(request)
            case ipc.Abort():
                for request_id in message.request_ids:
                    self._left.pop(request_id, None)
                    self._prompts.pop(request_id, None)
        return not isinstance(message, ipc.Shutdown)

    def _step(self) -> None:
        left, prompts = self._left, self._prompts
        self._steps += 1
        outputs = []
        for request_id, remaining in list(left.items()):
            prompt = prompts[request_id]
            token = [prompt[-remaining % len(prompt)]]
            if remaining > 1:
                left[request_id] = remaining - 1
                outputs.append(ipc.RequestOutput(request_id, token))
            else:
                del left[request_id], prompts[request_id]
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
    EchoEngine(socket, start["epoch"]).run(Path(os.environ[STEP_SECONDS]))
    socket.close()
    context.term()


def run_api(options: argparse.Namespace) -> None:
    """`octavo serve` with the engine above, by the options of `main`."""
    from octavo_server.config import ServerConfig
    from octavo_server.frontend.server import run

    command = (sys.executable, str(Path(__file__).resolve()), "--as", "engine")
    more: dict[str, Any] = {"api_key": (API_KEY,), **dict.fromkeys(LIMITS, 10**9)} if options.limited else {}
    if options.thinks:
        more["reasoning_parser"] = "deepseek_r1"  # answers begin within thoughts
    if options.tls is not None:
        more["ssl_certfile"] = more["ssl_keyfile"] = options.tls
    config = ServerConfig(
        model=options.model, port=0, max_num_seqs=MAX_NUM_SEQS, device="cpu", served_model_name=("bare",), **more
    )
    if options.profile is None:
        sys.exit(run(config, command))
    import cProfile

    profiler = cProfile.Profile()
    try:
        profiler.runcall(run, config, command)
    finally:
        profiler.dump_stats(options.profile)


def main() -> None:
    """One of the two processes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--as", dest="role", choices=("engine", "api"), required=True)
    parser.add_argument("--model", type=Path, default=DEMO, help="whose tokenizer is used")
    parser.add_argument("--profile", help="cProfile of the event loop's thread goes there")
    parser.add_argument("--limited", action="store_true", help=f"only with the key {API_KEY}, which has high limits")
    parser.add_argument("--thinks", action="store_true", help="answers begin with thoughts")
    parser.add_argument("--tls", type=Path, help="certificate and key of the server, in one file")
    options = parser.parse_args()
    if options.role == "engine":
        run_engine()
    else:
        run_api(options)


if __name__ == "__main__":
    main()
