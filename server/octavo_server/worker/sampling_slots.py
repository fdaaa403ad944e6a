"""What the sampling kernels know of the requests: one row of a table for each slot, filled when a request joins.

After that the device keeps it up to date by itself (`octavo_kernels.sampling_table`): a step brings nothing, and none
waits for the tokens of the one before it. What grows with a request's length, the entries of a request that has
penalties or excludes tokens, is only there for requests that ask for it (`octavo_kernels.logit_entries`).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from octavo_kernels import logit_entries
from octavo_kernels import sampling_table as columns
from octavo_kernels.few_tokens import MOST_FEW
from octavo_kernels.table_rows import write_rows
from octavo_server.ipc import SamplingParams
from octavo_server.worker.input_batch import RequestState, ScheduledRow
from octavo_server.worker.logits_processors import has_penalties
from octavo_server.worker.noise import stream_of
from octavo_server.worker.sampler import GREEDY_BELOW
from octavo_server.worker.transfer import upload, upload_together

# Beside the kernels' flags: wants log-probabilities; has a top-k among what CUT stands for; has a grammar.
LOGPROBS: Final = 1 << 30
LARGE_K: Final = 1 << 29
GRAMMAR: Final = 1 << 28
# The kernels' numbers, as Python's.
FEW, CUT, ADJUSTED = int(columns.FEW.value), int(columns.CUT.value), int(columns.ADJUSTED.value)
COUNTED, WORDED, SAVED = int(columns.COUNTED.value), int(columns.WORDED.value), int(columns.SAVED.value)
_SEEN, _NEVER = int(logit_entries.SEEN.value), int(logit_entries.NEVER.value)
_END, _NOW = int(logit_entries.END.value), int(logit_entries.NOW.value)


@dataclass(frozen=True, slots=True)
class _Entries:
    """Entries in host memory, as they are laid out on the device."""

    memory: np.ndarray
    capacity: int
    length: int
    num_biased: int
    words_at: int  # place in `memory`
    num_words: int
    word_length: int


@dataclass(frozen=True, slots=True)
class _Joins:
    """A request that joins: its row of the table, but for the addresses of its entries."""

    request_id: str
    slot: int
    row: np.ndarray
    flags: int
    entries: _Entries | None


@dataclass(frozen=True, slots=True)
class SlotChanges:
    """Requests that leave and join with a step."""

    leaving: tuple[str, ...]
    joining: list[_Joins]


class SamplingSlots:
    """The table, [slots, columns] int64 on the device, and the memory that its rows point to."""

    def __init__(self, num_slots: int, vocab_size: int, eos_token_ids: Iterable[int], device: torch.device) -> None:
        self.table = torch.zeros(num_slots, columns.COLUMNS, dtype=torch.int64, device=device)
        self._vocab_size = vocab_size
        self._eos_token_ids = tuple(eos_token_ids)
        self._unusual: dict[int, int] = {}  # slot → flags, where there are any
        self._held: dict[int, tuple[str, torch.Tensor]] = {}  # slot → (request, its entries)

    def changes(self, joining: Iterable[RequestState], leaving: Iterable[str]) -> SlotChanges:
        """What a step that these requests join is to bring, worked out before it counts their tokens."""
        by_slot = {state.slot: state for state in joining}
        return SlotChanges(tuple(leaving), [self._joins(state) for state in by_slot.values()])

    @property
    def joining_words(self) -> int:
        """Of 8 bytes, that a request which joins brings: its slot and its row."""
        return 1 + columns.COLUMNS

    def apply(self, changes: SlotChanges, memory: torch.Tensor | None = None) -> None:
        """Tells the device, in the order of the steps. Only enqueues.

        memory: [n, joining_words] int64, pinned, which the device reads rows from itself if they fit. What requests
        that left have held is given back: steps under way still find it, being ahead on the stream.
        """
        if self._held and changes.leaving:
            gone = set(changes.leaving)
            self._held = {slot: held for slot, held in self._held.items() if held[0] not in gone}
        if changes.joining:
            for joins in changes.joining:
                self._take(joins)
            slots = np.array([joins.slot for joins in changes.joining], dtype=np.int64)
            rows = np.stack([joins.row for joins in changes.joining])
            if memory is not None and len(slots) <= len(memory):
                memory = memory[: len(slots)]
                memory.numpy()[:, 0], memory.numpy()[:, 1:] = slots, rows
                write_rows(self.table, memory)
            else:
                self.table.index_copy_(0, *upload_together([slots, rows], self.table.device))

    def flags(self, rows: Sequence[ScheduledRow]) -> int:
        """What any of the rows asks for."""
        found = 0
        if unusual := self._unusual:
            for row in rows:
                found |= unusual.get(row.state.slot, 0)
        return found

    def _take(self, joins: _Joins) -> None:
        self._held.pop(joins.slot, None)
        self._unusual.pop(joins.slot, None)
        if joins.flags:
            self._unusual[joins.slot] = joins.flags
        if joins.entries is not None:
            memory = upload(joins.entries.memory, torch.int32, self.table.device)
            self._held[joins.slot] = (joins.request_id, memory)
            joins.row[columns.ENTRIES.value] = memory.data_ptr()
            joins.row[columns.WORDS.value] = memory.data_ptr() + 4 * joins.entries.words_at

    def _joins(self, state: RequestState) -> _Joins:
        params, row = state.sampling, np.zeros(columns.COLUMNS, dtype=np.int64)
        factors = row.view(np.float32)
        entries = _entries(state, self._vocab_size, self._eos_token_ids)
        flags = self._flags(params, entries)
        row[columns.STREAM.value] = stream_of(params.seed, params.choice)
        row[columns.POSITION.value] = state.num_tokens
        row[columns.TOP_K.value] = params.top_k
        row[columns.FLAGS.value] = flags & ~(LOGPROBS | LARGE_K | GRAMMAR)
        row[columns.MIN_UNTIL.value] = state.num_prompt + params.min_tokens
        factors[columns.INVERSE_TEMPERATURE.value] = 0 if params.temperature < GREEDY_BELOW else 1 / params.temperature
        factors[columns.TOP_P.value] = params.top_p
        factors[columns.MIN_P.value] = math.log(params.min_p) if params.min_p > 0.0 else -math.inf
        factors[columns.REPETITION.value] = params.repetition_penalty
        factors[columns.PRESENCE.value] = params.presence_penalty
        factors[columns.FREQUENCY.value] = params.frequency_penalty
        if entries is not None:
            row[columns.CAPACITY.value] = entries.capacity
            row[columns.LENGTH.value] = entries.length
            row[columns.BIASED.value] = entries.num_biased
            row[columns.NUM_WORDS.value] = entries.num_words
            row[columns.WORD_LENGTH.value] = entries.word_length
        return _Joins(state.request_id, state.slot, row, flags, entries)

    def _flags(self, params: SamplingParams, entries: _Entries | None) -> int:
        flags = (0 if params.logprobs is None else LOGPROBS) | (GRAMMAR if params.grammar else 0)
        if entries is not None:
            flags |= ADJUSTED | (COUNTED if has_penalties(params) else 0) | (WORDED if entries.num_words else 0)
            flags |= 0 if params.logprobs is None else SAVED
        if params.temperature < GREEDY_BELOW:
            return flags
        if 0 < params.top_k <= MOST_FEW:
            return flags | FEW
        if params.top_k > 0:
            return flags | CUT | LARGE_K
        return flags | (CUT if params.top_p < 1.0 or params.min_p > 0.0 else 0)


def _entries(state: RequestState, vocab_size: int, eos_token_ids: Sequence[int]) -> _Entries | None:
    """The entries that a request begins with; None if it needs none and will need none."""
    params, num_tokens = state.sampling, state.num_tokens
    counted = has_penalties(params)
    marks = dict.fromkeys(params.logit_bias or {}, 0)
    num_biased = len(marks)
    for word in params.bad_words:
        marks[word[-1]] = marks.get(word[-1], 0) | (_NEVER if len(word) == 1 else 0)
    if num_tokens - state.num_prompt < params.min_tokens:
        for token in (*eos_token_ids, *params.stop_token_ids):
            if token < vocab_size:
                marks[token] = marks.get(token, 0) | _END
    if not marks and not counted:
        return None
    tokens, states = np.array(list(marks), dtype=np.int32), np.array(list(marks.values()), dtype=np.int32)
    capacity = len(tokens)
    if counted:
        tokens, states = _count(tokens, states, state.token_ids[:num_tokens].astype(np.int32), state.num_prompt)
        capacity = min(vocab_size, len(tokens) + len(state.token_ids) - num_tokens)
    words = _words(params, state.token_ids[state.num_prompt : num_tokens], list(marks))
    longest = max((len(word) for word in params.bad_words), default=1)
    for entry in words.matching:
        states[entry] |= _NOW
    memory = np.zeros(capacity * (2 if params.logprobs is None else 3) + num_biased + words.memory.size, dtype=np.int32)
    memory[: len(tokens)] = tokens
    memory[capacity : capacity + len(tokens)] = states
    words_at = memory.size - words.memory.size
    memory[words_at - num_biased : words_at] = np.array(
        list((params.logit_bias or {}).values()), dtype=np.float32
    ).view(np.int32)
    memory[words_at:] = words.memory
    return _Entries(memory, capacity, len(tokens), num_biased, words_at, words.count, longest if words.count else 0)


def _count(tokens: np.ndarray, states: np.ndarray, known: np.ndarray, num_prompt: int) -> tuple[np.ndarray, np.ndarray]:
    """The entries with those of all known tokens, and how often the answer has each."""
    distinct = np.unique(known)
    answer, counts = np.unique(known[num_prompt:], return_counts=True)
    seen = np.full(len(distinct), _SEEN, dtype=np.int32)
    seen[np.searchsorted(distinct, answer)] += counts.astype(np.int32)
    place = np.searchsorted(distinct, tokens)
    there = (place < len(distinct)) & (distinct[np.minimum(place, len(distinct) - 1)] == tokens)
    states[there] |= seen[place[there]]
    fresh = np.ones(len(distinct), dtype=bool)
    fresh[place[there]] = False
    return np.concatenate([tokens, distinct[fresh]]), np.concatenate([states, seen[fresh]])


@dataclass(frozen=True, slots=True)
class _Words:
    memory: np.ndarray
    count: int
    matching: list[int]  # entries of the tokens that would complete one now


def _words(params: SamplingParams, answer: np.ndarray, entries: list[int]) -> _Words:
    """The bad words of several tokens, behind the end of the answer."""
    words = [word for word in params.bad_words if len(word) > 1]
    if not words:
        return _Words(np.zeros(0, dtype=np.int32), 0, [])
    length = max(map(len, words))
    tail = answer[max(0, len(answer) - (length - 1)) :].tolist()
    tail = [logit_entries.NO_TOKEN] * (length - 1 - len(tail)) + tail
    memory, matching = list(tail), []
    for word in words:
        entry, before = entries.index(word[-1]), list(word[:-1])
        memory += [entry, *[logit_entries.ANY.value] * (length - len(word)), *before]
        if tail[len(tail) - len(before) :] == before:
            matching.append(entry)
    return _Words(np.array(memory, dtype=np.int32), len(words), matching)
