"""What changes logits before the temperature, also for greedy rows: what is excluded, bias, penalties.

In vLLM's order (`vllm/v1/sample/sampler.py`): bad words, then the ends before `min_tokens`, then logit_bias, then
penalties. Repetition (Keskar et al., "CTRL", 2019): a token that stands in prompt or answer has its logit divided by
the penalty if it is above 0, else multiplied. Frequency and presence (OpenAI): of a token that the answer has c > 0
times, c · frequency_penalty + presence_penalty is subtracted. The mask of a grammar comes last: where it leaves nothing
but the end, that wins over all of these.

Only the touched entries are worked on, as (row, token) pairs: memory does not grow with the vocabulary, rows without
such a parameter cost nothing, and as no pair stands twice in one change, a row's result does not depend on the others.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from octavo_kernels.reference import apply_token_mask
from octavo_server.ipc import SamplingParams
from octavo_server.worker.transfer import upload


def has_penalties(params: SamplingParams) -> bool:
    """Whether one of the three penalties is on."""
    return params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0


def needs_history(params: SamplingParams) -> bool:
    """Whether the row's tokens must be known on the host when it is sampled."""
    return has_penalties(params) or any(len(word) > 1 for word in params.bad_words)


class History:
    """Which tokens a sequence has, and how often its answer has each. Counted once, then as the sequence grows.

    A function of the tokens alone: built anew after a preemption it is the same, but for the order of the tokens.
    """

    __slots__ = ("_counts", "_index", "_length", "_num_prompt", "_token_ids", "_tokens")

    def __init__(self, token_ids: np.ndarray, num_prompt: int) -> None:
        """token_ids: int64, prompt then answer; the caller writes each token into it before it counts."""
        self._token_ids = token_ids
        self._num_prompt = num_prompt
        self._length = 0
        self._index: dict[int, int] = {}
        self._tokens = self._counts = np.zeros(0, dtype=np.int64)

    def count(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """(distinct tokens of the first `length`, how often each stands in the answer). `length` never falls."""
        if self._length == 0:
            self._tokens = np.unique(self._token_ids[: self._num_prompt])
            self._counts = np.zeros_like(self._tokens)
            self._index = {token: index for index, token in enumerate(self._tokens.tolist())}
            self._length = self._num_prompt
        for token in self._token_ids[self._length : length].tolist():
            place = self._place(token)  # may put a longer array in the place of the one that is counted in
            self._counts[place] += 1
        self._length = length
        return self._tokens[: len(self._index)], self._counts[: len(self._index)]

    def tail(self, count: int, length: int) -> tuple[int, ...]:
        """The answer's last `count` tokens, or all that it has; its end is the `length`-th token of the sequence."""
        return tuple(self._token_ids[max(self._num_prompt, length - count) : length].tolist())

    def _place(self, token: int) -> int:
        place = self._index.setdefault(token, len(self._index))
        if place == len(self._tokens):
            room = np.zeros(max(64, place), dtype=np.int64)
            self._tokens, self._counts = np.concatenate([self._tokens, room]), np.concatenate([self._counts, room])
        self._tokens[place] = token
        return place


@dataclass(frozen=True, slots=True)
class SamplingRow:
    """What the sampler must know of a row. `position`: where the token will stand in its sequence.

    `history` is there if `needs_history(params)`, with all tokens before `position` written.
    """

    params: SamplingParams
    position: int
    num_prompt: int
    history: History | None = None
    mask: np.ndarray | None = None  # a grammar's: see `octavo_kernels.token_mask`
    forced: bool = False  # … of which nothing but ends of the answer are left


_Rows = Sequence[tuple[int, SamplingRow]]  # with their place in the batch


@dataclass(slots=True)
class _Pairs:
    """(row, token) pairs, none twice, with values."""

    rows: list[np.ndarray] = field(default_factory=list)
    tokens: list[np.ndarray] = field(default_factory=list)
    values: list[np.ndarray] = field(default_factory=list)

    def add(self, row: int, tokens: np.ndarray, *values: np.ndarray) -> None:
        self.rows.append(np.full(len(tokens), row))
        self.tokens.append(tokens)
        self.values.append(np.stack(values))

    def upload(self, device: torch.device) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """([2, m] int64 as an index of rows and tokens, [k, m] float32 values)."""
        where = upload(np.stack([np.concatenate(self.rows), np.concatenate(self.tokens)]), torch.int64, device)
        return where.unbind(), upload(np.concatenate(self.values, axis=1), torch.float32, device)


class LogitsProcessors:
    """Applies them to a batch. `eos_token_ids` are the model's own ends, which `min_tokens` excludes besides others."""

    def __init__(self, eos_token_ids: Sequence[int] = ()) -> None:
        self._eos_token_ids = tuple(eos_token_ids)

    def touches(self, row: SamplingRow) -> bool:
        """Whether something would change this row's logits."""
        params = row.params
        unmasked = params.bad_words or params.logit_bias or self._is_short(row)
        return bool(unmasked) or has_penalties(params) or row.mask is not None

    def apply(self, logits: torch.Tensor, rows: Sequence[SamplingRow]) -> None:
        """Changes logits [n, vocab] float32 in place; only enqueues on CUDA."""
        touched = [(index, row) for index, row in enumerate(rows) if self.touches(row)]
        if touched:
            self._exclude(logits, touched)
            _bias(logits, touched)
            _penalize(logits, touched)
            _keep_to_grammars(logits, touched)

    def _exclude(self, logits: torch.Tensor, rows: _Rows) -> None:
        pairs = _Pairs()
        for index, row in rows:
            excluded = _bad_words(row)
            if self._is_short(row):
                excluded |= {*self._eos_token_ids, *row.params.stop_token_ids}
            tokens = np.array([token for token in sorted(excluded) if token < logits.shape[-1]], dtype=np.int64)
            if len(tokens):
                pairs.add(index, tokens, np.full(len(tokens), -math.inf))
        if pairs.rows:
            where, (values,) = pairs.upload(logits.device)
            logits.index_put_(where, values)

    def _is_short(self, row: SamplingRow) -> bool:
        return row.position - row.num_prompt < row.params.min_tokens


def _bad_words(row: SamplingRow) -> set[int]:
    """Tokens that would complete a bad word in the answer."""
    words = row.params.bad_words
    if not words:
        return set()
    longest = max(len(word) for word in words) - 1
    tail = row.history.tail(longest, row.position) if row.history is not None else ()
    # A word that is longer than the answer so far is not in it: the slice is then too short to be equal.
    return {word[-1] for word in words if len(word) == 1 or tail[1 - len(word) :] == word[:-1]}


def _bias(logits: torch.Tensor, rows: _Rows) -> None:
    pairs = _Pairs()
    for index, row in rows:
        if bias := row.params.logit_bias:
            pairs.add(index, np.array(list(bias), dtype=np.int64), np.array(list(bias.values()), dtype=np.float64))
    if pairs.rows:
        where, (values,) = pairs.upload(logits.device)
        logits.index_put_(where, logits[where] + values)


def _penalize(logits: torch.Tensor, rows: _Rows) -> None:
    pairs = _Pairs()
    for index, row in rows:
        if row.history is None or not has_penalties(row.params):
            continue
        tokens, counts = row.history.count(row.position)
        less = counts * row.params.frequency_penalty + (counts > 0) * row.params.presence_penalty
        pairs.add(index, tokens, np.full(len(tokens), row.params.repetition_penalty), less)
    if pairs.rows:
        where, (repetition, less) = pairs.upload(logits.device)
        found = logits[where]
        found = torch.where(found > 0, found / repetition, found * repetition)
        logits.index_put_(where, found - less)


def _keep_to_grammars(logits: torch.Tensor, rows: _Rows) -> None:
    masked = [(index, row.mask, row.forced) for index, row in rows if row.mask is not None]
    if masked:
        places, masks, forced = zip(*masked, strict=True)
        where = upload(places, torch.int64, logits.device)
        found = logits[where]
        apply_token_mask(
            found, upload(np.stack(masks), torch.int32, logits.device), upload(forced, torch.int32, logits.device)
        )
        logits[where] = found
