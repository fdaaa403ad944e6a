"""The inputs of an embeddings request as token ids that fit into the model's context."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from octavo_server.errors import RequestError
from octavo_server.frontend.chat_prompt import chat_text, shown_texts
from octavo_server.frontend.embedding_fields import EmbeddingRequest
from octavo_server.frontend.model import ServedModel
from octavo_server.frontend.sampling import check_token_ids
from octavo_server.frontend.state import ServerState
from octavo_server.frontend.text.tokenizer import TextTokenizer
from octavo_server.frontend.text_threads import SHORT_TEXT
from octavo_server.frontend.truncation import check_cut
from octavo_server.ipc import Ready


@dataclass(frozen=True, slots=True)
class _Bounds:
    """`limit`: tokens of the context. `keep`: that a longer input is cut to, on `side`; None: it is refused."""

    limit: int
    keep: int | None
    side: Literal["left", "right"]
    special: bool  # whether texts get the tokens that surround a text
    param: str


async def tokenized(
    state: ServerState, request: EmbeddingRequest, model: ServedModel, ready: Ready, caller: bytes
) -> list[list[int]]:
    """Token ids of each input. A prompt may fill the context: no answer follows. caller: who takes turns with others.

    Raises:
        RequestError: an input has no tokens, too many, or one that does not exist; messages cannot be rendered.
    """
    chat = request.chat
    bounds = _bounds(request, ready.max_model_len)
    texts: Sequence[str] = [given for given in request.inputs if isinstance(given, str)]
    if chat is not None:
        if bounds.keep is None:
            await state.check_texts(model, shown_texts(chat.messages), "messages")
        texts = [await chat_text(chat, model, caller)]
    if texts:
        length = sum(map(len, texts))
        return await state.text_threads.run_on_text(
            length, lambda: [_encode(model.tokenizer, text, bounds) for text in texts]
        )
    given = [ids for ids in request.inputs if isinstance(ids, list)]
    return await state.in_thread(lambda: [_cut(ids, model.vocab_size, bounds) for ids in given])


def _bounds(request: EmbeddingRequest, limit: int) -> _Bounds:
    keep = request.truncate_prompt_tokens
    if keep is not None and keep > limit:
        raise RequestError(
            f"truncate_prompt_tokens: {keep} tokens are more than the {limit} of the model's context",
            param="truncate_prompt_tokens",
        )
    is_chat = request.messages is not None
    special = request.add_special_tokens if request.add_special_tokens is not None else not is_chat
    side = request.truncation_side or "right"
    return _Bounds(limit, limit if keep == -1 else keep, side, special, "messages" if is_chat else "input")


def _encode(tokenizer: TextTokenizer, text: str, bounds: _Bounds) -> list[int]:
    """Long texts are not tokenized in vain."""
    if bounds.keep is not None:
        check_cut(text, bounds.param)
        ids = tokenizer.encode_part(text, bounds.keep, bounds.side, add_special_tokens=bounds.special)
    else:
        length = tokenizer.token_length if len(text) > SHORT_TEXT else None
        if length is not None and (least := length.least_tokens(text)) > bounds.limit:
            raise _too_long(f"{least} tokens or more", bounds)
        ids = tokenizer.encode(text, add_special_tokens=bounds.special)
    if not ids:
        raise RequestError(f"{bounds.param}: it has no tokens; one is needed", param=bounds.param)
    return _fitting(ids, bounds)


def _cut(ids: list[int], vocab_size: int, bounds: _Bounds) -> list[int]:
    check_token_ids(ids, vocab_size, bounds.param)
    if bounds.keep is not None:
        ids = ids[: bounds.keep] if bounds.side == "right" else ids[-bounds.keep :]
    return _fitting(ids, bounds)


def _fitting(ids: list[int], bounds: _Bounds) -> list[int]:
    if len(ids) > bounds.limit:
        raise _too_long(f"{len(ids)} tokens", bounds)
    return ids


def _too_long(told: str, bounds: _Bounds) -> RequestError:
    return RequestError(
        f"{bounds.param}: the model's context is {bounds.limit} tokens, but an input has {told}; shorten it, or ask "
        "for its beginning alone by truncate_prompt_tokens: -1",
        param=bounds.param,
        code="context_length_exceeded",
    )
