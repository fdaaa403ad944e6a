"""Muon for the matrices (Jordan et al. 2024, kellerjordan.github.io/posts/muon), AdamW for embeddings and norms."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn


def orthogonal(g: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrices of a stack [n, rows, columns], by five Newton-Schulz steps."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x: Tensor = g.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(5):
        y = x @ x.mT
        x = a * x + (b * y + c * y @ y) @ x
    return x.mT if tall else x


class Muon:
    """Matrices of one shape are stacked, so that a step is a handful of kernels."""

    def __init__(
        self, parameters: list[nn.Parameter], rate: float, momentum: float = 0.95, decay: float = 0.02
    ) -> None:
        self.rate, self.momentum, self.decay = rate, momentum, decay
        groups: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for p in parameters:
            groups[p.shape].append(p)
        self._groups = list(groups.values())
        self._means = [torch.zeros(len(g), *g[0].shape, device=g[0].device) for g in self._groups]
        self._update = torch.compile(orthogonal, dynamic=False) if parameters[0].is_cuda else orthogonal

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """One update at `scale` times the learning rate; clears the gradients."""
        rate = self.rate * scale
        for group, mean in zip(self._groups, self._means, strict=True):
            gradients = torch.stack([p.grad for p in group if p.grad is not None])
            mean.lerp_(gradients, 1 - self.momentum)
            update = self._update(gradients.lerp(mean, self.momentum))
            rows, columns = group[0].shape
            factor = -rate * max(1.0, rows / columns) ** 0.5
            weights: list[Tensor] = list(group)
            torch._foreach_mul_(weights, 1 - rate * self.decay)
            torch._foreach_add_(weights, list(update.float().unbind()), alpha=factor)
            for p in group:
                p.grad = None
