"""A worker without a model: block tables over a cache of tokens, and a next token that depends on all of them.

So a page that is lost, shared by mistake or overwritten changes what comes out, as it would with a real model.
"""

from collections.abc import Callable

from octavo_server.engine.block_pool import BlockPool
from octavo_server.engine.kv_cache_manager import KVCacheManager
from octavo_server.engine.request import Request
from octavo_server.engine.scheduler import Scheduler, SchedulerLimits
from octavo_server.engine.step import SampledRow, SchedulerOutput
from octavo_server.ipc import RequestOutput, SamplingParams

VOCAB = 1000


def next_token(tokens: list[int]) -> int:
    """The fake model: a token that depends on every token before it and on their order; never below 10."""
    value = 7
    for token in tokens:
        value = (value * 31 + token + 1) % 1_000_003
    return 10 + value % (VOCAB - 10)


class FakeRunner:
    """Stores tokens in pages, as a model stores K and V, and reads them back through the block tables."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.cache = [[-1] * block_size for _ in range(num_blocks)]
        self.tokens: dict[str, list[int]] = {}
        self.blocks: dict[str, list[int]] = {}
        self.computed: dict[str, int] = {}
        self.steps: list[SchedulerOutput] = []

    def execute(self, output: SchedulerOutput) -> list[SampledRow]:
        self.steps.append(output)
        for request_id in (*output.finished_ids, *output.preempted_ids):
            for state in (self.tokens, self.blocks, self.computed):
                state.pop(request_id, None)
        for new in output.new_requests:
            self.tokens[new.request_id] = list(new.token_ids)
            self.blocks[new.request_id] = list(new.block_ids)
            self.computed[new.request_id] = new.num_computed_tokens
        for request_id, added in output.new_block_ids.items():
            self.blocks[request_id] += added
        rows = (self._compute(request_id, count) for request_id, count in output.num_scheduled_tokens.items())
        return [row for row in rows if row is not None]

    def _compute(self, request_id: str, count: int) -> SampledRow | None:
        tokens, blocks = self.tokens[request_id], self.blocks[request_id]
        for index in range(self.computed[request_id], self.computed[request_id] + count):
            self.cache[blocks[index // self.block_size]][index % self.block_size] = tokens[index]
        self.computed[request_id] += count
        if self.computed[request_id] < len(tokens):
            return None
        seen = [self.cache[blocks[index // self.block_size]][index % self.block_size] for index in range(len(tokens))]
        tokens.append(next_token(seen))
        return SampledRow(request_id, tokens[-1])


class FakeEngine:
    """A scheduler with a `FakeRunner`, and the results by request."""

    def __init__(
        self,
        *,
        num_blocks: int = 64,
        block_size: int = 4,
        max_num_seqs: int = 8,
        max_num_batched_tokens: int = 32,
        max_model_len: int = 64,
        eos: frozenset[int] = frozenset(),
    ) -> None:
        limits = SchedulerLimits(max_num_seqs, max_num_batched_tokens, max_model_len, VOCAB, eos)
        self.pool = BlockPool(num_blocks)
        self.scheduler = Scheduler(limits, KVCacheManager(self.pool, block_size))
        self.runner = FakeRunner(num_blocks, block_size)
        self.outputs: dict[str, list[int]] = {}
        self.results: dict[str, RequestOutput] = {}  # the last of each request

    def add(self, request_id: str, prompt: list[int], **sampling: object) -> RequestOutput | None:
        params = SamplingParams(**{"max_tokens": 8, **sampling})  # type: ignore[arg-type]
        return self.scheduler.add(Request(request_id, prompt, params, self.scheduler.limits.max_model_len))

    def step(self) -> SchedulerOutput:
        output = self.scheduler.schedule()
        for result in self.scheduler.update(output, self.runner.execute(output)):
            self.outputs.setdefault(result.request_id, []).extend(result.token_ids)
            self.results[result.request_id] = result
        return output

    def run(self, each_step: Callable[[SchedulerOutput], None] = lambda _output: None, limit: int = 100_000) -> None:
        """Steps until nothing is left."""
        for _ in range(limit):
            if not self.scheduler.has_work:
                return
            each_step(self.step())
        raise AssertionError(f"not through after {limit} steps: {self.scheduler.running}, {self.scheduler.waiting}")


def alone(prompt: list[int], count: int) -> list[int]:
    """What the fake model says, computed without engine or pages."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]
