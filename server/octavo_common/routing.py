"""Which replica takes a request: the gateway asks here, and so does the simulator. Pure: time and loads are passed in.

Every replica has a price, in prompt tokens that would have to be computed or waited for:

    what it lacks of the prompt + what waits there + what runs there · `request_tokens` + what a full cache costs

The lowest price wins. What it lacks is believed: from what was sent there before (`prefixes.py`), and, as several
gateways know nothing of each other, from where all of them send what nobody has seen: a rendezvous hash of the
prompt's beginning names that home. A replica with more than its share of all load is not considered as long as another
one is there, however much of a prompt it holds: consistent hashing with bounded loads (Mirrokni, Thorup,
Zadimoghaddam, 2016), so no hot prefix overloads anybody.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from octavo_common.prefixes import BelievedPrefixes, Prompt, rendezvous, tokens_of

Why = Literal["prefix", "home", "least loaded", "only one"]


@dataclass(frozen=True, slots=True)
class RoutingPolicy:
    """What a price is made of; tokens are of prompts, which is where they are spent.

    request_tokens: what a request that is in flight weighs: it makes every step of the new one longer.
    full_cache_tokens: what a KV cache that is full weighs, from `kv_high` (a share) on in proportion.
    home_share: of a prompt, what its home is believed to hold because other gateways may have sent it there.
    most_home_tokens: and of that no more than this.
    overload: times the mean load, with `free_load` requests to spare, that a replica may have and be considered.
    max_waiting: requests that wait at a replica; one that has as many takes no more.
    capacity_tokens: of a KV cache whose size nobody told. most_blocks: believed of a replica: 10 MiB of memory.
    max_age: seconds after which nothing is believed of a block that was not used.
    """

    request_tokens: int = 256
    full_cache_tokens: int = 4096
    kv_high: float = 0.8
    home_share: float = 0.5
    most_home_tokens: int = 1024
    overload: float = 1.25
    free_load: int = 4
    max_waiting: int = 64
    capacity_tokens: int = 400_000
    most_blocks: int = 65_536
    max_age: float = 1800.0


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    """A replica that is ready, as far as it is known.

    in_flight: requests there, running or waiting; waiting, waiting_tokens: of these the ones whose prompts are not
    computed; kv_use: share of its KV cache in use; kv_tokens: its size, where known.
    """

    id: str
    in_flight: int = 0
    waiting: int = 0
    waiting_tokens: int = 0
    kv_use: float = 0.0
    kv_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Chosen:
    """A replica, the tokens of the prompt that it is believed to hold, and why it was chosen."""

    id: str
    hit_tokens: int
    why: Why


class Router:
    """Chooses replicas of one model, and remembers what was sent where."""

    def __init__(self, policy: RoutingPolicy | None = None) -> None:
        self.policy = policy or RoutingPolicy()
        self._believed: dict[str, BelievedPrefixes] = {}

    def choose(self, prompt: Prompt, replicas: Sequence[ReplicaLoad], now: float) -> Chosen | None:
        """The replica for a prompt, or None where none can take more. Nothing is remembered: see `sent`."""
        able = [replica for replica in replicas if self.has_room(replica)]
        if not able:
            return None
        if len(able) == 1:
            return Chosen(able[0].id, self._hit(prompt, able[0].id, now), "only one")
        # The home is among all, not only those that have room now: it is the same whoever asks and whenever.
        home = rendezvous(prompt.home, [replica.id for replica in replicas])
        considered = self._not_overloaded(able)
        hits = {replica.id: self._hit(prompt, replica.id, now) for replica in considered}
        prices = {each.id: self._price(prompt, each, hits[each.id], at_home=each.id == home) for each in considered}
        lowest = min(prices.values())
        best = rendezvous(prompt.home, [name for name, price in prices.items() if price == lowest])
        why: Why = "prefix" if hits[best] > min(hits.values()) else "home" if best == home else "least loaded"
        return Chosen(best, hits[best], why)

    def has_room(self, replica: ReplicaLoad) -> bool:
        """Whether it takes one more: what it would only let wait, another one may take sooner."""
        return replica.waiting < self.policy.max_waiting

    def sent(self, prompt: Prompt, replica: ReplicaLoad, now: float) -> None:
        """The prompt went to this replica, which will hold it."""
        capacity = self.policy.capacity_tokens if replica.kv_tokens is None else replica.kv_tokens
        believed = self._believed.get(replica.id)
        if believed is None:
            believed = BelievedPrefixes(capacity, self.policy.most_blocks, self.policy.max_age)
            self._believed[replica.id] = believed
        believed.capacity_tokens = capacity
        believed.add(prompt, now)

    def learned(self, chosen: Chosen, prompt: Prompt, prompt_tokens: int, cached_tokens: int) -> None:
        """The replica that was chosen found `cached_tokens` of `prompt_tokens` in its cache."""
        believed = self._believed.get(chosen.id)
        if believed is not None and prompt_tokens > 0 and chosen.hit_tokens > 0:
            believed.found(chosen.hit_tokens, cached_tokens / prompt_tokens * prompt.total)

    def keep(self, ids: Collection[str]) -> None:
        """Forget what is not among these: a replica that comes again comes with an empty cache."""
        for gone in self._believed.keys() - set(ids):
            del self._believed[gone]

    def _hit(self, prompt: Prompt, replica_id: str, now: float) -> int:
        believed = self._believed.get(replica_id)
        blocks = 0 if believed is None else believed.matched(prompt, now)
        return tokens_of(prompt, blocks)

    def _price(self, prompt: Prompt, replica: ReplicaLoad, hit: int, *, at_home: bool) -> float:
        policy = self.policy
        expected = hit
        if at_home:
            expected = max(hit, min(int(policy.home_share * prompt.total), hit + policy.most_home_tokens))
        return prompt.total - expected + _load_price(replica, policy)

    def _not_overloaded(self, able: Sequence[ReplicaLoad]) -> Sequence[ReplicaLoad]:
        """Those within their share; the least loaded one always is."""
        share = self.policy.overload * (1 + sum(replica.in_flight for replica in able)) / len(able)
        most = max(share, min(replica.in_flight for replica in able) + 1) + self.policy.free_load
        return [replica for replica in able if replica.in_flight + 1 <= most]


def _load_price(replica: ReplicaLoad, policy: RoutingPolicy) -> float:
    full = max(0.0, replica.kv_use - policy.kv_high) / (1 - policy.kv_high)
    return replica.waiting_tokens + replica.in_flight * policy.request_tokens + full * policy.full_cache_tokens
