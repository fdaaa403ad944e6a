"""A request, as the engine sees it: tokens, and how many of them are computed."""

import enum
from collections.abc import Iterable

from octavo_server.ipc import SamplingParams, TokenLogprobs


class RequestStatus(enum.Enum):
    """Where a request stands. A preempted one is waiting again."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Request:
    """Tokens of one request and its progress through them.

    `token_ids` is the prompt followed by what was generated; `num_computed_tokens` counts those whose K and V are in
    the cache or will be once the steps that were scheduled have run. Prefill and decode are one thing: the tokens that
    are not computed yet are to be computed, one of them or thousands.

    `page_hashes`: the names of its full pages, see `page_hash.py`; the KV cache adds those of generated pages. With
    fewer than the prompt has full pages, none are shared.
    """

    __slots__ = (
        "max_tokens_in_all",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_preemptions",
        "num_prompt_tokens",
        "page_hashes",
        "prompt_logprobs",
        "request_id",
        "salt",
        "sampling",
        "status",
        "token_ids",
    )

    def __init__(
        self,
        request_id: str,
        prompt_token_ids: list[int],
        sampling: SamplingParams,
        max_model_len: int,
        *,
        salt: bytes = b"",
        page_hashes: Iterable[bytes] = (),
    ) -> None:
        self.request_id = request_id
        self.sampling = sampling
        self.token_ids = list(prompt_token_ids)
        self.num_prompt_tokens = len(prompt_token_ids)
        self.max_tokens_in_all = min(self.num_prompt_tokens + sampling.max_tokens, max_model_len)
        self.salt = salt
        self.page_hashes = list(page_hashes)
        self.num_computed_tokens = 0
        self.num_cached_tokens = 0  # of the prompt, those that the prefix cache saved
        self.num_preemptions = 0
        self.status = RequestStatus.WAITING
        self.prompt_logprobs: list[TokenLogprobs | None] = []  # collected over the chunks of the prefill

    @property
    def num_tokens(self) -> int:
        """Prompt and generated tokens."""
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Generated tokens."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def skip_prefix(self) -> bool:
        """Whether every prompt token must be computed, because its log-probabilities are asked for."""
        return self.sampling.prompt_logprobs is not None

    @property
    def num_tokens_to_compute(self) -> int:
        """Tokens without K and V: 1 in decode, more in prefill, 0 while the next one is still being sampled."""
        return len(self.token_ids) - self.num_computed_tokens

    def __repr__(self) -> str:
        return f"Request({self.request_id}, {self.num_computed_tokens}/{self.num_tokens} tokens, {self.status.value})"
