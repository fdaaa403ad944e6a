"""Records work on the device once, to be replayed as a whole by one launch from the host."""

from collections.abc import Callable
from functools import cache
from typing import Protocol

import torch

from octavo_kernels.ops import has_triton


class Recorder(Protocol):
    """Turns work on fixed buffers into something that repeats it."""

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """Runs the work, and returns what repeats it on the current stream: the same kernels on the same memory."""
        ...

    def forget(self) -> None:
        """Nothing of what was recorded is repeated any more."""
        ...


class CudaRecorder:
    """CUDA graphs, all with one pool of memory: of two graphs that never run at a time one can use what the other left.

    `torch.cuda.graph` is not used: it gives torch's cached memory back to the driver, which the next large step would
    have to ask for again, and which is planned with.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = _capture_stream(device)

    def forget(self) -> None:
        """See Recorder. A pool that no graph uses any more cannot be used again."""
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """See Recorder. What `run` works on must be fit to be worked on when this is called, too."""
        run()  # compiles kernels and loads libraries, neither of which a capture allows
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):  # nothing runs on it: the default stream cannot be captured
            # Other threads may go on to wait for their copies.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                run()
            finally:
                graph.capture_end()
        graph.replay()  # the first one takes the graph to the device
        return graph.replay


@cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """The one on which all is captured: cuBLAS takes memory for each stream that it meets, and keeps it."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def pick_recorder(device: torch.device, *, enforce_eager: bool) -> Recorder | None:
    """None where each operation is launched by itself: on the CPU, without Triton, and on request.

    The definitions in plain torch, which stand in for missing kernels, read lengths back to the host.
    """
    return None if enforce_eager or not has_triton(device) else CudaRecorder(device)
