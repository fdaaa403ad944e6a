"""The engine as a process, `python -m octavo_server.engine_process`: its start, its socket, its loop and its end.

Imports nothing heavy until it has said that it starts.
"""

import ctypes
import gc
import importlib
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Final

import msgspec

from octavo_common import logs
from octavo_server import ipc
from octavo_server.engine_channel import Channel, Inbox
from octavo_server.errors import OctavoError
from octavo_server.free_memory import give_memory_back
from octavo_server.grammar_gate import GrammarGate
from octavo_server.grammar_store import GrammarStore
from octavo_server.step_ring import StepRing, steps_path

if TYPE_CHECKING:
    from octavo_server.engine.core import EngineCore

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS: Final = 0.5
LEAST_SLACK_SECONDS: Final = 0.001  # that a socket can be waited for
STALL_SECONDS: Final = 0.002  # between two looks at the disk, or a grammar, when all requests wait for it
MESSAGES_SECONDS: Final = 0.002  # for messages between two steps, and one message at least
IDLE_WORK_SECONDS: Final = 1.0  # between two pieces of idle work while there are steps
CLOSE_SECONDS: Final = 5.0  # for the step in flight and for writing cached pages to disk, at an orderly end
# A full collection looks at every token of every request, for tens of milliseconds: it is left for idle moments.
GC_THRESHOLDS: Final = (10_000, 20, 1_000)
_PR_SET_PDEATHSIG: Final = 1
_Add = Callable[[ipc.AddRequest], list[ipc.RequestOutput]]


class StartMessage(msgspec.Struct, frozen=True):
    """One line of JSON on stdin, which then stays open: its end means that the API process is gone.

    `config` is an `EngineConfig`; `socket` the path that the API process is bound to.
    """

    config: msgspec.Raw
    socket: str
    epoch: int
    log_level: str = "info"
    log_format: logs.LogFormat = "text"


class EngineLoop:
    """Messages in, steps, results out; asleep when there is nothing to do, but for the heartbeat.

    The heart beats in this loop and from within its steps, as their work gets on, and never in a thread of its own: an
    engine that hangs falls silent, one whose step takes minutes does not.
    """

    def __init__(self, core: "EngineCore", channel: Channel, grammars: GrammarStore | None = None) -> None:
        self.core = core
        self.gate = GrammarGate(grammars)
        self.channel = channel
        self.stopping = False
        self._inbox = Inbox(channel)
        self._last_sent = 0.0
        self._more_idle_work = True
        self._last_idle_work = 0.0
        self._to_collect = False  # there were steps since memory was last tidied up

    def stop(self, _signal: int, _frame: FrameType | None) -> None:
        """Ends the loop after the step in flight."""
        self.stopping = True

    def run(self) -> None:
        """Until it is told to stop, or stdin ends. Raises EngineError if the device is of no use any more."""
        self._idle_work()  # the first host memory: the first request could find its prefix on disk
        while not self.stopping and not stdin_ended():
            outputs: list[ipc.RequestOutput] = []
            steps, heard = self.core.meter.num_steps, self._hear(outputs)
            if self.core.has_work and not self.stopping:
                outputs += self.core.step(self._beat)
                self._to_collect = True
            elif self._to_collect and not heard:
                gc.collect()
                give_memory_back()
                self._to_collect = False
            self._idle_work()
            if outputs or self.core.meter.num_steps != steps:  # each step is told of, for the metrics
                self._send(outputs)
            self._beat()

    def _hear(self, outputs: list[ipc.RequestOutput]) -> bool:
        """Takes messages in, until the next step is to be decided; whether there were any."""
        heard = self._inbox.fill(self._patience())
        self._take_in(outputs)
        self._let_in(outputs)
        while not self.stopping and (slack := self._slack()) >= LEAST_SLACK_SECONDS:
            heard |= self._inbox.fill(min(slack, STALL_SECONDS) if self.gate.num_waiting else slack)
            self._take_in(outputs)
            self._let_in(outputs)
        return heard

    def _slack(self) -> float:
        """Seconds for which a request that comes can still be part of the next step.

        0 if there is no seat for one, or one is there already: to let it in takes the host longer than decodes alone.
        """
        scheduler = self.core.scheduler
        if scheduler.waiting or len(scheduler.running) >= scheduler.limits.max_num_seqs:
            return 0.0
        return self.core.meter.slack(time.monotonic())

    def _take_in(self, outputs: list[ipc.RequestOutput]) -> None:
        """Handle messages; while there are steps to take, for a moment only, however many and long they are."""
        until = time.monotonic() + MESSAGES_SECONDS
        for message in self._inbox.messages():
            outputs += self._handle(message)
            if self.core.has_work and time.monotonic() >= until:
                return

    def _let_in(self, outputs: list[ipc.RequestOutput]) -> None:
        """Requests whose grammars are compiled join the others."""
        if self.gate.num_waiting:
            ready, ended = self.gate.poll(time.monotonic())
            outputs += ended
            for request in ready:
                outputs += self._add(request)

    def _patience(self) -> float:
        """Seconds for which a message is waited for: none while steps can go on, or there are messages."""
        if not self._inbox.is_empty:
            return 0.0
        if self.core.has_work:
            return STALL_SECONDS if self.core.is_stalled else 0.0
        if self.gate.num_waiting:
            return STALL_SECONDS
        return 0.0 if self._more_idle_work else HEARTBEAT_SECONDS

    def _idle_work(self) -> None:
        """A piece of it: as long as there is nothing else, one after the other; beside steps rarely."""
        now = time.monotonic()
        if not self.core.has_work or (self._more_idle_work and now - self._last_idle_work >= IDLE_WORK_SECONDS):
            self._more_idle_work = self.core.idle()
            self._last_idle_work = now

    def _beat(self) -> None:
        """Says that work gets on, unless something was said just now."""
        if time.monotonic() - self._last_sent >= HEARTBEAT_SECONDS:
            self._send([])

    def _send(self, outputs: list[ipc.RequestOutput]) -> None:
        self.gate.forget(outputs)
        stats = self.core.stats()
        if self.gate.num_waiting:
            stats = msgspec.structs.replace(stats, waiting=stats.waiting + self.gate.num_waiting)
        self.channel.send(ipc.Outputs(self.channel.epoch, outputs, stats))
        self._last_sent = time.monotonic()

    def _handle(self, message: ipc.AddRequest | ipc.Abort | ipc.Shutdown) -> list[ipc.RequestOutput]:
        match message:
            case ipc.AddRequest():
                return self._add(message, self.gate.add if message.sampling.grammar else None)
            case ipc.Abort():
                return self.gate.abort(message.request_ids) + self.core.abort(message.request_ids)
            case ipc.Shutdown():
                self.stopping = True
        return []

    def _add(self, request: ipc.AddRequest, add: _Add | None = None) -> list[ipc.RequestOutput]:
        try:
            return (add or self.core.add)(request)
        except ValueError as error:
            log.error("dropped a request: %s", error)
            return []


