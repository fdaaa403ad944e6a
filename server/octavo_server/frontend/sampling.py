"""A request's parameters as the engine takes them: defaults filled in, lengths checked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from octavo_server.errors import RequestError
from octavo_server.frontend.generation_fields import GenerationRequest
from octavo_server.frontend.model import SamplingDefaults, ServedModel
from octavo_server.frontend.openai import CompletionRequest
from octavo_server.frontend.resume import replayed_tokens
from octavo_server.frontend.text.text_options import TextOptions
from octavo_server.frontend.text.tokenizer import TextTokenizer
from octavo_server.ipc import SamplingParams

_SEED_RANGE: Final = 2**63
MAX_PROMPT_LOGPROBS: Final = 2**18  # of one HTTP request: 80 MiB in the API process until they are sent, as measured

BadWords = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """What of a request's parameters was worked out beforehand: lengths, the seed, and what needs the tokenizer."""

    max_tokens: int
    drawn_seed: int  # serves a request that brings none
    bad_words: BadWords = ()
    grammar: str = ""


def sampling_params(request: GenerationRequest, defaults: SamplingDefaults, asked: Asked) -> SamplingParams:
    """The engine's parameters.

    Raises:
        RequestError: more tokens are wanted at least than at most.
    """
    temperature = _or(request.temperature, defaults.temperature)
    top_p = _or(request.top_p, defaults.top_p)
    min_tokens = request.min_tokens or 0
    if min_tokens > asked.max_tokens:
        raise RequestError(
            f"min_tokens: {min_tokens} tokens are wanted at least, but the answer can have {asked.max_tokens} at most",
            param="min_tokens",
        )
    return SamplingParams(
        # Nothing but the likeliest token is what top_p 0 leaves.
        temperature=0.0 if top_p == 0.0 else temperature,
        top_p=top_p or 1.0,
        top_k=defaults.top_k if request.top_k is None else max(0, request.top_k),
        min_p=_or(request.min_p, defaults.min_p),
        seed=(asked.drawn_seed if request.seed is None else request.seed) % _SEED_RANGE,
        repetition_penalty=_or(request.repetition_penalty, defaults.repetition_penalty),
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        logit_bias={int(token): bias for token, bias in (request.logit_bias or {}).items()} or None,
        bad_words=asked.bad_words,
        min_tokens=min_tokens,
        max_tokens=asked.max_tokens,
        stop_token_ids=tuple(dict.fromkeys(request.stop_token_ids or ())),
        ignore_eos=bool(request.ignore_eos),
        logprobs=request.num_logprobs,
        prompt_logprobs=prompt_alternatives(request),
        grammar=asked.grammar,
    )


def text_options(request: GenerationRequest, kept: frozenset[int] = frozenset()) -> TextOptions:
    """How the answer's tokens become text. `kept`: special tokens that stay in it."""
    return TextOptions(
        stops=request.stop_strings,
        include_stop=bool(request.include_stop_str_in_output),
        skip_special_tokens=request.skip_special_tokens is not False,
        min_tokens=request.min_tokens or 0,
        kept=kept,
    )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def prompt_alternatives(request: GenerationRequest) -> int | None:
    """Alternatives to each token of the prompt that the engine is asked for; None: no log-probabilities of it.

    An echo has those of the prompt as it has those of the answer.
    """
    if replayed_tokens(request):
        return None  # they came with the first token
    echoed = request.num_logprobs if isinstance(request, CompletionRequest) and request.echo else None
    return max((count for count in (request.prompt_logprobs, echoed) if count is not None), default=None)


def check_parameters(request: GenerationRequest, model: ServedModel, prompts: Sequence[Sequence[int]]) -> None:
    """What the body alone does not tell: token ids by the vocabulary, and the size of the log-probabilities.

    Raises:
        RequestError: names the field.
    """
    check_token_ids(request.stop_token_ids or [], model.vocab_size, "stop_token_ids")
    check_token_ids(request.allowed_token_ids or [], model.vocab_size, "allowed_token_ids")
    check_token_ids([int(token) for token in request.logit_bias or ()], model.vocab_size, "logit_bias")
    count = prompt_alternatives(request)
    tokens = sum(len(ids) for ids in prompts) * request.num_choices
    if count is not None and tokens * (count + 1) > MAX_PROMPT_LOGPROBS:
        param = "echo" if request.prompt_logprobs is None else "prompt_logprobs"
        raise RequestError(
            f"{param}: {tokens} prompt tokens with {count + 1} log-probabilities each are more than "
            f"{MAX_PROMPT_LOGPROBS}; ask for fewer, or send a shorter prompt",
            param=param,
        )


def encode_bad_words(model: ServedModel, request: GenerationRequest) -> BadWords:
    """Token ids of what an answer must not contain; with a space before them too, where that is another token.

    As vLLM has it (`SamplingParams.update_from_tokenizer`): the form with a space counts if it begins with another
    token and has no more of them; a longer one would begin with the space alone. (vLLM takes it only with equally
    many, and so misses words that are one token behind a space, and several at the start of a text.)

    Raises:
        RequestError: a word has no tokens, or one that the model does not have.
    """
    found: dict[tuple[int, ...], None] = {}
    for index, word in enumerate(request.bad_words or ()):
        bare = word.lstrip()
        plain, spaced = (tuple(model.tokenizer.encode(text, add_special_tokens=False)) for text in (bare, f" {bare}"))
        if not bare or not plain:
            raise RequestError(f"bad_words[{index}]: {word!r} has no tokens", param="bad_words")
        check_token_ids([*plain, *spaced], model.vocab_size, "bad_words")
        found[plain] = None
        if 0 < len(spaced) <= len(plain) and spaced[0] != plain[0]:
            found[spaced] = None
    return tuple(found)


def answer_length(asked: int | None, *, prompt_tokens: int, max_model_len: int, param: str) -> int:
    """Most tokens of an answer: what is asked for, else all that fits. Without one, a prompt may fill the context.

    Raises:
        RequestError: prompt and answer together are longer than the model's context; both lengths are told.
    """
    room = max_model_len - prompt_tokens
    if room >= (1 if asked is None else asked):
        return room if asked is None else asked
    if asked is None or room < 1:
        raise _too_long(max_model_len, f"{prompt_tokens} tokens", param)
    wanted = f"{prompt_tokens} tokens and {asked} tokens of answer are asked for"
    raise _too_long(max_model_len, wanted, param, remedy="shorten the prompt or ask for fewer")


def check_texts(texts: Sequence[str], tokenizer: TextTokenizer, *, max_model_len: int, param: str) -> None:
    """Refuse texts of one prompt that cannot fit whatever its tokens are, before these cost memory and seconds.

    Raises:
        RequestError: they have more tokens than the model's context, at least so many are told.
    """
    length = tokenizer.token_length
    if length is not None and (least := length.least_tokens(*texts)) > max_model_len:
        raise _too_long(max_model_len, f"{least} tokens or more", param)


def _too_long(max_model_len: int, told: str, param: str, remedy: str = "shorten the prompt") -> RequestError:
    return RequestError(
        f"the model's context is {max_model_len} tokens, prompt and answer together, but the prompt has "
        f"{told}; {remedy}",
        param=param,
        code="context_length_exceeded",
    )


def check_token_ids(ids: Sequence[int], vocab_size: int, param: str) -> None:
    """Refuse ids that the model has no embedding for.

    Raises:
        RequestError: names the id.
    """
    largest = max(ids, default=0)
    if largest >= vocab_size:
        raise RequestError(
            f"{param}: token id {largest} does not exist; allowed are 0 to {vocab_size - 1}", param=param
        )
