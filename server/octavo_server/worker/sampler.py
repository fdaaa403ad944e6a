"""From logits to tokens.

The order of operations is vLLM's (`vllm/v1/sample/sampler.py`): log-probabilities are those of the untouched logits;
then what `logits_processors.py` lists; a temperature below 1e-5 is greedy; else temperature, then min-p, then top-k,
then top-p on what top-k left.

In two halves, so that a step can be launched behind one that still runs: `Sampler.launch` enqueues the work and waits
for nothing, `SampledTensors.results` reads what came of it.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from octavo_server.ipc import SamplingParams, TokenLogprobs
from octavo_server.worker.logits_processors import LogitsProcessors, SamplingRow
from octavo_server.worker.logprobs import LogprobTensors, launch_logprobs, rows_per_chunk
from octavo_server.worker.noise import choice_seed, exponential_noise
from octavo_server.worker.transfer import download, upload

GREEDY_BELOW = 1e-5


@dataclass(frozen=True, slots=True)
class Sampled:
    """A row's token, or None where there is no distribution: its logits are NaN or infinite, or all are excluded."""

    token_id: int | None
    logprobs: TokenLogprobs | None


@dataclass(frozen=True, slots=True)
class SampledTensors:
    """What was launched for n rows.

    tokens: [n] of integers, -1 where a row has no distribution. logprobs: of the rows `logprob_rows`, in their order.
    """

    tokens: torch.Tensor
    logprobs: LogprobTensors | None = None
    logprob_rows: Sequence[int] = ()

    def to_host(self, memory: torch.Tensor | None = None) -> "SampledTensors":
        """The same in host memory, which CUDA has still to write. memory: pinned, for the tokens, if there is any."""
        logprobs = None if self.logprobs is None else self.logprobs.to_host()
        return SampledTensors(download(self.tokens, memory), logprobs, self.logprob_rows)

    def token_ids(self) -> list[int]:
        """A token for each row. Waits for the device if the tensors are still there."""
        return self.tokens.tolist()

    def logprobs_by_row(self) -> dict[int, TokenLogprobs]:
        """Of the rows that asked for them. Waits, too."""
        found = [] if self.logprobs is None else self.logprobs.results()
        return dict(zip(self.logprob_rows, found, strict=True))

    def results(self) -> list[Sampled]:
        """Both, one for each row."""
        logprobs = self.logprobs_by_row()
        return [
            Sampled(token, logprobs.get(row)) if token >= 0 else Sampled(None, None)
            for row, token in enumerate(self.token_ids())
        ]


class Sampler:
    """Draws tokens. Without a state: a row's result depends on that row alone."""

    def __init__(self, eos_token_ids: Iterable[int] = ()) -> None:
        """eos_token_ids: the model's own ends, which `min_tokens` excludes."""
        self._processors = LogitsProcessors(tuple(eos_token_ids))

    def launch(self, logits: torch.Tensor, rows: Sequence[SamplingRow]) -> SampledTensors:
        """Enqueues the drawing of one token for each of the rows, 1 or more.

        logits: [n, vocab] float32, left as it is. What is worked on is copied, some rows at a time.
        """
        highest, tokens = logits.max(dim=-1)  # a NaN anywhere in a row is its maximum
        usable = highest.isfinite()
        random = [index for index, row in enumerate(rows) if row.params.temperature >= GREEDY_BELOW]
        greedy = [
            index
            for index, row in enumerate(rows)
            if row.params.temperature < GREEDY_BELOW and self._processors.touches(row)
        ]
        for chunk in _chunks(greedy, logits.shape[-1]):
            where = upload(chunk, torch.int64, logits.device)
            scores = logits[where]
            self._processors.apply(scores, [rows[index] for index in chunk])
            highest, tokens[where] = scores.max(dim=-1)
            usable[where] &= highest.isfinite()
        for chunk in _chunks(random, logits.shape[-1]):
            where = upload(chunk, torch.int64, logits.device)
            tokens[where], ok = self._draw(logits[where], [rows[index] for index in chunk])
            usable[where] &= ok
        wanted = [index for index, row in enumerate(rows) if row.params.logprobs is not None]
        logprobs = _logprobs(logits, tokens, rows, wanted)
        return SampledTensors(tokens.masked_fill_(~usable, -1), logprobs, wanted)

    def sample(self, logits: torch.Tensor, rows: Sequence[SamplingRow]) -> list[Sampled]:
        """Both halves at once."""
        return self.launch(logits, rows).results()

    def _draw(self, scores: torch.Tensor, rows: Sequence[SamplingRow]) -> tuple[torch.Tensor, torch.Tensor]:
        """(tokens [n] int64, whether there is a distribution [n] bool); scores are changed."""
        self._processors.apply(scores, rows)
        params = [row.params for row in rows]
        seeds = [choice_seed(param.seed, param.choice) for param in params]
        noise = exponential_noise(seeds, [row.position for row in rows], scores.shape[-1], scores.device)
        highest = scores.amax(dim=-1, keepdim=True)
        return choose(processed_logits(scores, highest, params), noise), highest[:, 0].isfinite()


