"""A request's parameters as the engine takes them: defaults filled in, lengths checked."""

from octavo_server.errors import RequestError
from octavo_server.frontend.model import SamplingDefaults
from octavo_server.frontend.openai import GenerationRequest
from octavo_server.ipc import SamplingParams

_SEED_RANGE = 2**63


def sampling_params(
    request: GenerationRequest, defaults: SamplingDefaults, *, max_tokens: int, drawn_seed: int, echo: bool
) -> SamplingParams:
    """The engine's parameters. `drawn_seed` serves a request that brings none; `echo`: the prompt's logprobs too."""
    temperature = defaults.temperature if request.temperature is None else request.temperature
    top_p = defaults.top_p if request.top_p is None else request.top_p
    top_k = defaults.top_k if request.top_k is None else max(0, request.top_k)
    seed = drawn_seed if request.seed is None else request.seed
    return SamplingParams(
        # Nothing but the likeliest token is what top_p 0 leaves.
        temperature=0.0 if top_p == 0.0 else temperature,
        top_p=top_p or 1.0,
        top_k=top_k,
        min_p=defaults.min_p if request.min_p is None else request.min_p,
        seed=seed % _SEED_RANGE,
        max_tokens=max_tokens,
        stop_token_ids=tuple(dict.fromkeys(request.stop_token_ids or ())),
        ignore_eos=bool(request.ignore_eos),
        logprobs=request.num_logprobs,
        prompt_logprobs=request.num_logprobs if echo else None,
    )


def answer_length(asked: int | None, *, prompt_tokens: int, max_model_len: int, param: str) -> int:
    """Most tokens of an answer: what is asked for, else all that fits.

    Raises:
        RequestError: prompt and answer together are longer than the model's context; both lengths are told.
    """
    room = max_model_len - prompt_tokens
    least = 1 if asked is None else asked
    # A prompt alone may fill the context but for one token, even where no answer is wanted: the engine computes one.
    if room >= max(1, least):
        return room if asked is None else asked
    wanted = f" and {asked} tokens of answer are asked for" if asked is not None and room >= 1 else ""
    raise RequestError(
        f"the model's context is {max_model_len} tokens, prompt and answer together, but the prompt has "
        f"{prompt_tokens} tokens{wanted}; shorten the prompt or lower max_tokens",
        param=param,
        code="context_length_exceeded",
    )


def check_token_ids(ids: list[int], vocab_size: int, param: str) -> None:
    """Refuse ids that the model has no embedding for.

    Raises:
        RequestError: names the id.
    """
    largest = max(ids, default=0)
    if largest >= vocab_size:
        raise RequestError(
            f"{param}: token id {largest} does not exist; allowed are 0 to {vocab_size - 1}", param=param
        )
