"""Log-probabilities of the model's own distribution, with the likeliest alternatives."""

from collections.abc import Sequence

import torch

from octavo_server.ipc import TokenLogprobs

# What one chunk of rows may take at 8 bytes a vocabulary entry, whatever a request asks for.
CHUNK_BYTES = 64 * 2**20


def rows_per_chunk(vocab_size: int) -> int:
    """Rows of the vocabulary that are worked on at once."""
    return max(1, CHUNK_BYTES // (8 * vocab_size))


def token_logprobs(logits: torch.Tensor, token_ids: Sequence[int], counts: Sequence[int]) -> list[TokenLogprobs]:
    """For each row the token's log-probability and rank, and the `counts[r]` likeliest tokens with theirs.

    logits: [n, vocab] float32, as the model gave them. Ranks begin at 1; equally likely tokens share theirs, and are
    listed by rising id. Worked on in chunks of rows. A count above the vocabulary's size gives all of it.
    """
    step = rows_per_chunk(logits.shape[-1])
    result: list[TokenLogprobs] = []
    for begin in range(0, len(token_ids), step):
        end = begin + step
        result += _chunk(logits[begin:end], token_ids[begin:end], counts[begin:end])
    return result


def _chunk(logits: torch.Tensor, token_ids: Sequence[int], counts: Sequence[int]) -> list[TokenLogprobs]:
    chosen = torch.tensor(token_ids, dtype=torch.int64, device=logits.device)[:, None]
    ranks = (logits > logits.gather(-1, chosen)).sum(-1) + 1
    top = likeliest(logits, min(max(counts), logits.shape[-1]))
    ids = torch.cat([chosen, top], dim=-1)
    values = logits.log_softmax(-1).gather(-1, ids)
    return [
        TokenLogprobs(token_ids=row_ids[: count + 1], logprobs=row_values[: count + 1], rank=rank)
        for row_ids, row_values, rank, count in zip(ids.tolist(), values.tolist(), ranks.tolist(), counts, strict=True)
    ]


def likeliest(logits: torch.Tensor, count: int) -> torch.Tensor:
    """[n, count] int64: the ids of the `count` greatest logits by falling logit, equal ones by rising id.

    `topk` leaves open which of equal values it takes, and models of 16 bits have many equal ones. So it is given keys
    without ties: the float's bits in an order that integers share, above the id counted down.
    """
    bits = (logits + 0.0).view(torch.int32).to(torch.int64)  # + 0.0 makes -0.0 equal to 0.0
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    ids = torch.arange(logits.shape[-1], dtype=torch.int64, device=logits.device)
    return ordered.mul_(1 << 32).add_((1 << 32) - 1 - ids).topk(count, dim=-1).indices
