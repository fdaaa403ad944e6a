"""The residual stream, and the pairs that operations on it take."""

from dataclasses import dataclass

import torch

Norm = tuple[torch.Tensor, float]
"""Weight [n] and eps of an RMSNorm."""

Linear = tuple[torch.Tensor, torch.Tensor | None]
"""Weight [out, in] and bias [out] of a linear map."""


@dataclass(slots=True)
class Residual:
    """The hidden states of a step, [T, n], as its layers add to them.

    pending: what is still to be added, [T, n], or parts of that, [parts, T, n]: the norm that comes next does it in the
        same pass. Operations may write over both.
    """

    hidden: torch.Tensor
    pending: torch.Tensor | None = None
