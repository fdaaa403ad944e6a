"""From logits to tokens.

The order of operations is vLLM's (docs.vllm.ai, `vllm.v1.sample.sampler`): log-probabilities are those of the untouched
logits; a temperature below 1e-5 is greedy; else temperature, then min-p, then top-k, then top-p on what top-k left.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from octavo_server.ipc import SamplingParams, TokenLogprobs
from octavo_server.worker.logprobs import rows_per_chunk, token_logprobs
from octavo_server.worker.noise import exponential_noise

GREEDY_BELOW = 1e-5


@dataclass(frozen=True, slots=True)
class Sampled:
    """A row's token, or None where the model gave no distribution (NaN or infinite logits)."""

    token_id: int | None
    logprobs: TokenLogprobs | None


def sample(logits: torch.Tensor, params: Sequence[SamplingParams], positions: Sequence[int]) -> list[Sampled]:
    """One token for each row.

    logits: [n, vocab] float32, left as it is. positions: where each token will stand in its sequence; with the seed it
    is the key of the noise. A row's result depends on that row alone.
    """
    highest, tokens = logits.max(dim=-1)  # a NaN anywhere in a row is its maximum
    random = [row for row, param in enumerate(params) if param.temperature >= GREEDY_BELOW]
    for begin in range(0, len(random), step := rows_per_chunk(logits.shape[-1])):
        rows = random[begin : begin + step]
        index = torch.tensor(rows, device=logits.device)
        scaled = processed_logits(logits[index], [params[row] for row in rows])
        noise = exponential_noise(
            [params[row].seed for row in rows], [positions[row] for row in rows], logits.shape[-1], logits.device
        )
        tokens[index] = choose(scaled, noise)
    usable = highest.isfinite().tolist()
    ids = tokens.tolist()
    logprobs = _logprobs(logits, params, ids)
    return [Sampled(ids[row], logprobs.get(row)) if usable[row] else Sampled(None, None) for row in range(len(params))]


def choose(scaled: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """[n] int64: token i with probability softmax(scaled)[i], if the noise is exponential with mean 1.

    The exponential race: Eᵢ / pᵢ is exponential with rate pᵢ, and the least of them is the i-th with probability
    pᵢ / Σp. The same as adding Gumbel noise to logits, with one logarithm less; p need not be normalised.
    """
    return (scaled.exp() / noise).argmax(dim=-1)


def processed_logits(logits: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """[n, vocab] float32: logits of what is sampled from, 0 for the likeliest token, -inf for excluded ones."""
    scaled = (logits - logits.amax(dim=-1, keepdim=True)) / _column([param.temperature for param in params], logits)
    if any(param.min_p > 0.0 for param in params):
        # p ≥ min_p · p_max, as a difference of logits
        floor = _column([math.log(param.min_p) if param.min_p > 0.0 else -math.inf for param in params], logits)
        scaled = scaled.masked_fill(scaled < floor, -math.inf)
    cut = [row for row, param in enumerate(params) if param.top_k > 0 or param.top_p < 1.0]
    if cut:
        index = torch.tensor(cut, device=logits.device)
        scaled[index] = _top_k_top_p(scaled[index], [params[row] for row in cut])
    return scaled


def _top_k_top_p(scaled: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """Keeps the top_k likeliest tokens, and of these the fewest whose share reaches top_p; equal ones by rising id."""
    vocab_size = scaled.shape[-1]
    ordered, order = scaled.sort(dim=-1, descending=True, stable=True)
    top_k = torch.tensor([param.top_k or vocab_size for param in params], device=scaled.device)[:, None]
    keep = torch.arange(vocab_size, device=scaled.device) < top_k
    weights = ordered.exp().masked_fill(~keep, 0.0).to(torch.float64)
    cumulative = weights.cumsum(dim=-1)
    # 2 where it is off: a rounded sum must not cut the last ones
    top_p = torch.tensor([param.top_p if param.top_p < 1.0 else 2.0 for param in params], device=scaled.device)[:, None]
    keep &= cumulative - weights < top_p * cumulative[:, -1:]
    keep[:, 0] = True
    return torch.empty_like(scaled).scatter_(-1, order, ordered.masked_fill(~keep, -math.inf))


def _logprobs(logits: torch.Tensor, params: Sequence[SamplingParams], ids: list[int]) -> dict[int, TokenLogprobs]:
    rows = [row for row, param in enumerate(params) if param.logprobs is not None]
    if not rows:
        return {}
    picked = logits if len(rows) == len(params) else logits[torch.tensor(rows, device=logits.device)]
    found = token_logprobs(picked, [ids[row] for row in rows], [params[row].logprobs or 0 for row in rows])
    return dict(zip(rows, found, strict=True))


def _column(values: list[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]
