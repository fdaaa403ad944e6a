"""An engine without a model that speaks the real protocol: it answers with the prompt's own tokens, one a step.

The answer is the prompt, then the end of sequence; with `ignore_eos` the prompt again and again. The choices of a
prompt begin with its first token, its second and so on. Log-probabilities fall by 0.5 from the token itself to the ids
that follow it. A vector is made of the prompt's tokens. Pages whose names it has seen count as cached. Lower priorities
go first, expired requests end. For tests of the API process alone: starts at once, and is steered by environment
variables:

FAKE_STEP_SECONDS  duration of a step
FAKE_GATE          a path: the start waits in "load weights" until it exists
FAKE_FAILURE       a message: the start fails with it
FAKE_CRASH_TOKEN   a token id: the process kills itself when a prompt contains it
FAKE_SILENT_TOKEN  a token id: the process hangs after the first token of a request with it
FAKE_ERROR_TOKEN   a token id: a request that begins with it ends with an internal error after its first token; one that
                   begins with one of the ids behind it, with an error of another kind
FAKE_HOLD          a path: as long as it exists, no request gets on
FAKE_ANSWER        two token ids: the answer is what stands between them in the prompt
"""

import json
import os
import signal
import struct
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import zmq

from octavo_server import ipc
from octavo_server.page_hash import HASH_BYTES
from octavo_server.step_ring import StepRing, steps_path

MAX_MODEL_LEN = 256
BLOCK_SIZE = 16
NUM_BLOCKS = 64


@dataclass
class Request:
    """A request and how far its answer is."""

    message: ipc.AddRequest
    sent: int = 0
    cached: int = 0
    replayed: int = 0


@dataclass
class FakeEngine:
    """The state of the engine."""

    socket: Any
    epoch: int
    eos: int
    max_num_seqs: int
    ring: StepRing
    requests: dict[str, Request] = field(default_factory=dict)
    steps: int = 0
    generated: int = 0
    prompted: int = 0
    pages: set[bytes] = field(default_factory=set)

    def run(self) -> None:
        """Until it is told to shut down, or its parent has gone."""
        parent, step_seconds = os.getppid(), float(os.environ.get("FAKE_STEP_SECONDS", "0.001"))
        while os.getppid() == parent:
            self.socket.poll(int(step_seconds * 1000) if self.requests else 200)
            while self.socket.poll(0):
                if not self.take(ipc.frontend_decoder.decode(self.socket.recv())):
                    return
            outputs = self.step()
            self.send(ipc.Outputs(self.epoch, outputs, self.stats()))
            if outputs:
                time.sleep(step_seconds)

    def take(self, message: ipc.FrontendMessage) -> bool:
        """Handle a message; False at the end."""
        if message.epoch != self.epoch:
            return True
        match message:
            case ipc.AddRequest():
                if number("FAKE_CRASH_TOKEN") in message.prompt_token_ids:
                    os.kill(os.getpid(), signal.SIGKILL)
                sent = len(message.output_token_ids)
                self.requests[message.request_id] = Request(message, sent, self.look_up(message), replayed=sent)
            case ipc.AddChoices():
                for one in ipc.requests_of(message):
                    self.take(one)
            case ipc.Abort():
                for request_id in message.request_ids:
                    self.requests.pop(request_id, None)
            case ipc.Shutdown():
                return False
        return True

    def look_up(self, message: ipc.AddRequest) -> int:
        """Tokens of the prompt in pages that were seen before; all of them are seen now."""
        names = [message.page_hashes[at : at + HASH_BYTES] for at in range(0, len(message.page_hashes), HASH_BYTES)]
        known = 0
        while known < len(names) and names[known] in self.pages:
            known += 1
        self.pages.update(names)
        return min(known * BLOCK_SIZE, len(message.prompt_token_ids) - 1)

    def step(self) -> list[ipc.RequestOutput]:
        """The next token of every running request."""
        now = time.monotonic()
        messages = [request.message for request in self.requests.values()]
        outputs = [failure(message, "timeout") for message in messages if (message.deadline or now) < now]
        expired = {output.request_id for output in outputs}
        waiting = [request for request_id, request in self.requests.items() if request_id not in expired]
        waiting.sort(key=lambda request: request.message.priority)
        held = os.path.exists(os.environ.get("FAKE_HOLD", ""))  # noqa: PTH110 (an empty path is one that is not there)
        running = [] if held else waiting[: self.max_num_seqs]
        outputs += [self.advance(request) for request in running]
        if running:
            self.steps += 1
            self.ring.write(self.steps, f"rows {len(running)}, waiting {len(waiting) - len(running)}")
        for output in outputs:
            if output.finish_reason is not None:
                del self.requests[output.request_id]
        return outputs

    def advance(self, request: Request) -> ipc.RequestOutput:
        """The next token of one request."""
        message, sampling = request.message, request.message.sampling
        prompt = message.prompt_token_ids
        output: dict[str, Any] = {"request_id": message.request_id, "token_ids": []}
        if request.sent == request.replayed:
            self.prompted += len(prompt)
            output["num_cached_tokens"] = request.cached
            if sampling.prompt_logprobs is not None:
                output["prompt_logprobs"] = [None, *(logprobs(token, sampling.prompt_logprobs) for token in prompt[1:])]
        if request.sent and number("FAKE_SILENT_TOKEN") in prompt:
            hang()
        if request.sent and (kind := error_kind(prompt[0])) is not None:
            return failure(message, kind)
        if message.pooling:
            return ipc.RequestOutput(**output, finish_reason="stop", embedding=vector(prompt))
        if sampling.max_tokens == 0:
            return ipc.RequestOutput(**output, finish_reason="length")
        said = answer_in(prompt)
        ends = request.sent >= len(said) and not sampling.ignore_eos
        token = self.eos if ends else said[(request.sent + sampling.choice) % len(said)]
        request.sent += 1
        self.generated += 1
        output["token_ids"] = [token]
        if sampling.logprobs is not None:
            output["logprobs"] = [logprobs(token, sampling.logprobs)]
        if ends:
            output["finish_reason"] = "stop"
        elif token in sampling.stop_token_ids:
            output |= {"finish_reason": "stop", "stop_reason": token}
        elif request.sent >= sampling.max_tokens:
            output["finish_reason"] = "length"
        return ipc.RequestOutput(**output)

    def stats(self) -> ipc.EngineStats:
        """Each running request holds two pages."""
        running = min(len(self.requests), self.max_num_seqs)
        waiting = list(self.requests.values())[running:]
        return ipc.EngineStats(
            running=running,
            waiting=len(waiting),
            waiting_prompt_tokens=sum(len(request.message.prompt_token_ids) for request in waiting),
            kv_blocks_used=2 * running,
            kv_blocks_total=NUM_BLOCKS,
            block_size=BLOCK_SIZE,
            preemptions=0,
            prompt_tokens=self.prompted,
            generation_tokens=self.generated,
            steps=self.steps,
            step_seconds=0.0,
        )

    def send(self, message: ipc.EngineMessage) -> None:
        """To the API process."""
        self.socket.send(ipc.encoder.encode(message))


