"""A production trace through the KV cache: its hit rate is that of one LRU over pages, tiers or not.

The prompts are made up, in the shape of the conversations that Mooncake published (FAST '25). Where OCTAVO_TRACES names
a folder that holds its `mooncake_conversation.jsonl`, which is no part of the repository, they are those.
"""

import json
import os
import random
from collections import OrderedDict
from pathlib import Path

import pytest

from octavo_server.engine.block_pool import BlockPool
from octavo_server.engine.kv_cache_manager import KVCacheManager
from octavo_server.engine.request import Request
from octavo_server.ipc import SamplingParams
from octavo_server.step import PageEvent
from page_machine import take_moves

PAGE = 16  # a name of the trace stands for 512 tokens; how many there are is the same to the cache


def made_up_trace(count: int) -> list[list[int]]:
    """Conversations that grow by turns, behind one common page: prompts as the ids of their pages."""
    rng, fresh = random.Random(0), iter(range(1, 1 << 30))
    conversations: list[list[int]] = []
    prompts = []
    for _ in range(count):
        if conversations and rng.random() < 0.6:
            pages = conversations.pop(-1 - min(int(rng.expovariate(1 / 300)), len(conversations) - 1))
        else:
            pages = [0]
        pages = pages + [next(fresh) for _ in range(1 + int(rng.lognormvariate(2.0, 1.0)))]
        prompts.append(pages[:240])
        conversations.append(pages[:240])
    return prompts


@pytest.fixture(scope="module")
def trace() -> list[list[int]]:
    folder = os.environ.get("OCTAVO_TRACES")
    if folder is None:
        return made_up_trace(6000)
    path = Path(folder) / "mooncake_conversation.jsonl"
    return [json.loads(line)["hash_ids"] for line in path.read_text().splitlines()]


def lru_hit_rate(prompts: list[list[int]], capacity: int) -> float:
    """Of all pages looked up, the share that an LRU holds which drops a prompt's tail before its head."""
    held: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for prompt in prompts:
        missing = next((index for index, page in enumerate(prompt) if page not in held), len(prompt))
        hits += missing
        for page in prompt:
            held.pop(page, None)
        while len(held) + len(prompt) > capacity:
            held.popitem(last=False)
        held.update((page, None) for page in reversed(prompt))
    return hits / sum(map(len, prompts))


def cache_hit_rate(prompts: list[list[int]], num_blocks: int, num_slots: int) -> tuple[float, KVCacheManager]:
    """The same through the manager, one request at a time. The token behind the pages is there to be computed."""
    cache = KVCacheManager(BlockPool(num_blocks), PAGE)
    cache.handle(PageEvent("slots", count=num_slots))
    sampling = SamplingParams()
    for number, prompt in enumerate(prompts):
        tokens: list[int] = []
        for page in prompt:
            tokens += [page] * PAGE
        names = [page.to_bytes(16, "little") for page in prompt]
        request = Request(str(number), [*tokens, 0], sampling, 1 << 20, page_hashes=names)
        hit = cache.lookup(request)
        assert cache.admit(request, hit, request.num_tokens - hit.num_tokens)
        take_moves(cache)
        cache.free(request)
    stats = cache.stats
    return (stats["prefix_hits"] + stats["prefix_hits_host"]) / (PAGE * sum(map(len, prompts))), cache


def test_the_device_alone_hits_what_an_lru_of_its_size_hits(trace: list[list[int]]) -> None:
    prompts = trace[:3000]
    found, _ = cache_hit_rate(prompts, 2000, 0)
    assert found == pytest.approx(lru_hit_rate(prompts, 2000), abs=0.001)
    assert found > 0.02


def test_device_and_host_hit_what_an_lru_of_their_sum_hits(trace: list[list[int]]) -> None:
    found, cache = cache_hit_rate(trace, 5000, 15_000)
    assert found == pytest.approx(lru_hit_rate(trace, 20_000), abs=0.001)
    assert found > lru_hit_rate(trace, 5000) + 0.05, "the host tier brings nothing"
    assert cache.stats["prefix_hits_host"] > 0
    assert cache.stats["kv_blocks_used"] == 0
