"""The border between the API process and the engine process: every message, in msgspec.

One ZeroMQ PAIR over a Unix socket in a directory of mode 0700. A message is one frame of msgpack, a tagged union.
Every message carries the engine's `epoch` (drawn anew at each start of the engine); those of another epoch are dropped.
The version is checked once, in `Hello`: both ends come from one installation.
"""

from collections.abc import Iterator
from typing import Final, Literal

import msgspec

PROTOCOL_VERSION: Final = 4


class SamplingParams(msgspec.Struct, frozen=True, omit_defaults=True):
    """How tokens are chosen. Validated at the API's edge; the engine trusts it.

    `stop_token_ids` ends a request besides the model's own ends; stop strings live in the API process, which aborts.
    `logprobs`: None for none, else the number of alternatives besides the sampled token. `prompt_logprobs` likewise.
    `choice` numbers the answers to one prompt (`n` > 1): with `seed` and position it is the key of the noise.
    `bad_words`: sequences of token ids, none empty, whose last token is never chosen after the others.
    `grammar`: llguidance's, serialized, compiled once already to see that it can be; empty if the answer is free.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    min_p: float = 0.0
    seed: int = 0
    choice: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] | None = None
    bad_words: tuple[tuple[int, ...], ...] = ()
    min_tokens: int = 0  # before them neither the model's ends nor `stop_token_ids` are chosen
    max_tokens: int = 16
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    grammar: str = ""


Pooling = Literal["", "mean", "last", "cls"]


class AddRequest(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """A request joins the waiting queue.

    `arrival` and `deadline` are seconds of CLOCK_MONOTONIC, which all processes of a machine share; a request that is
    not through by its deadline ends with an error of kind "timeout". `priority`: lower ones go first.
    `page_hashes`: `page_hash.hash_pages` of the prompt with `salt`, for pages of the engine's size; empty if none of
    its pages are to be shared. `salt`: requests share pages only where theirs are equal.
    `pooling`: no token is wanted but the prompt's last hidden states, made into one; the request ends with it.
    `output_token_ids`: the answer so far, made elsewhere and holding no end: only what follows it is computed and told.
    """

    epoch: int
    request_id: str
    prompt_token_ids: list[int]
    sampling: SamplingParams
    arrival: float
    page_hashes: bytes = b""
    salt: bytes = b""
    priority: int = 0
    deadline: float | None = None
    pooling: Pooling = ""
    output_token_ids: list[int] = []


class AddChoices(msgspec.Struct, frozen=True, tag=True):
    """Several requests that differ in nothing but id and sampling: the prompt, which may be long, travels once.

    `request` is the first one whole; `others`: (request id, how its tokens are chosen) of the ones behind it, whose
    grammar, which may be long, is that of the first.
    """

    epoch: int
    request: AddRequest
    others: list[tuple[str, SamplingParams]]


class Abort(msgspec.Struct, frozen=True, tag=True):
    """Requests that nobody waits for any more. Unknown ids are ignored: they may have just finished."""

    epoch: int
    request_ids: list[str]


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    """Ends the engine process after the step in flight."""

    epoch: int


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Log-probabilities (natural, of the model's own distribution before sampling changes it) at one position.

    `token_ids[0]` is the token that stands there, with its rank (1: the most likely) in `rank`; the likeliest follow in
    order of falling probability.
    """

    token_ids: list[int]
    logprobs: list[float]
    rank: int


ErrorKind = Literal["internal", "invalid", "out_of_memory", "timeout"]


