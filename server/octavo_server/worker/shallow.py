"""A model of few layers for what is to be learned about a model of many: layers repeat, but for their windows."""

import copy
import dataclasses
from collections import Counter
from dataclasses import dataclass

from octavo_server.worker.graph_recorder import Recorder
from octavo_server.worker.model_runner import ModelRunner
from octavo_server.worker.models.decoder import Decoder


@dataclass(frozen=True, slots=True)
class StepBounds:
    """What the largest step is made of."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int


def shallow(decoder: Decoder, layers: int) -> Decoder:
    """The same with `layers` layers of each window, or as many as there are; weights are shared."""
    windows, seen, kept = decoder.config.sliding_window, Counter[int | None](), list[int]()
    for index, window in enumerate(windows):
        seen[window] += 1
        if seen[window] <= layers:
            kept.append(index)
    found = copy.copy(decoder)
    found.layers = [decoder.layers[index] for index in kept]
    found.config = dataclasses.replace(
        decoder.config, num_layers=len(kept), sliding_window=tuple(windows[index] for index in kept)
    )
    return found


def shallow_runner(like: ModelRunner, bounds: StepBounds, layers: int, recorder: Recorder | None = None) -> ModelRunner:
    """A runner of its own for steps of a shallow model, otherwise as `like`, which is left as it is. No cache yet."""
    if not isinstance(like.decoder, Decoder):
        raise RuntimeError("the model is not loaded")
    decoder = shallow(like.decoder, layers)
    runner = ModelRunner(
        decoder.config,
        like.device,
        like.dtype,
        block_size=like.batch.block_size,
        max_num_seqs=bounds.max_num_seqs,
        recorder=recorder,
        max_num_batched_tokens=bounds.max_num_batched_tokens,
    )
    runner.decoder = decoder
    return runner
