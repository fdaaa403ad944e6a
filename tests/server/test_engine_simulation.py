"""Random arrivals, aborts, deadlines, failures and slow disks in a small pool, with every combination of what is on.

The oracle is the fake model itself, run alone. Whatever happened: what a request got is the beginning of its answer,
all of it if nothing ended it, and in the end no page is held.
"""

import itertools
import random

import pytest

from engine_fakes import FakeEngine, alone

STEPS = 220
FLAGS = list(
    itertools.product(
        [False, True],  # prefix caching
        [(0, False), (10, False), (10, True)],  # host slots, disk
        ["swap", "recompute", "auto"],
        [(False, "early"), (True, "early"), (True, "late")],  # overlap, and when a step is computed
    )
)


class Simulation:
    """One engine, what was asked of it, and what should come of that."""

    def __init__(
        self,
        seed: int,
        prefix_caching: bool,
        tiers: tuple[int, bool],
        preemption_mode: str,
        overlap: tuple[bool, str],
    ) -> None:
        self.rng = random.Random(repr((seed, prefix_caching, tiers, preemption_mode, overlap)))
        self.engine = FakeEngine(
            num_blocks=12,
            block_size=3,
            max_num_seqs=5,
            max_num_batched_tokens=self.rng.choice([4, 11, 30]),
            max_model_len=36,
            eos=frozenset(range(10, 40)),  # answers end by themselves now and then
            prefix_caching=prefix_caching,
            host_slots=tiers[0],
            disk=tiers[1],
            preemption_mode=preemption_mode,  # type: ignore[arg-type]
            overlap=overlap[0],
            compute=overlap[1],  # type: ignore[arg-type]
            copies=self.rng.choice(["early", "late"]),
        )
        self.wanted: dict[str, list[int]] = {}
        self.broken: set[str] = set()  # may have ended before their time
        self.stems = [[self.rng.randrange(10) for _ in range(18)] for _ in range(3)]

    def run(self) -> None:
        for _ in range(STEPS):
            self._act()
            self._check()
        self.engine.runner.fails.clear()
        self.engine.run()
        self._judge()

    def _act(self) -> None:
        engine, rng, draw = self.engine, self.rng, self.rng.random()
        if draw < 0.3:
            self._arrive()
        elif draw < 0.34 and self.wanted:
            name = rng.choice(list(self.wanted))
            self.broken.add(name)
            engine.abort(name)
        elif draw < 0.36:
            engine.runner.fails[engine.scheduler.num_steps + rng.randint(1, 3)] = MemoryError("injected")
        elif draw < 0.38:
            engine.runner.misses.update(name for name in engine.runner.disk if rng.random() < 0.5)
        else:
            engine.clock.now += rng.random()
            output = engine.step()
            assert output.total_tokens <= engine.scheduler.limits.max_num_batched_tokens
            assert len(output.num_scheduled_tokens) <= 5

    def _arrive(self) -> None:
        engine, rng, name = self.engine, self.rng, f"r{len(self.wanted)}"
        tokens = rng.choice(self.stems)[: rng.randint(0, 18)] + [rng.randrange(10) for _ in range(rng.randint(1, 5))]
        answer = alone(tokens, rng.randint(1, 12))
        end = next((index for index, token in enumerate(answer) if token < 40), len(answer) - 1)
        deadline = engine.clock.now + rng.uniform(1, 40) if rng.random() < 0.1 else None
        if deadline is not None:
            self.broken.add(name)
        refusal = engine.add(
            name,
            tokens,
            max_tokens=len(answer),
            priority=rng.randint(-1, 1),
            deadline=deadline,
            salt=rng.choice([b"", b"", b"tenant"]),
        )
        assert refusal is None
        self.wanted[name] = answer[: end + 1]

    def _check(self) -> None:
        scheduler, kv_cache = self.engine.scheduler, self.engine.kv_cache
        for group in (scheduler.running, scheduler.waiting):
            assert group == sorted(group, key=lambda request: request.key)
        assert len(scheduler.running) + len(scheduler.waiting) == len(scheduler.requests)
        assert scheduler.num_waiting_tokens == sum(request.num_tokens for request in scheduler.waiting)
        held = {block for request in scheduler.running for block in kv_cache.block_ids(request)}
        held |= {block for request in scheduler._ending.values() for block in kv_cache.block_ids(request)}
        assert len(held) == kv_cache.stats["kv_blocks_used"]

    def _judge(self) -> None:
        engine = self.engine
        for name, answer in self.wanted.items():
            got, last = engine.outputs.get(name, []), engine.results[name]
            assert got == answer[: len(got)], name
            if last.finish_reason == "error":
                assert name in self.broken or "out of memory" in (last.error or "")
            elif last.finish_reason != "abort":
                assert got == answer, name
        scheduler = engine.scheduler
        assert engine.kv_cache.stats["kv_blocks_used"] == 0
        assert scheduler.num_waiting_tokens == 0 and not scheduler._ending and not scheduler._launched
        assert scheduler.counts["generation_tokens"] == sum(len(tokens) for tokens in engine.outputs.values())
        assert not scheduler._hits
        assert engine.kv_cache.tiers.num_pinned == 0


@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_whatever_comes_and_goes_answers_are_right_and_every_page_comes_back(flags: tuple) -> None:  # type: ignore[type-arg]
    for seed in range(4):
        Simulation(seed, *flags).run()
