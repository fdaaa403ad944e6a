"""Random weights instead of a checkpoint's: a shape can be timed, and memory planned, without a published model."""

from typing import Final

import torch

from octavo_common.model_config import ModelConfig
from octavo_kernels.ops import Ops
from octavo_server.worker.models.decoder import Decoder, weight_places

_SEED: Final = 0
_STD: Final = 0.02  # as models of this family begin their training


def random_decoder(config: ModelConfig, dtype: torch.dtype, device: torch.device, ops: Ops) -> Decoder:
    """A decoder whose matrices are normal noise and whose norms are 1; the same at each start on one device.

    Not zeros: what a GPU takes for a product depends on the power it draws, and that on the bits.
    """
    decoder = Decoder(config, dtype, device, ops)
    generator = torch.Generator(device).manual_seed(_SEED)
    for name, place in weight_places(decoder).items():
        if "norm" in name:
            place.fill_(1.0)
        else:
            place.normal_(std=_STD, generator=generator)
    if config.tie_word_embeddings:
        decoder.head.weight = decoder.embedding
    decoder.pack()
    return decoder
