"""A step's inputs under Triton's interpreter, against the twin, and the twin against loops over plain lists."""

import random
from typing import Any

import numpy as np
import pytest
import torch

from octavo_kernels import step_inputs, step_inputs_kernel
from octavo_kernels.step_inputs import ExpandedStep, SlotState, packed_words, sections

SLOTS, WIDTH, PAGE, SCRATCH = 12, 9, 4, 777


def state() -> SlotState:
    last = torch.arange(5000, 5000 + SLOTS)
    return SlotState(last, torch.full((SLOTS + 1, WIDTH), -3, dtype=torch.int32), PAGE, SCRATCH)


def room(tokens: int, rows: int) -> ExpandedStep:
    shapes = [(tokens,)] * 3 + [(rows,), (rows, WIDTH)] + [(rows,)] * 3
    kinds = [torch.int64] * 3 + [torch.int32] * 2 + [torch.int64] * 3
    return ExpandedStep._make(torch.full(shape, -9, dtype=kind) for shape, kind in zip(shapes, kinds, strict=True))


class Loop:
    """Requests in slots, and what a step with some of them must come to, by loops."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.tables: dict[int, list[int]] = {slot: [] for slot in range(SLOTS)}
        self.known = dict.fromkeys(range(SLOTS), 0)

    def step(self, tokens: int, rows: int) -> tuple[torch.Tensor, dict[str, Any]]:
        """A packed step of some rows in any order, and its expected outputs."""
        memory = np.full(packed_words(tokens, rows) + 200, -1, dtype=np.int32)
        to = sections(memory, tokens, rows)
        to.token_ids[:], to.slot[:], to.known[:], to.start[:], to.sampling[:] = 0, SLOTS, 1, 0, -1
        expected: dict[str, Any] = {name: [] for name in ("ids", "positions", "slots", "contexts", "tables", "sampled")}
        used = pages = 0
        to.draws[:] = expected["draws"] = self.draw.randrange(2)
        count_rows = self.draw.randint(1, min(rows, SLOTS))
        for row, slot in enumerate(self.draw.sample(range(SLOTS), count_rows)):
            if self.draw.random() < 0.2:
                self.tables[slot], self.known[slot] = [], 0  # another request has it now
            table = self.tables[slot]
            room = tokens - used - (count_rows - row - 1)
            count = self.draw.randint(1, min(room, WIDTH * PAGE))
            start = self.draw.randint(0, WIDTH * PAGE - count)
            while len(table) < -(-(start + count) // PAGE):
                table.append(self.draw.randrange(700))
            to.query_start[row], to.page_start[row] = used, pages
            to.start[row], to.slot[row], to.known[row] = start, slot, self.known[slot]
            for page in table[self.known[slot] :]:
                to.pages[pages] = page
                pages += 1
            self.known[slot] = len(table)
            for position in range(start, start + count):
                is_last = position == start + count - 1 and self.draw.random() < 0.5
                token = -1 if is_last else self.draw.randrange(700)
                to.token_ids[used] = token
                expected["ids"].append(5000 + slot if is_last else token)
                expected["positions"].append(position)
                expected["slots"].append(table[position // PAGE] * PAGE + position % PAGE)
                used += 1
            expected["contexts"].append(start + count)
            expected["tables"].append(list(table))
            if self.draw.random() < 0.7:
                to.sampling[len(expected["sampled"])] = row
                expected["sampled"].append((used - 1, slot))
        to.query_start[count_rows:], to.page_start[count_rows:] = used, pages
        return torch.from_numpy(memory), expected


def check(out: ExpandedStep, expected: dict[str, Any]) -> None:
    used, rows, sampled = len(expected["ids"]), len(expected["contexts"]), len(expected["sampled"])
    assert out.token_ids[:used].tolist() == expected["ids"] and not out.token_ids[used:].any()
    assert out.positions[:used].tolist() == expected["positions"] and not out.positions[used:].any()
    assert out.slot_mapping[:used].tolist() == expected["slots"]
    assert (out.slot_mapping[used:] == SCRATCH * PAGE).all()
    assert out.context_lens[:rows].tolist() == expected["contexts"]
    for row, table in enumerate(expected["tables"]):
        assert out.block_tables[row].tolist() == table + [-9] * (WIDTH - len(table))
    places = list(zip(out.last_index.tolist(), out.slot.tolist(), strict=True))
    assert places == expected["sampled"] + [(0, -1)] * (len(places) - sampled)
    assert out.draw_slot.tolist() == [slot if expected["draws"] else -1 for _, slot in places]


@pytest.mark.parametrize(("tokens", "rows"), [(1, 1), (40, 7), (300, 12), (9, 9)])
def test_steps_one_after_the_other_are_what_loops_make_of_them(
    tokens: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_inputs_kernel, "_TOKENS", 16)  # so that rows take more than one program
    monkeypatch.setattr(step_inputs_kernel, "_PAGES", 4)
    twin, ours, loop = state(), state(), Loop(seed=tokens)
    for _ in range(12):
        memory, expected = loop.step(tokens, rows)
        for held, expand in ((twin, step_inputs.expand_step), (ours, step_inputs_kernel.expand_step)):
            out = room(tokens, rows)
            expand(memory, held, out, tokens)
            check(out, expected)
        assert torch.equal(twin.tables, ours.tables)


def test_a_row_with_more_tokens_than_there_is_room_for_is_refused_by_the_twin() -> None:
    memory, _ = Loop(seed=3).step(30, 2)
    with pytest.raises(ValueError, match="a row has"):
        step_inputs.expand_step(memory, state(), room(30, 2), 1)