class Phases:
    """Tells of the phases of the start, and how long each took."""

    def __init__(self, channel: Channel, started: float) -> None:
        self.seconds: dict[str, float] = {}
        self.figures: dict[str, float] = {}
        self._channel = channel
        self._started = started
        self._current: tuple[str, float] | None = None

    def begin(self, name: str) -> None:
        """The phase before it has ended; the first one began with the process."""
        self.end()
        now = time.monotonic()
        self._current = (name, now if self.seconds else self._started)
        self._channel.send(ipc.Starting(self._channel.epoch, name, now - self._started))

    def note(self, name: str, value: float) -> None:
        """A figure of the phase, see `start_engine`."""
        self.figures[name] = value

    def end(self) -> None:
        """Closes the last phase."""
        if self._current is not None:
            name, since = self._current
            self.seconds[name] = time.monotonic() - since
            self._current = None


def main() -> int:
    """Runs the engine; returns its exit status: 0 after an orderly end, 1 if it could not start or broke."""
    started = time.monotonic()
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the API process decides
    # Threads that spin while they wait for each other make a step tens of times slower where cores are shared. This is
    # read once, when torch loads its OpenMP library.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not _stdin_says(select.POLLIN):
        importlib.import_module("torch")  # while whoever started this has still to begin itself
    line = sys.stdin.buffer.readline()
    if not line:
        return 1  # nobody is there any more
    try:
        start = msgspec.json.decode(line, type=StartMessage)
    except msgspec.DecodeError as error:
        print(f"octavo engine: is started by octavo serve, with a line of JSON on stdin ({error})", file=sys.stderr)
        return 1
    logs.configure(start.log_level, start.log_format)
    channel = Channel(start.socket, start.epoch)
    try:
        _serve(start, channel, started)
    except OctavoError as error:
        return _give_up(channel, str(error))
    except Exception as error:
        log.exception("the engine stops")
        return _give_up(channel, f"internal error in the engine: {type(error).__name__}")
    finally:
        channel.close()
    return 0


def _serve(start: StartMessage, channel: Channel, started: float) -> None:
    phases = Phases(channel, started)
    phases.begin("import")
    from octavo_server.config import EngineConfig
    from octavo_server.engine_start import start_engine

    core = start_engine(EngineConfig.model_validate_json(bytes(start.config)), phases.begin, phases.note)
    phases.end()
    core.ring = StepRing(steps_path(start.socket))
    loop = EngineLoop(core, channel, core.runner.grammars)
    signal.signal(signal.SIGTERM, loop.stop)  # until now it ended the process at once, which was right
    channel.send(_ready(core, channel.epoch, phases))
    gc.collect()
    gc.freeze()  # what the start made stays: the collector need not go through it again and again
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        loop.run()
    except Exception:
        log.error("the last steps:\n%s", "\n".join(core.ring.read()))
        raise
    core.close(CLOSE_SECONDS)


def _ready(core: "EngineCore", epoch: int, phases: Phases) -> ipc.Ready:
    kv_cache = core.scheduler.kv_cache
    return ipc.Ready(
        epoch=epoch,
        version=ipc.PROTOCOL_VERSION,
        max_model_len=core.scheduler.limits.max_model_len,
        block_size=kv_cache.block_size,
        num_blocks=kv_cache.pool.num_blocks,
        phases=phases.seconds,
        figures=phases.figures,
        max_num_seqs=core.scheduler.limits.max_num_seqs,
        prefix_caching=kv_cache.prefix_caching,
        eos_token_ids=sorted(core.scheduler.limits.eos_token_ids),
    )


def _give_up(channel: Channel, message: str) -> int:
    channel.send(ipc.Failed(channel.epoch, " ".join(message.split())))
    return 1


def stdin_ended() -> bool:
    """Whether nobody holds the other end of stdin any more. Costs about a microsecond."""
    return _stdin_says(0)


def _stdin_says(event: int) -> bool:
    """Whether there is a hang-up, or such an event."""
    poll = select.poll()
    poll.register(0, event)
    return bool(poll.poll(0))


def _die_with_parent() -> None:
    """Asks the kernel to kill this process when its parent dies.

    The kernel's parent is the thread that started us: the supervisor must do so from one that lives as long as it does.
    A parent that died before this call is noticed by the end of stdin.
    """
    prctl: Callable[[int, int], int] = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        log.warning("the kernel refuses to end this process with its parent; the end of stdin will, if later")


if __name__ == "__main__":
    sys.exit(main())
