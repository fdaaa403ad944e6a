"""What bodies of chats and completions share: how an answer is sampled, ended and sent. Every field is bounded.

Longer than usual because it is one list: each line is a field and its bounds.
"""

import re
from abc import abstractmethod
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from octavo_server.frontend.fields import Body, Entries, Only, ShortText, field_error, kind
from octavo_server.frontend.structured_fields import ResponseFormat, StructuredOutputs

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
MAX_ALLOWED_TOKENS: Final = 1024
MIN_REPETITION_PENALTY: Final = 0.01  # logits multiplied or divided by it stay far from what float32 holds
MAX_REPETITION_PENALTY: Final = 100.0

# pydantic refuses halves of surrogate pairs in a bounded string: JSON can spell them, but they have no UTF-8.
Text = Annotated[str, Field(max_length=MAX_TEXT)]
TokenId = Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]
TokenIds = Annotated[list[TokenId], Field(fail_fast=True, min_length=1, max_length=MAX_PROMPT_TOKENS)]
StopString = Annotated[str, Field(min_length=1, max_length=1024)]
BadWord = Annotated[str, Field(min_length=1, max_length=256)]


def _token_id(key: Any) -> Any:
    if isinstance(key, str) and not re.fullmatch("0|[1-9][0-9]{0,9}", key):
        raise PydanticCustomError("token_id", 'its names must be token ids, as in {"42": -100}')
    return key


# An object's names are strings.
TokenIdKey = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,9})$"), BeforeValidator(_token_id)]
Bias = Annotated[float, Field(ge=-100.0, le=100.0, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2.0, le=2.0, allow_inf_nan=False)]
RepetitionPenalty = Annotated[
    float, Field(ge=MIN_REPETITION_PENALTY, le=MAX_REPETITION_PENALTY, allow_inf_nan=False, description="1: off")
]
RequestId = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]+$", min_length=1, max_length=128)]
Probability = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]


_BEAMS: Final = "there is no beam search"
_ONE_ENGINE: Final = "prefill and decode are of one engine"
VARIABLE: Final = 'chat templates may know it: "chat_template_kwargs": {"enable_thinking": …}'
_TAGS: Final = "texts with formatted parts are not made; use json, grammar or regex of structured_outputs"


def _older(name: str) -> Only:
    return Only(why=f"it is vLLM's older name of structured_outputs.{name}")


Stop = Annotated[
    Annotated[StopString, Tag("one")]
    | Annotated[list[StopString], Field(fail_fast=True, max_length=MAX_STOPS), Tag("several")],
    Discriminator(
        kind(strings="one", lists=lambda _: "several"),
        custom_error_type="stop_type",
        custom_error_message="Input should be a string or a list of strings",
    ),
]


class StreamOptions(Body):
    """Only with `stream`."""

    include_usage: bool | None = None
    include_obfuscation: Annotated[Any, Only(False, why="events are not padded")] = None
    continuous_usage_stats: bool | None = None


class Resume(Body):
    """An answer that began elsewhere: its tokens so far, and what it is called. See `resume.py`."""

    output_token_ids: Annotated[list[TokenId], Field(fail_fast=True, max_length=MAX_PROMPT_TOKENS)]
    response_id: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[!-~]+$")]
    created: Annotated[int, Field(ge=0, le=2**53)]


