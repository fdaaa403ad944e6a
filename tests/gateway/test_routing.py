"""Routing against simple models: what is shared is found, no replica is overloaded, and gateways agree."""

import random
from collections import Counter, OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo_common.prefixes import BLOCK_BYTES, GROWTH, BelievedPrefixes, Prompt, prompt_of, rendezvous, tokens_of
from octavo_common.routing import ReplicaLoad, Router, RoutingPolicy

IDS: Final = ["a", "b", "c", "d"]


def loads(in_flight: Sequence[int], **others: Any) -> list[ReplicaLoad]:
    return [ReplicaLoad(name, count, **others) for name, count in zip(IDS, in_flight, strict=False)]


def text(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def simple_prompt(*chain: int, tokens: int = 100) -> Prompt:
    return Prompt(chain, (tokens,) * len(chain), tokens * len(chain) + 1, chain[0] if chain else 0)


def block_ends(size: int) -> list[int]:
    ends = [0]
    while (end := ends[-1] + max(BLOCK_BYTES, ends[-1] // GROWTH)) <= size:
        ends.append(end)
    return ends[1:]


@given(st.integers(0, 20_000), st.integers(0, 20_000), st.integers(0, 20_000))
def test_prompts_share_the_names_of_the_blocks_that_they_share_and_of_no_others(
    common: int, one: int, two: int
) -> None:
    first, second = text(1, common) + b"x" + text(2, one), text(1, common) + b"y" + text(3, two)
    chains = prompt_of(first).chain, prompt_of(second).chain
    shared = sum(end <= common for end in block_ends(common))
    assert chains[0][:shared] == chains[1][:shared]
    assert set(chains[0][shared:]).isdisjoint(chains[1])
    assert len(chains[0]) == len(block_ends(len(first)))


def test_salts_keep_prompts_apart_and_long_ones_stay_few_blocks() -> None:
    data = text(1, 2**24)
    long = prompt_of(data)
    assert len(long.chain) < 200
    assert sum(long.tokens) <= long.total == 2**24 // 4
    assert set(long.chain).isdisjoint(prompt_of(data, salt=b"tenant").chain)
    assert long.home != prompt_of(data, salt=b"tenant").home


def test_a_conversation_keeps_its_home_while_it_grows() -> None:
    opening = b"You are helpful." + b"What is a page?"
    turns = [prompt_of(opening + text(1, size), opening=len(opening)) for size in (0, 100, 10_000)]
    assert len({turn.home for turn in turns}) == 1
    assert turns[0].home != prompt_of(opening[:-1] + b"!", opening=len(opening)).home


@given(st.integers(0, 2**64 - 1), st.permutations(IDS))
def test_a_home_depends_on_nothing_but_key_and_members_and_moves_only_if_it_goes(key: int, ids: list[str]) -> None:
    home = rendezvous(key, ids)
    assert home == rendezvous(key, IDS)
    for gone in ids:
        assert (rendezvous(key, [each for each in ids if each != gone]) == home) == (gone != home)


def test_homes_are_spread_evenly() -> None:
    counts = Counter(rendezvous(random.Random(seed).getrandbits(64), IDS) for seed in range(4000))
    assert all(900 < counts[each] < 1100 for each in IDS)


class SimpleBelief:
    """The naive twin: all prompts in the order of their last use; the most recent that fit are held whole."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used: OrderedDict[int, float] = OrderedDict()

    def add(self, chain: Sequence[int], now: float) -> None:
        for name in reversed(chain):
            self.used.pop(name, None)
            self.used[name] = now
        while len(self.used) * 100 > self.capacity:
            self.used.popitem(last=False)

    def matched(self, chain: Sequence[int], now: float, max_age: float) -> int:
        count = 0
        while count < len(chain) and now - self.used.get(chain[count], -1e9) <= max_age:
            count += 1
        return count


# Chains as real ones are: a name stands for all that comes before it.
CHAINS: Final = st.lists(st.sampled_from("abc"), max_size=6).map(
    lambda letters: [hash_of("".join(letters[:end])) for end in range(1, len(letters) + 1)]
)


def hash_of(word: str) -> int:
    return int.from_bytes(word.encode())


@given(st.lists(st.tuples(CHAINS, st.integers(0, 40)), max_size=60), st.integers(3, 30))
def test_what_is_believed_is_what_a_cache_of_that_size_would_hold(
    steps: list[tuple[list[int], int]], size: int
) -> None:
    believed, twin, now = BelievedPrefixes(size * 100, 1000, 100.0), SimpleBelief(size * 100), 0.0
    for chain, pause in steps:
        now += pause
        prompt = simple_prompt(*chain)
        assert believed.matched(prompt, now) == twin.matched(chain, now, 100.0)
        believed.add(prompt, now)
        twin.add(chain, now)
        assert len(believed) <= size


def test_memory_is_bounded_by_blocks() -> None:
    believed = BelievedPrefixes(10**12, 50, 1e9)
    for seed in range(100):
        believed.add(prompt_of(text(seed, 4000)), 0.0)
        assert len(believed) <= 50


def test_where_others_fill_the_cache_less_is_believed_until_it_is_right_again() -> None:
    router, replicas = Router(), loads([0, 0], kv_tokens=2000)
    old, new = simple_prompt(1, 2, 3, 4), simple_prompt(11, 12, 13, 14)
    for _ in range(20):
        router.sent(old, replicas[0], 0.0)
        chosen = router.choose(old, [replicas[0]], 0.0)
        assert chosen is not None
        router.learned(chosen, old, 401, 0)  # it never had what was expected
    for prompt in (old, new):
        router.sent(prompt, replicas[0], 0.0)
    assert tokens_held(router, old, replicas) == 0
    for _ in range(400):
        chosen = router.choose(new, [replicas[0]], 0.0)
        assert chosen is not None
        router.learned(chosen, new, 401, 401)
    for prompt in (old, new):
        router.sent(prompt, replicas[0], 0.0)
    assert tokens_held(router, old, replicas) == 400


def tokens_held(router: Router, prompt: Prompt, replicas: list[ReplicaLoad]) -> int:
    chosen = router.choose(prompt, [replicas[0]], 0.0)
    assert chosen is not None
    return chosen.hit_tokens


def test_a_prompt_goes_where_its_beginning_is_and_the_reason_is_told() -> None:
    router, prompt = Router(), prompt_of(text(1, 40_000))
    router.sent(prompt, ReplicaLoad("c"), 0.0)
    longer = prompt_of(text(1, 40_000) + text(2, 5_000))
    chosen = router.choose(longer, loads([0, 0, 2, 0]), 1.0)
    assert chosen is not None
    assert (chosen.id, chosen.why) == ("c", "prefix")
    assert 9_000 < chosen.hit_tokens <= 10_000


def test_a_short_prefix_is_not_worth_a_queue() -> None:
    router, prompt = Router(), prompt_of(text(1, 2_000))
    router.sent(prompt, ReplicaLoad("c"), 0.0)
    waits = [ReplicaLoad(name, waiting_tokens=20_000 if name == "c" else 0) for name in IDS]
    chosen = router.choose(prompt, waits, 1.0)
    assert chosen is not None
    assert chosen.id != "c"


def test_a_full_cache_is_avoided() -> None:
    prompt = prompt_of(b"")
    replicas = [ReplicaLoad(name, kv_use=0.2 if name == "b" else 0.99) for name in IDS]
    chosen = Router().choose(prompt, replicas, 0.0)
    assert chosen is not None
    assert chosen.id == "b"


LOADS: Final = st.lists(st.integers(0, 100), min_size=2, max_size=4)


@given(st.integers(0, 1000), LOADS, st.randoms())
def test_gateways_that_know_nothing_of_each_other_agree(seed: int, counts: list[int], shuffle: random.Random) -> None:
    replicas = loads(counts)
    prompt = prompt_of(text(seed, 5_000))
    first = Router().choose(prompt, replicas, 0.0)
    shuffle.shuffle(replicas)
    assert first == Router().choose(prompt, replicas, 0.0)


def test_a_second_gateway_finds_the_conversation_that_a_first_one_began() -> None:
    found = 0
    for seed in range(200):
        opening = text(seed, 6_000)
        first = Router().choose(prompt_of(opening, opening=len(opening)), loads([5, 4, 6, 5]), 0.0)
        second = Router().choose(prompt_of(opening + text(-seed, 900), opening=len(opening)), loads([4, 6, 5, 5]), 9.0)
        found += first is not None and second is not None and first.id == second.id
    assert found > 180


@given(LOADS, st.integers(0, 50))
def test_nobody_takes_more_than_a_share_of_all_load_whatever_it_holds(counts: list[int], seed: int) -> None:
    policy = RoutingPolicy()
    router, prompt, replicas = Router(policy), prompt_of(text(seed, 200_000)), loads(counts)
    router.sent(prompt, replicas[0], 0.0)
    chosen = router.choose(prompt, replicas, 0.0)
    assert chosen is not None
    taken = next(replica for replica in replicas if replica.id == chosen.id)
    share = policy.overload * (sum(counts) + 1) / len(counts)
    assert taken.in_flight + 1 <= max(share, min(counts) + 1) + policy.free_load


def test_one_hot_prefix_spreads_over_all_replicas() -> None:
    router, prompt = Router(), prompt_of(text(1, 8_000))
    counts: Counter[str] = Counter()
    for now in range(400):
        chosen = router.choose(prompt, loads([counts[name] for name in IDS]), float(now))
        assert chosen is not None
        router.sent(prompt, ReplicaLoad(chosen.id), float(now))
        counts[chosen.id] += 1
    assert max(counts.values()) <= 1.25 * 401 / 4 + 5


@given(st.lists(st.integers(0, 128), min_size=1, max_size=4))
def test_none_is_chosen_only_where_none_has_room(waiting: list[int]) -> None:
    replicas = [ReplicaLoad(name, in_flight=count, waiting=count) for name, count in zip(IDS, waiting, strict=False)]
    chosen = Router(RoutingPolicy(max_waiting=64)).choose(prompt_of(b"hi"), replicas, 0.0)
    assert (chosen is None) == all(count >= 64 for count in waiting)
    assert chosen is None or waiting[IDS.index(chosen.id)] < 64


def test_a_replica_that_was_gone_comes_back_with_nothing() -> None:
    router, prompt = Router(), prompt_of(text(1, 40_000))
    router.sent(prompt, ReplicaLoad("a"), 0.0)
    router.keep(["b"])
    router.keep(["a", "b"])
    assert tokens_held(router, prompt, loads([0])) == 0


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_conversations_find_their_pages_and_load_stays_even(seed: int) -> None:
    """40 conversations of 6 turns over a common system prompt; round robin would find the system prompt alone."""
    chance, router, system = random.Random(seed), Router(), text(seed, 4_000)
    talks = [system + chance.randbytes(600) for _ in range(40)]
    held: dict[str, set[int]] = {name: set() for name in IDS}
    running: list[tuple[int, str]] = []
    found = wanted = 0
    for step in range(240):
        number = chance.randrange(40) if step >= 40 else step
        running = [(end, name) for end, name in running if end > step]
        counts = Counter(name for _, name in running)
        prompt = prompt_of(talks[number], opening=4_600)
        chosen = router.choose(prompt, loads([counts[name] for name in IDS]), float(step))
        assert chosen is not None
        if step >= 40:
            found += tokens_of(prompt, sum(name in held[chosen.id] for name in prompt.chain))
            wanted += sum(prompt.tokens)
        held[chosen.id].update(prompt.chain)
        router.sent(prompt, ReplicaLoad(chosen.id), float(step))
        running.append((step + 20, chosen.id))
        talks[number] += chance.randbytes(1_500)
        assert max(counts.values(), default=0) - min(counts[name] for name in IDS) <= 9
    assert found / wanted > 0.6


def test_prices_are_those_of_the_page() -> None:
    """Ten requests in flight weigh 2,560 tokens: a hit of more than that is worth them, one of less is not."""
    policy = RoutingPolicy(home_share=0.0, free_load=100)
    for blocks, taken in ((30, "a"), (20, "b")):
        router, prompt = Router(policy), simple_prompt(*range(1, blocks + 1))
        router.sent(prompt, ReplicaLoad("a"), 0.0)
        chosen = router.choose(prompt, loads([10, 0]), 0.0)
        assert chosen is not None
        assert chosen.id == taken


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 4096, 100_000])
def test_blocks_have_no_gaps(size: int) -> None:
    ends = [0, *block_ends(size)]
    assert [(after - before) // 4 for before, after in pairwise(ends)] == list(prompt_of(bytes(size)).tokens)
