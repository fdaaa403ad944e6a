"""A request, as the engine sees it: tokens, how many of them are computed, and its place in the order."""

import enum
from collections.abc import Sequence
from typing import Final

from octavo_server.ipc import SamplingParams, TokenLogprobs

AGING_SECONDS: Final = 30.0  # by so much longer a request must have waited to go before one of the next better priority


class RequestStatus(enum.Enum):
    """Where a request stands. A preempted one is waiting again."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


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

    __slots__ = (
        "arrival",
        "deadline",
        "first_scheduled",
        "key",
        "max_tokens_in_all",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_external_tokens",
        "num_in_flight",
        "num_pending_tokens",
        "num_preemptions",
        "num_prefill_tokens",
        "num_prompt_tokens",
        "page_hashes",
        "priority",
        "prompt_logprobs",
        "request_id",
        "salt",
        "sampling",
        "skip_prefix",
        "status",
        "stop_ids",
        "token_ids",
        "tokens_passed_by",
    )

    def __init__(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        sampling: SamplingParams,
        max_model_len: int,
        *,
        arrival: float = 0.0,
        priority: int = 0,
        deadline: float | None = None,
        page_hashes: Sequence[bytes] = (),
        salt: bytes = b"",
    ) -> None:
        self.request_id = request_id
        self.sampling = sampling
        self.token_ids = list(prompt_token_ids)
        self.page_hashes = list(page_hashes)
        self.salt = salt
        self.num_prompt_tokens = len(self.token_ids)
        self.max_tokens_in_all = min(self.num_prompt_tokens + sampling.max_tokens, max_model_len)
        self.arrival = arrival
        self.priority = priority
        self.deadline = deadline
        self.key = (arrival + priority * AGING_SECONDS, 0)  # the scheduler numbers them, so that no two are equal
        self.status = RequestStatus.WAITING
        self.num_computed_tokens = 0
        self.num_pending_tokens = 0
        self.num_in_flight = 0  # launched steps that it is part of and whose results are not in
        self.num_prefill_tokens = self.num_prompt_tokens  # those it had when it last joined; then one at a time
        self.num_cached_tokens = 0  # of the prompt, found in the prefix cache when it joined first
        self.num_external_tokens = 0  # of these, in host memory or on disk
        self.first_scheduled: float | None = None  # when, by the core's clock
        self.num_preemptions = 0
        self.tokens_passed_by = 0  # of requests behind it that joined before it, as it did not fit
        self.stop_ids: frozenset[int] = frozenset()  # tokens that end it; the scheduler knows the model's
        self.skip_prefix = sampling.prompt_logprobs is not None  # all of its prompt is to be computed
        self.prompt_logprobs: list[TokenLogprobs | None] = []  # collected over the chunks of the prefill

    @property
    def num_tokens(self) -> int:
        """Prompt and generated tokens that are known."""
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Generated tokens that are known."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_tokens_to_compute(self) -> int:
        """Tokens without K and V: 1 in decode, more in prefill."""
        return len(self.token_ids) + self.num_pending_tokens - self.num_computed_tokens

    def __repr__(self) -> str:
        return f"Request({self.request_id}, {self.num_computed_tokens}/{self.num_tokens} tokens, {self.status.value})"