class RequestOutput(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one step brought to one request. `finish_reason`: "stop", "length", "abort" or "error".

    Told with the first token: `num_cached_tokens`, of the prompt, those that the prefix cache saved; of these,
    `num_external_tokens` came from host memory or disk; `first_scheduled`, in seconds of CLOCK_MONOTONIC, is when the
    step that first had some of its tokens was decided. `num_preemptions`: how often it has lost its place so far. With
    the reason "error" stand `error`, for people, and `error_kind`. `embedding`: of a request with `pooling`, float32
    little-endian, as long as the model's hidden states are wide, and not normalized.
    """

    request_id: str
    token_ids: list[int]
    finish_reason: str | None = None
    stop_reason: int | None = None  # the stop token id that ended it, if one of `stop_token_ids` did
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    num_cached_tokens: int = 0
    num_external_tokens: int = 0
    first_scheduled: float | None = None
    num_preemptions: int = 0
    error: str | None = None
    error_kind: ErrorKind = "internal"
    embedding: bytes = b""


class EngineStats(msgspec.Struct, frozen=True, omit_defaults=True):
    """The engine's state after a step, for the metrics. Counters grow over the engine's life."""

    running: int
    waiting: int
    waiting_prompt_tokens: int
    kv_blocks_used: int
    kv_blocks_total: int
    block_size: int
    preemptions: int
    prompt_tokens: int
    generation_tokens: int
    steps: int
    step_seconds: float  # of the last step, from its launch to its tokens
    kv_blocks_cached: int = 0  # free pages whose content can still be hit; part of those that are not used
    host_blocks_used: int = 0  # pages in host memory, those of preempted requests and cached ones
    host_blocks_total: int = 0  # that are pinned so far
    disk_blocks: int = 0
    preemptions_by_swap: int = 0  # of `preemptions`; the others are by recompute
    swapped_in: int = 0  # pages copied from host memory to the device
    swapped_out: int = 0
    loaded: int = 0  # pages read from disk
    stored: int = 0  # pages written to disk
    dropped: int = 0  # pages that left host memory, or found no place there, before they were written to disk
    prefix_queries: int = 0  # prompt tokens looked up
    prefix_hits: int = 0  # of these, found on the device …
    prefix_hits_host: int = 0  # … in host memory
    prefix_hits_disk: int = 0  # … on disk
    step_tokens: int = 0  # tokens computed in the last step
    schedule_seconds: float = 0.0  # of the last step: deciding, and taking in what came of it
    prefill_tokens_per_second: float = 0.0  # measured over the last steps with such work; 0: none yet
    decode_tokens_per_second: float = 0.0


class Outputs(msgspec.Struct, frozen=True, tag=True):
    """The results of one step. Without outputs it is the heartbeat.

    At least one a second while idle; within a step one whenever a part of it is done and none was sent just before.
    """

    epoch: int
    outputs: list[RequestOutput]
    stats: EngineStats


class Starting(msgspec.Struct, frozen=True, tag=True):
    """A phase of the start begins.

    They are "import", "load weights", "measure memory", "allocate cache", "warm up", and on a GPU "capture graphs".
    """

    epoch: int
    phase: str
    seconds: float  # since the engine process was started


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The engine takes requests. What the API process needs to know of the model stands here."""

    epoch: int
    version: int
    max_model_len: int
    block_size: int
    num_blocks: int
    phases: dict[str, float]  # seconds each phase took
    figures: dict[str, float] = {}  # what `start_engine` noted of them
    max_num_seqs: int = 0
    prefix_caching: bool = False  # whether `page_hashes` are of use
    eos_token_ids: list[int] = []  # the model's own ends


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The engine cannot start, or stops for good. `message` is for people: one line, no traceback."""

    epoch: int
    message: str


FrontendMessage = AddRequest | AddChoices | Abort | Shutdown
EngineMessage = Outputs | Starting | Ready | Failed

encoder: Final = msgspec.msgpack.Encoder()
frontend_decoder: Final = msgspec.msgpack.Decoder(FrontendMessage)
engine_decoder: Final = msgspec.msgpack.Decoder(EngineMessage)

_TAGS: Final = tuple(encoder.encode({"type": kind.__name__})[1:] for kind in (AddRequest, AddChoices))


def brings_requests(frame: bytes) -> bool:
    """Whether a message is an `AddRequest` or `AddChoices`, by its first bytes: decoding it may take milliseconds."""
    return frame.startswith(_TAGS, 1)  # behind the byte that says how many fields follow


def requests_of(message: AddRequest | AddChoices) -> Iterator[AddRequest]:
    """The requests that a message brings, one at a time; they share the prompt."""
    if isinstance(message, AddRequest):
        yield message
        return
    yield message.request
    grammar = message.request.sampling.grammar
    for request_id, sampling in message.others:
        if grammar:
            sampling = msgspec.structs.replace(sampling, grammar=grammar)
        yield msgspec.structs.replace(message.request, request_id=request_id, sampling=sampling)
