"""A request, as the engine sees it: tokens, how many of them are computed, and its place in the order."""

import enum
from dataclasses import KW_ONLY, InitVar, dataclass, field
from typing import Final

from octavo_server.ipc import Pooling, SamplingParams, TokenLogprobs

AGING_SECONDS: Final = 30.0  # by so much longer a request must have waited to go before one of the next better priority


class RequestStatus(enum.Enum):
    """Where a request stands. A preempted one is waiting again."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False, repr=False)
class Request:
    """Tokens of one request and its progress through them.

    `token_ids` is the prompt followed by what was generated; behind them come `num_pending_tokens` that launched steps
    sample and whose values are not known yet. `num_computed_tokens` counts those whose K and V are in the cache or will
    be once the steps that were launched have run. Prefill and decode are one thing: the tokens that are not computed
    yet are to be computed, one of them or thousands.

    `key` orders requests, the smallest first: arrival, moved by priority. It stays what it is, so that the older a
    request is, the more of those that come goes behind it, whatever their priority: that is its aging.
    `page_hashes`: the names of its full pages, see `page_hash.py`; the cache goes on with those that are generated.
    """

    request_id: str
    token_ids: list[int]  # at first those it comes with
    sampling: SamplingParams
    max_model_len: InitVar[int]
    _: KW_ONLY
    arrival: float = 0.0
    priority: int = 0
    deadline: float | None = None
    num_replayed: InitVar[int] = 0  # tokens at the end, of an answer that began elsewhere
    page_hashes: list[bytes] = field(default_factory=list)
    salt: bytes = b""
    pooling: Pooling = ""
    # Its state:
    key: tuple[float, int] = field(init=False)  # the scheduler numbers them, so that no two are equal
    status: RequestStatus = RequestStatus.WAITING
    num_prompt_tokens: int = field(init=False)
    num_given_tokens: int = field(init=False)  # with the replayed ones
    max_tokens_in_all: int = field(init=False)
    num_computed_tokens: int = 0
    num_pending_tokens: int = 0
    num_in_flight: int = 0  # launched steps that it is part of and whose results are not in
    num_prefill_tokens: int = field(init=False)  # those it had when it last joined; then one at a time
    num_cached_tokens: int = 0  # of the prompt, found in the cache when it joined first
    num_external_tokens: int = 0  # of these, in host memory or on disk
    first_scheduled: float | None = None  # when, by the core's clock
    num_preemptions: int = 0
    tokens_passed_by: int = 0  # of requests behind it that joined before it: it did not fit
    stop_ids: frozenset[int] = frozenset()  # end it; the scheduler knows the model's
    skip_prefix: bool = field(init=False)  # all of its prompt is to be computed
    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=list)  # of the prefill's chunks

    def __post_init__(self, max_model_len: int, num_replayed: int) -> None:
        self.token_ids, self.page_hashes = list(self.token_ids), list(self.page_hashes)  # its own, as they grow
        self.key = (self.arrival + self.priority * AGING_SECONDS, 0)
        self.num_given_tokens = self.num_prefill_tokens = len(self.token_ids)
        self.num_prompt_tokens = self.num_given_tokens - num_replayed
        wanted = 0 if self.pooling else self.sampling.max_tokens
        self.max_tokens_in_all = min(self.num_prompt_tokens + wanted, max_model_len)
        self.skip_prefix = self.sampling.prompt_logprobs is not None or self.pooling in ("mean", "cls")

    @property
    def num_tokens(self) -> int:
        """Prompt and generated tokens that are known."""
        return len(self.token_ids)

    @property
    def num_tokens_to_compute(self) -> int:
        """Tokens without K and V: 1 in decode, more in prefill."""
        return len(self.token_ids) + self.num_pending_tokens - self.num_computed_tokens