def vector(prompt: list[int]) -> bytes:
    """As wide as `serving.text_model` is."""
    return struct.pack("<32f", *(float(prompt[at % len(prompt)] + at) for at in range(32)))


def error_kind(token: int) -> ipc.ErrorKind | None:
    """How a request that begins with this token fails, if it does."""
    kinds: tuple[ipc.ErrorKind, ...] = get_args(ipc.ErrorKind)
    at = token - number("FAKE_ERROR_TOKEN")
    return kinds[at] if "FAKE_ERROR_TOKEN" in os.environ and 0 <= at < len(kinds) else None


def failure(message: ipc.AddRequest, kind: ipc.ErrorKind) -> ipc.RequestOutput:
    """The end of a request that fails."""
    return ipc.RequestOutput(message.request_id, [], finish_reason="error", error="the step failed", error_kind=kind)


def logprobs(token: int, count: int) -> ipc.TokenLogprobs:
    """The token itself is the likeliest."""
    ids = [token, *(token + offset for offset in range(count))]
    return ipc.TokenLogprobs(ids, [-0.5, *(-0.5 - 0.5 * offset for offset in range(count))], 1)


def answer_in(prompt: list[int]) -> list[int]:
    """What of a prompt is the answer to it."""
    if not (markers := os.environ.get("FAKE_ANSWER")):
        return prompt
    begin, end = (prompt.index(int(token)) for token in markers.split())
    return prompt[begin + 1 : end]


def number(name: str) -> int:
    """A token id from the environment; -1, which is none, where it is not set."""
    return int(os.environ.get(name, "-1"))


def hang() -> None:
    """For as long as the parent is there."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(0.05)


def main() -> None:
    """The start message is one line of JSON on stdin."""
    start = json.loads(sys.stdin.readline())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    context = zmq.Context()
    socket = context.socket(zmq.PAIR)
    socket.setsockopt(zmq.LINGER, 1000)
    socket.connect(f"ipc://{start['socket']}")
    model = json.loads((Path(start["config"]["model"]) / "config.json").read_text())
    ring = StepRing(steps_path(start["socket"]))
    engine = FakeEngine(socket, start["epoch"], model["eos_token_id"], start["config"]["max_num_seqs"] or 256, ring)
    engine.send(ipc.Starting(engine.epoch, "load weights", 0.0))
    gate = os.environ.get("FAKE_GATE")
    parent = os.getppid()
    while gate and not Path(gate).exists() and os.getppid() == parent:
        time.sleep(0.01)
    if failure := os.environ.get("FAKE_FAILURE"):
        engine.send(ipc.Failed(engine.epoch, failure))
        socket.close()
        context.term()
        sys.exit(1)
    phases = {"load weights": 0.25}
    longest = start["config"]["max_model_len"] or MAX_MODEL_LEN
    ready = ipc.Ready(
        engine.epoch,
        ipc.PROTOCOL_VERSION,
        longest,
        BLOCK_SIZE,
        NUM_BLOCKS,
        phases,
        max_num_seqs=engine.max_num_seqs,
        prefix_caching=start["config"]["enable_prefix_caching"],
        eos_token_ids=[engine.eos],
    )
    engine.send(ready)
    engine.run()
    socket.close()
    context.term()


if __name__ == "__main__":
    main()
