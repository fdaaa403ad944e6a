"""What bodies of chats and completions share: how an answer is sampled, ended and sent. Every field is bounded.

Longer than usual because it is one list: each line is a field and its bounds.
"""

from abc import abstractmethod
from typing import Annotated, Any, Final

from pydantic import Discriminator, Field, Tag, model_validator

from octavo_server.frontend.fields import Body, Entries, NotYet, Only, ShortText, field_error, kind

MAX_TEXT: Final = 16 * 2**20  # characters; the body's limit is lower where characters take several bytes
MAX_TOKENS: Final = 2**31 - 1
MAX_TOKEN_ID: Final = 2**31 - 1
MAX_PROMPT_TOKENS: Final = 8 * 2**20
MAX_N: Final = 128
MAX_STOPS: Final = 4
MAX_LOGPROBS: Final = 20
MAX_BIASES: Final = 1024
MAX_METADATA: Final = 16
MAX_BAD_WORDS: Final = 128
MIN_REPETITION_PENALTY: Final = 0.01  # logits multiplied or divided by it stay far from what float32 holds
MAX_REPETITION_PENALTY: Final = 100.0

# pydantic refuses halves of surrogate pairs in a bounded string: JSON can spell them, but they have no UTF-8.
Text = Annotated[str, Field(max_length=MAX_TEXT)]
TokenId = Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]
TokenIds = Annotated[list[TokenId], Field(fail_fast=True, min_length=1, max_length=MAX_PROMPT_TOKENS)]
StopString = Annotated[str, Field(min_length=1, max_length=1024)]
BadWord = Annotated[str, Field(min_length=1, max_length=256)]
TokenIdKey = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,9})$")]  # an object's keys are strings
Bias = Annotated[float, Field(ge=-100.0, le=100.0, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2.0, le=2.0, allow_inf_nan=False)]
RepetitionPenalty = Annotated[
    float, Field(ge=MIN_REPETITION_PENALTY, le=MAX_REPETITION_PENALTY, allow_inf_nan=False, description="1: off")
]
Probability = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]


class StreamOptions(Body):
    """Only with `stream`."""

    include_usage: bool | None = None
    include_obfuscation: Annotated[Any, Only(False)] = None
    continuous_usage_stats: Annotated[Any, Only(False)] = None


class Resume(Body):
    """An answer that began elsewhere: its tokens so far, and what it is called. See `resume.py`."""

    output_token_ids: Annotated[list[TokenId], Field(fail_fast=True, max_length=MAX_PROMPT_TOKENS)]
    response_id: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[!-~]+$")]
    created: Annotated[int, Field(ge=0, le=2**53)]


class GenerationRequest(Body):
    """What chats and completions share."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    temperature: Annotated[float, Field(ge=0.0, le=2.0, allow_inf_nan=False)] | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Field(ge=-1, le=MAX_TOKEN_ID, description="0 or -1: off")] | None = None
    min_p: Probability | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: RepetitionPenalty | None = None
    logit_bias: Annotated[dict[TokenIdKey, Bias], Entries(MAX_BIASES)] | None = None
    bad_words: Annotated[list[BadWord], Field(fail_fast=True, max_length=MAX_BAD_WORDS)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = None
    max_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    stop: (
        Annotated[
            Annotated[StopString, Tag("one")]
            | Annotated[list[StopString], Field(fail_fast=True, max_length=MAX_STOPS), Tag("several")],
            Discriminator(
                kind(strings="one", lists=lambda _: "several"),
                custom_error_type="stop_type",
                custom_error_message="Input should be a string or a list of strings",
            ),
        ]
        | None
    ) = None
    stop_token_ids: Annotated[list[TokenId], Field(fail_fast=True, max_length=64)] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None
    n: Annotated[int, Field(ge=1, le=MAX_N, description="answers to each prompt")] | None = None
    priority: Annotated[int, Field(ge=-1000, le=1000, description="lower ones go first")] | None = None
    timeout: (
        Annotated[
            float, Field(ge=0.001, le=86_400.0, allow_inf_nan=False, description="seconds until it ends with an error")
        ]
        | None
    ) = None
    cache_salt: (
        Annotated[
            str, Field(min_length=1, max_length=256, description="cached pages are shared only where it is the same")
        ]
        | None
    ) = None
    octavo_resume: Annotated[Resume, Field(description="for the gateway alone: an answer to go on with")] | None = None
    # Taken and of no effect.
    user: ShortText | None = None
    metadata: Annotated[dict[Annotated[str, Field(max_length=64)], ShortText], Entries(MAX_METADATA)] | None = None
    # Not supported yet: only the value that asks for nothing.
    length_penalty: Annotated[Any, Only(1, 1.0)] = None
    spaces_between_special_tokens: Annotated[Any, Only(True)] = None
    use_beam_search: Annotated[Any, Only(False)] = None
    structured_outputs: NotYet = None

    @model_validator(mode="after")
    def _streams_have_their_own_options(self) -> "GenerationRequest":
        if self.stream_options is not None and not self.stream:
            raise field_error("stream_options", "is only allowed together with stream: true")
        if self.prompt_logprobs is not None and self.stream:
            raise field_error("prompt_logprobs", "is not allowed together with stream: true")
        return self

    @model_validator(mode="after")
    def _the_least_length_is_no_longer_than_the_longest(self) -> "GenerationRequest":
        if self.min_tokens and self.token_limit is not None and self.min_tokens > self.token_limit:
            raise field_error("min_tokens", f"must be at most {self.token_limit}, the most tokens that are asked for")
        return self

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings, however they were given."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def num_choices(self) -> int:
        """Answers to each prompt."""
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    @abstractmethod
    def num_logprobs(self) -> int | None:
        """Alternatives to each token that are wanted; None: no log-probabilities."""

    @property
    def token_limit(self) -> int | None:
        """Most tokens of an answer, where the client says."""
        return self.max_tokens
