"""vLLM's `truncate_prompt_tokens`: prompts that are too long are cut instead of refused."""

from collections.abc import Sequence
from typing import Final

from octavo_server.errors import RequestError
from octavo_server.frontend.generation_fields import GenerationRequest
from octavo_server.frontend.state import ServerState

MAX_TEXT: Final = 2**20  # characters of a prompt of which only a part is used


def truncated(ids: list[int], request: GenerationRequest, max_model_len: int) -> list[int]:
    """What is left of a prompt: its end, or its beginning where the request says so."""
    keep = request.truncate_prompt_tokens
    if keep is None:
        return ids
    if keep < 0:
        keep = max(1, max_model_len - (1 if request.token_limit is None else request.token_limit))
    return ids[:keep] if request.truncation_side == "right" else ids[max(0, len(ids) - keep) :]


async def prompt_ids(
    state: ServerState, request: GenerationRequest, texts: Sequence[str], param: str, *, alone: bool
) -> list[list[int]]:
    """Token ids of prompts, made beside the event loop; `alone`: with the tokens that surround a text.

    Raises:
        RequestError: a text is too long.
    """
    model, ready = state.serving(request.model)
    cut = request.truncate_prompt_tokens is not None
    if cut:
        for text in texts:
            check_cut(text, param)
    found = await state.tokenize(model, texts, param, alone=alone, may_be_cut=cut)
    return [truncated(ids, request, ready.max_model_len) for ids in found]


def check_cut(text: str, param: str) -> None:
    """A text that is cut is not refused for its tokens, so it must be one that can be tokenized at little cost.

    Raises:
        RequestError: it is too long.
    """
    if len(text) > MAX_TEXT:
        raise RequestError(
            f"{param}: of texts of more than {MAX_TEXT} characters no part is taken; shorten it", param=param
        )