def choose(scaled: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """[n] int64: token i with probability softmax(scaled)[i], if the noise is exponential with mean 1.

    The exponential race: Eᵢ / pᵢ is exponential with rate pᵢ, and the least of them is the i-th with probability
    pᵢ / Σp. The same as adding Gumbel noise to logits, with one logarithm less; p need not be normalised.
    """
    return (scaled.exp() / noise).argmax(dim=-1)


def processed_logits(scores: torch.Tensor, highest: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """[n, vocab] float32: logits of what is sampled from, 0 for the likeliest token, -inf for excluded ones.

    scores: [n, vocab] float32. highest: [n, 1], its maxima.
    """
    # By the reciprocal, as the kernels do: the order of tokens, equal ones among them, is then the same.
    scaled = (scores - highest) * _column([1 / param.temperature for param in params], scores)
    if any(param.min_p > 0.0 for param in params):
        # p ≥ min_p · p_max, as a difference of logits
        floor = _column([math.log(param.min_p) if param.min_p > 0.0 else -math.inf for param in params], scores)
        scaled = scaled.masked_fill(scaled < floor, -math.inf)
    cut = [row for row, param in enumerate(params) if param.top_k > 0 or param.top_p < 1.0]
    if cut:
        index = upload(cut, torch.int64, scores.device)
        scaled[index] = _top_k_top_p(scaled[index], [params[row] for row in cut])
    return scaled


def _top_k_top_p(scaled: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """Keeps the top_k likeliest tokens, and of these the fewest whose share reaches top_p; equal ones by rising id."""
    vocab_size = scaled.shape[-1]
    ordered, order = scaled.sort(dim=-1, descending=True, stable=True)
    top_k = upload([param.top_k or vocab_size for param in params], torch.int64, scaled.device)[:, None]
    keep = torch.arange(vocab_size, device=scaled.device) < top_k
    weights = ordered.exp().masked_fill(~keep, 0.0).to(torch.float64)
    cumulative = weights.cumsum(dim=-1)
    # 2 where it is off: a rounded sum must not cut the last ones
    top_p = _column([param.top_p if param.top_p < 1.0 else 2.0 for param in params], scaled)
    keep &= cumulative - weights < top_p * cumulative[:, -1:]
    keep[:, 0] = True
    return torch.empty_like(scaled).scatter_(-1, order, ordered.masked_fill(~keep, -math.inf))


def _logprobs(
    logits: torch.Tensor, tokens: torch.Tensor, rows: Sequence[SamplingRow], wanted: Sequence[int]
) -> LogprobTensors | None:
    if not wanted:
        return None
    which = upload(wanted, torch.int64, logits.device) if len(wanted) < len(rows) else None
    return launch_logprobs(logits, tokens, [rows[row].params.logprobs or 0 for row in wanted], which)


def _chunks(indices: list[int], vocab_size: int) -> Iterator[list[int]]:
    step = rows_per_chunk(vocab_size)
    return (indices[begin : begin + step] for begin in range(0, len(indices), step))


def _column(values: list[float], like: torch.Tensor) -> torch.Tensor:
    return upload(values, like.dtype, like.device)[:, None]
