"""The border between engine and worker: what crosses it in one step, and what the engine needs of the device.

Across it go plain integers and `ipc` structs, no tensor.

The worker keeps a copy of every request it was told of, so that a step carries what is new and nothing else. Sampled
tokens are appended by both sides: none is sent back to the worker.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Literal, Protocol

import msgspec

from octavo_server.ipc import ErrorKind, Pooling, SamplingParams, TokenLogprobs

if TYPE_CHECKING:
    from octavo_server.grammar_store import GrammarStore


@dataclass(frozen=True, slots=True)
class NewRequest:
    """All that the worker needs of a request it does not know, or no longer knows (after a preemption).

    `token_ids` is the prompt and, after a preemption, what was generated before it; the first `num_prompt_tokens` of
    them are the prompt. `max_tokens_in_all` bounds the length it can ever reach, prompt included. `num_computed_tokens`
    of them have their K and V in the pages already. With `pooling` no token is sampled behind them.
    """

    request_id: str
    token_ids: list[int]
    num_prompt_tokens: int
    max_tokens_in_all: int
    sampling: SamplingParams
    block_ids: list[int]
    num_computed_tokens: int
    pooling: Pooling = ""


@dataclass(frozen=True, slots=True)
class PageKey:
    """A page on disk: its name, and what must stand in the file, so that no collision of names gives wrong tokens.

    `page_hash`: 16 bytes, see `page_hash.py`. `parent`: as long a digest of all that stands before it, by a function of
    its own (`page_hash.extend_digest`). `tokens`: its token ids, as `page_hash.pack` packs them. `previous`: the name
    of the page before it, or what stands there; no part of the file.
    """

    page_hash: bytes
    parent: bytes
    tokens: bytes
    previous: bytes = b""


@dataclass(frozen=True, slots=True)
class PageEvent:
    """What the worker has to say of the lower tiers, from work beside the steps.

    "loaded": the page of `page_hash` is in its host slot. "missed": it could not be read, and its file is gone.
    "stored": it is on disk now. "evicted": it is not any more, to keep the disk within its bound. "dropped": it was to
    be stored, and was not. "slots": `count` more host slots are pinned and can be used.

    Each of `disk_stores` ends in one "stored" or "dropped", two of one page that meet in one together; each of
    `disk_loads` in one "loaded" or "missed", and its slot is left alone until then. "stored" and "evicted" also tell of
    pages that nobody here asked for: another process that shares the directory wrote or removed them.
    """

    kind: Literal["loaded", "missed", "stored", "evicted", "dropped", "slots", "stuck", "back"]
    page_hash: bytes = b""
    count: int = 0


@dataclass(frozen=True, slots=True)
class SchedulerOutput:
    """One step's work. The order of `num_scheduled_tokens` is the order of the rows.

    A request samples a token in this step if its tokens are all computed at the step's end.
    `new_block_ids` has entries only for requests that the worker knows and that got pages. `finished_ids` and
    `preempted_ids` are to be forgotten before anything else is done; ids that are not known there are ignored.

    Pages move before the step computes, in this order: `swap_out` (page → host slot), `swap_in` (host slot → page);
    then `disk_stores` (host slot → disk) and `disk_loads` (disk → host slot) are begun. A page that one leaves may be
    taken by a later one of them, and by the step; no slot of `swap_in` or `disk_stores` is written again in the same
    step, but one of `disk_stores` may be in the next one, whether it is on disk by then or not.
    """

    step: int
    new_requests: list[NewRequest] = field(default_factory=list)
    new_block_ids: dict[str, list[int]] = field(default_factory=dict)
    num_scheduled_tokens: dict[str, int] = field(default_factory=dict)
    finished_ids: list[str] = field(default_factory=list)
    preempted_ids: list[str] = field(default_factory=list)
    swap_out: list[tuple[int, int]] = field(default_factory=list)  # (page, host slot)
    swap_in: list[tuple[int, int]] = field(default_factory=list)  # (host slot, page)
    disk_stores: list[tuple[int, PageKey]] = field(default_factory=list)  # (host slot, what it holds)
    disk_loads: list[tuple[PageKey, int]] = field(default_factory=list)  # (what is wanted, host slot)

    @property
    def total_tokens(self) -> int:
        """Tokens in this step, of all requests."""
        return sum(self.num_scheduled_tokens.values())

    @property
    def some_ids(self) -> str:
        """The first requests in it, for logs."""
        return " ".join(islice(self.num_scheduled_tokens, 20))

    @property
    def is_empty(self) -> bool:
        """Whether the worker need not hear of it."""
        moves = self.swap_out or self.swap_in or self.disk_stores or self.disk_loads
        return not (self.num_scheduled_tokens or moves or self.finished_ids or self.preempted_ids)


class SampledRow(msgspec.Struct, frozen=True):  # made for each row of each step: five times as fast as a dataclass
    """What the worker has to say of one request after a step.

    `token_id` is None while its prompt is not through, or if the row failed; then `error` says how, for people.
    `embedding`: see `ipc.RequestOutput`; with it there is no token, and the prompt is through.
    `prompt_logprobs`: of the prompt tokens that this step's tokens predict, before them None for the very first token;
    so the entries of all steps make one for each prompt token.
    """

    request_id: str
    token_id: int | None = None
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    error: str | None = None
    error_kind: ErrorKind = "internal"
    embedding: bytes = b""


class StepHandle(Protocol):
    """A step under way."""

    progress: int  # grows as parts of the step get done

    def wait(self, timeout: float | None = None) -> list[SampledRow] | None:
        """The step's rows, or None if it is not through within `timeout` seconds. Raises what the step raised."""
        ...


class Runner(Protocol):
    """What the engine needs of the device; see `worker.model_runner.ModelRunner`."""

    grammars: "GrammarStore | None"  # the requests'

    @property
    def bytes_per_page(self) -> int:
        """K and V of a page in all layers."""
        ...

    @property
    def copy_bytes_per_second(self) -> float:
        """Measured between device and host memory, one way; 0: not known."""
        ...

    def launch(self, output: SchedulerOutput, on_progress: Callable[[], None]) -> StepHandle:
        """Hands a step over. One that is computed before this returns tells of its parts by `on_progress`."""
        ...

    def is_out_of_memory(self, error: Exception) -> bool:
        """Whether a step that raised this broke for want of memory."""
        ...

    def recover(self) -> None:
        """After a step that broke, and those behind it. Raises EngineError if the device can run no further one."""
        ...

    def poll_events(self) -> list[PageEvent]:
        """What was done beside the steps since the last call."""
        ...

    def idle(self) -> bool:
        """Does some of the work that is left for idle moments; whether there is more."""
        ...

    def flush(self, pages: list[tuple[Literal["device", "host"], int, PageKey]], seconds: float) -> int:
        """Writes cached pages to disk, if there is such a tier; how many."""
        ...

    def close(self) -> None:
        """Ends what runs beside the steps."""
        ...
