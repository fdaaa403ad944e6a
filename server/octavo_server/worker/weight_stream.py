"""Copies a checkpoint to the device by several threads: each reads pieces of the files and sends them up beside.

A single thread that copies out of a memory map moves some GB/s, as it takes a page fault for every 4 KiB, and CUDA
copies from memory that is not pinned in small steps, which it waits for. Here a thread has two pinned buffers and a
stream: while one buffer is on its way up, the other is filled. Plain reads take no page faults.
"""

import os
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from octavo_server.errors import ModelError
from octavo_server.worker.checkpoint_file import DTYPES, StoredTensor, state_of
from octavo_server.worker.host_memory import map_memory, pin, unpin

THREADS: Final = 8
BUFFER_BYTES: Final = 16 * 2**20  # a multiple of every dtype's size
_BUFFERS: Final = 2  # of a thread


@dataclass(frozen=True, slots=True)
class Piece:
    """Neighbouring elements of a stored tensor. place: where they go, [n], on the device, in the place's own dtype."""

    tensor: StoredTensor
    offset: int  # of the first byte, in the file
    num_bytes: int
    place: torch.Tensor


def pieces_of(tensor: StoredTensor, place: torch.Tensor, most_bytes: int = BUFFER_BYTES) -> list[Piece]:
    """The tensor cut into pieces that fit into a buffer. The place is contiguous."""
    flat, itemsize = place.view(-1), DTYPES[tensor.dtype].itemsize
    step = most_bytes // itemsize
    parts: Sequence[torch.Tensor] = flat.split(step)  # type: ignore[no-untyped-call]
    return [
        Piece(tensor, tensor.offset + number * step * itemsize, len(part) * itemsize, part)
        for number, part in enumerate(parts)
        if len(part)
    ]


def stream(pieces: Sequence[Piece], device: torch.device, threads: int = THREADS) -> None:
    """Copies all pieces, in about the order in which they are given; all is there when this returns.

    Raises ModelError if a file cannot be read, ends before it should, or has changed since its header was read.
    """
    waiting, failed = deque(pieces), threading.Event()
    with ExitStack() as stack:
        files = {path: stack.enter_context(_open(path)) for path in {piece.tensor.path for piece in pieces}}
        pool = stack.enter_context(ThreadPoolExecutor(threads, thread_name_prefix="octavo weights"))
        buffer_bytes = max((piece.num_bytes for piece in pieces), default=0)
        workers = [_Worker(waiting, files, device, failed) for _ in range(min(threads, len(pieces)))]
        for done in [pool.submit(worker.run, buffer_bytes) for worker in workers]:
            done.result()
        for path, state in {(piece.tensor.path, piece.tensor.state) for piece in pieces}:
            if state_of(files[path]) != state:
                raise ModelError(f"{path} changed while it was read; start again once the download is through")


class _Worker:
    """A thread's buffers, and its turns: read the next piece, send it up."""

    def __init__(
        self, waiting: deque[Piece], files: dict[Path, Any], device: torch.device, failed: threading.Event
    ) -> None:
        self._waiting = waiting
        self._files = files
        self._device = device
        self._failed = failed

    @torch.inference_mode()
    def run(self, buffer_bytes: int) -> None:
        """Until no piece is left, or one has failed here or elsewhere."""
        pinned: list[int] = []
        cuda = self._device.type == "cuda"
        side = torch.cuda.Stream(self._device) if cuda else None  # type: ignore[no-untyped-call]
        buffers = [torch.frombuffer(map_memory(buffer_bytes), dtype=torch.uint8) for _ in range(_BUFFERS)]
        try:
            for buffer in buffers if cuda else ():
                pin(buffer, self._device)
                pinned.append(buffer.data_ptr())
            with torch.cuda.stream(side) if cuda else nullcontext():
                self._copy_all(buffers)
        except BaseException:
            self._failed.set()
            raise
        finally:
            if side is not None:
                side.synchronize()
            unpin(pinned)

    def _copy_all(self, buffers: list[torch.Tensor]) -> None:
        sent: list[Any] = [None] * len(buffers)
        turn = 0
        while self._waiting and not self._failed.is_set():
            try:
                piece = self._waiting.popleft()
            except IndexError:  # another thread was faster
                return
            if sent[turn] is not None:
                sent[turn].synchronize()
            part = buffers[turn][: piece.num_bytes]
            _read(self._files[piece.tensor.path], piece, part)
            sent[turn] = self._send(part.view(DTYPES[piece.tensor.dtype]), piece.place)
            turn = (turn + 1) % len(buffers)

    def _send(self, part: torch.Tensor, place: torch.Tensor) -> Any:
        """An event after which the part has left; None on the CPU, where it has when this returns."""
        if part.dtype != place.dtype:
            part = part.to(self._device, non_blocking=True)  # cast there: a core is slower at it
        place.copy_(part, non_blocking=True)
        if self._device.type != "cuda":
            return None
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


def _open(path: Path) -> Any:
    try:
        return path.open("rb", buffering=0)
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error}); download it again") from error


def _read(file: Any, piece: Piece, to: torch.Tensor) -> None:
    """Fills `to`. The system hands out what it likes of what is asked for, 2 GiB at most."""
    memory, done = memoryview(to.numpy()), 0  # type: ignore[arg-type]
    try:
        while done < len(memory):
            count = os.preadv(file.fileno(), [memory[done:]], piece.offset + done)
            if count == 0:
                raise OSError("the file ends too early")
            done += count
    except OSError as error:
        raise ModelError(f"{piece.tensor.name} cannot be read ({error}); download the checkpoint again") from error
