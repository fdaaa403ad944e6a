"""The field `octavo_resume`: an answer that began on another server goes on here, and reads as if nothing had happened.

The gateway sends the client's request again with the tokens of the answer that it has passed on. They go through all
that tokens of the engine's go through (detokenizer, stop strings, parsers, limits, usage), and the events that come of
them are dropped: the first stream has brought them. The engine computes them like a preempted request's, and as its
noise depends on seed, choice and position alone, what follows is what would have followed there.
"""

from collections.abc import Collection, Sequence

from octavo_server.errors import RequestError
from octavo_server.frontend.answer import Answer, Delta
from octavo_server.frontend.generation_fields import GenerationRequest
from octavo_server.ipc import RequestOutput, SamplingParams

FIELD = "octavo_resume"


def replayed_tokens(request: GenerationRequest) -> list[int]:
    """Tokens of the answer that were generated elsewhere; none for an answer that begins here."""
    return [] if request.octavo_resume is None else request.octavo_resume.output_token_ids


def check_resume(request: GenerationRequest, prompts: Sequence[object], vocab_size: int, *, by_gateway: bool) -> None:
    """Whether the request may bring an answer's beginning, if it does.

    Raises:
        RequestError: it is not the gateway's, or not one stream of one answer, or has a token that does not exist.
    """
    if request.octavo_resume is None:
        return
    if not by_gateway:
        raise RequestError(
            f"{FIELD}: is taken from the gateway alone, with a key of --gateway-api-key-file", param=FIELD, status=403
        )
    if not request.stream:
        raise RequestError(
            f"{FIELD}: needs stream: true; of an answer that is not streamed nothing was sent", param=FIELD
        )
    if len(prompts) != 1 or request.num_choices != 1:
        raise RequestError(f"{FIELD}: is for one answer to one prompt", param=FIELD)
    largest = max(replayed_tokens(request), default=0)
    if largest >= vocab_size:
        param = f"{FIELD}.output_token_ids"
        raise RequestError(
            f"{param}: token id {largest} does not exist; allowed are 0 to {vocab_size - 1}", param=param
        )


def replay(
    request: GenerationRequest, answer: Answer, sampling: SamplingParams, eos_token_ids: Collection[int]
) -> Delta | None:
    """Let `answer` take in its tokens so far; what they add to it, with the finish reason if they end it.

    None without any. Tokens behind the end are dropped, as those of a step that overran it. eos_token_ids: the model's.

    Raises:
        RequestError: they are more than the answer may have, or go on from noise that cannot be repeated.
    """
    tokens = replayed_tokens(request)
    if not tokens:
        return None
    if len(tokens) > sampling.max_tokens:
        raise RequestError(
            f"{FIELD}.output_token_ids: {len(tokens)} tokens are more than the answer may have ({sampling.max_tokens})",
            param=f"{FIELD}.output_token_ids",
        )
    if request.seed is None and sampling.temperature > 0.0:
        raise RequestError("seed: an answer that is resumed needs the seed that it began with", param="seed")
    # An answer ends where its grammar ends, whatever was asked for.
    ends = set() if sampling.ignore_eos and not sampling.grammar else set(eos_token_ids)
    delta = Delta()
    for count, token in enumerate(tokens, start=1):
        reason, stop_id = None, None
        if token in ends or token in sampling.stop_token_ids:
            reason, stop_id = "stop", None if token in ends else token
        elif count == sampling.max_tokens:
            reason = "length"
        answer.replay(RequestOutput("", [token], reason, stop_id), delta)
        if answer.finished:
            break
    return delta