class GenerationRequest(Body):
    """What chats and completions share."""

    hints = MappingProxyType(
        {
            "extra_body": "it belongs to the openai client, which puts what is in it into the body itself",
            "messages": "/v1/chat/completions takes them; completions have a prompt",
            "prompt": "/v1/completions takes it; chats have messages",
            "max_completion_tokens": "completions have max_tokens",
            "enable_thinking": VARIABLE,
            "thinking": VARIABLE,
            "input": "/v1/responses takes it; chats have messages, completions a prompt",
            "instructions": "/v1/responses takes it; chats have a message of the role system",
            "max_output_tokens": "/v1/responses takes it; chats have max_completion_tokens, completions max_tokens",
            "previous_response_id": "/v1/responses takes it; chats have all messages",
            "text": "/v1/responses takes it; its format is response_format, its verbosity is verbosity",
        }
    )

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
    stop: Stop | None = None
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
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    allowed_token_ids: (
        Annotated[list[TokenId], Field(fail_fast=True, min_length=1, max_length=MAX_ALLOWED_TOKENS)] | None
    ) = None
    truncate_prompt_tokens: (
        Annotated[int, Field(ge=-1, le=MAX_TOKENS, description="tokens of the prompt to keep; -1: as many as fit")]
        | None
    ) = None
    truncation_side: Annotated[Literal["left", "right"], Field(description="where tokens are left out")] | None = None
    return_tokens_as_token_ids: bool | None = None
    request_id: RequestId | None = None
    octavo_resume: Annotated[Resume, Field(description="for the gateway alone: an answer to go on with")] | None = None
    # Taken and of no effect.
    user: ShortText | None = None
    metadata: Annotated[dict[Annotated[str, Field(max_length=64)], ShortText], Entries(MAX_METADATA)] | None = None
    spaces_between_special_tokens: bool | None = None
    session_id: ShortText | None = None
    stream_interval: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    # Not supported: only the value that asks for nothing.
    best_of: Annotated[Any, Only(1, why="use n, and choose by logprobs")] = None
    length_penalty: Annotated[Any, Only(1, 1.0, why=_BEAMS)] = None
    use_beam_search: Annotated[Any, Only(False, why=_BEAMS)] = None
    early_stopping: Annotated[Any, Only(False, why=_BEAMS)] = None
    thinking_token_budget: Annotated[Any, Only(-1, why="use max_tokens or reasoning_effort")] = None
    repetition_detection: Annotated[Any, Only(why="use the penalties")] = None
    logits_processors: Annotated[Any, Only([], why="code of clients is not run")] = None
    kv_transfer_params: Annotated[Any, Only(why=_ONE_ENGINE)] = None
    ec_transfer_params: Annotated[Any, Only(why=_ONE_ENGINE)] = None
    vllm_xargs: Annotated[Any, Only({}, why="there are no extensions to take them")] = None
    return_token_offsets: Annotated[Any, Only(False, why="/tokenize tells them")] = None
    guided_json: Annotated[Any, _older("json")] = None
    guided_regex: Annotated[Any, _older("regex")] = None
    guided_choice: Annotated[Any, _older("choice")] = None
    guided_grammar: Annotated[Any, _older("grammar")] = None
    guided_json_object: Annotated[Any, Only(False, why="it is vLLM's older name of structured_outputs.json_object")] = (
        None
    )
    guided_decoding_backend: Annotated[Any, Only(why="there is one, llguidance")] = None
    guided_whitespace_pattern: Annotated[Any, _older("whitespace_pattern")] = None
    structural_tag: Annotated[Any, Only(why=_TAGS)] = None
    detokenize: Annotated[Any, Only(True, why="answers are text; return_token_ids tells their tokens, too")] = None
    watermarking: Annotated[Any, Only(False, why="texts are not marked")] = None
    logprob_token_ids: Annotated[Any, Only(why="log-probabilities are of the likeliest tokens")] = None
    routed_experts_prompt_start: Annotated[Any, Only(0, why="there are no experts to tell of")] = None
    return_mm_kwargs: Annotated[Any, Only(True, why="prompts are text only")] = None

    @model_validator(mode="after")
    def _streams_have_their_own_options(self) -> "GenerationRequest":
        if self.stream_options is not None and not self.stream:
            raise field_error("stream_options", "is only allowed together with stream: true")
        if self.prompt_logprobs is not None and self.stream:
            raise field_error("prompt_logprobs", "is not allowed together with stream: true")
        return self

    @model_validator(mode="after")
    def _one_shape_of_the_answer(self) -> "GenerationRequest":
        if self.allowed_token_ids is not None and self.structured_outputs is not None:
            raise field_error("allowed_token_ids", "is not allowed together with structured_outputs")
        if self.truncation_side is not None and self.truncate_prompt_tokens is None:
            raise field_error("truncation_side", "is only allowed together with truncate_prompt_tokens")
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
    def continuous_usage(self) -> bool:
        """Whether each event of a stream tells the usage so far."""
        return bool(self.stream_options and self.stream_options.continuous_usage_stats)

    @property
    @abstractmethod
    def num_logprobs(self) -> int | None:
        """Alternatives to each token that are wanted; None: no log-probabilities."""

    @property
    def token_limit(self) -> int | None:
        """Most tokens of an answer, where the client says."""
        return self.max_tokens
