"""Log-probabilities in the two forms of the OpenAI API."""

from collections.abc import Sequence
from typing import Final

from msgspec import UNSET, UnsetType

from octavo_server.frontend.responses import (
    ChatLogprobs,
    CompletionLogprobs,
    PromptLogprob,
    PromptLogprobs,
    TokenLogprob,
    TopLogprob,
)
from octavo_server.frontend.text.detokenizer import Detokenizer
from octavo_server.frontend.text.tokenizer import TextTokenizer
from octavo_server.ipc import TokenLogprobs

LEAST: Final = -9999.0  # stands for minus infinity, which JSON lacks; OpenAI's own value


def chat_logprobs(tokenizer: TextTokenizer, entries: Sequence[TokenLogprobs], *, as_ids: bool = False) -> ChatLogprobs:
    """A list of tokens, each with its likeliest alternatives (itself among them, if it is one).

    as_ids: tokens are spelt `token_id:N` instead of by their text.
    """
    content = []
    for entry in entries:
        chosen, *top = (
            TopLogprob(
                _spell(tokenizer, token_id, "", as_ids=as_ids),
                max(logprob, LEAST),
                list(tokenizer.token_bytes(token_id)),
            )
            for token_id, logprob in zip(entry.token_ids, entry.logprobs, strict=True)
        )
        content.append(TokenLogprob(chosen.token, chosen.logprob, chosen.bytes, top))
    return ChatLogprobs(content)


def completion_logprobs(
    tokenizer: TextTokenizer, entries: Sequence[TokenLogprobs], offsets: Sequence[int], *, as_ids: bool = False
) -> CompletionLogprobs:
    """Parallel lists; `offsets` are where the tokens begin in the choice's text. as_ids: as in `chat_logprobs`."""
    result = CompletionLogprobs([], [], [], list(offsets[: len(entries)]))
    for entry in entries:
        pairs = [
            (_spell(tokenizer, token_id, "bytes:", as_ids=as_ids), max(logprob, LEAST))
            for token_id, logprob in zip(entry.token_ids, entry.logprobs, strict=True)
        ]
        result.tokens.append(pairs[0][0])
        result.token_logprobs.append(pairs[0][1])
        top: dict[str, float] = {}
        for token, logprob in [*pairs[1:], pairs[0]]:
            top.setdefault(token, logprob)  # two tokens may be spelt alike: the likelier one counts
        result.top_logprobs.append(top)
    return result


def prompt_logprobs(
    tokenizer: TextTokenizer,
    token_ids: Sequence[int],
    entries: Sequence[TokenLogprobs | None],
    echo: str,
    *,
    as_ids: bool = False,
) -> CompletionLogprobs:
    """Those of a prompt that is echoed, as `echo`. Its first token has none: nothing precedes it."""
    result = CompletionLogprobs([], [], [], [])
    offsets = _offsets(tokenizer, token_ids, echo)
    for token_id, entry, offset in zip(token_ids, entries, offsets, strict=True):
        if entry is None:
            token = _spell(tokenizer, token_id, "bytes:", as_ids=as_ids)
            one = CompletionLogprobs([token], [None], [None], [offset])
        else:
            one = completion_logprobs(tokenizer, [entry], [offset], as_ids=as_ids)
        extend(result, one)
    return result


def _offsets(tokenizer: TextTokenizer, token_ids: Sequence[int], echo: str) -> list[int]:
    """Where each token begins in the text. A prompt may spell special tokens; one put before it has no place."""
    offsets: list[int] = []
    for skip_special in (False, True):
        detokenizer, pieces = Detokenizer(tokenizer, at_start=True, skip_special=skip_special), list[str]()
        length, offsets = 0, []
        for token_id in token_ids:
            offsets.append(length)
            pieces.append(detokenizer.add(token_id))
            length += len(pieces[-1])
        if "".join(pieces).endswith(echo):
            return [max(offset - (length - len(echo)), 0) for offset in offsets]
    return offsets


def described_prompt(
    tokenizer: TextTokenizer, entries: Sequence[TokenLogprobs | None] | None, count: int | None
) -> PromptLogprobs | UnsetType:
    """What the field `prompt_logprobs` asks for, in vLLM's form; nothing where it does not."""
    if count is None or entries is None:
        return UNSET
    return [None if entry is None else _described(tokenizer, entry) for entry in first_alternatives(entries, count)]


def first_alternatives(entries: Sequence[TokenLogprobs | None], count: int) -> list[TokenLogprobs | None]:
    """The entries with `count` alternatives each: more were computed if the request asks for them in another field."""
    end = count + 1
    return [
        None if entry is None else TokenLogprobs(entry.token_ids[:end], entry.logprobs[:end], entry.rank)
        for entry in entries
    ]


def _described(tokenizer: TextTokenizer, entry: TokenLogprobs) -> dict[int, PromptLogprob]:
    ranks = [entry.rank, *range(1, len(entry.token_ids))]
    found: dict[int, PromptLogprob] = {}
    for token_id, logprob, rank in zip(entry.token_ids, entry.logprobs, ranks, strict=True):
        text = tokenizer.token_bytes(token_id).decode(errors="replace")
        found.setdefault(token_id, PromptLogprob(max(logprob, LEAST), rank, text))
    return found


def extend(result: CompletionLogprobs, more: CompletionLogprobs, shift: int = 0) -> None:
    """Append `more`, whose text begins `shift` characters after the one of `result`."""
    result.tokens += more.tokens
    result.token_logprobs += more.token_logprobs
    result.top_logprobs += more.top_logprobs
    result.text_offset += [offset + shift for offset in more.text_offset]


def _spell(tokenizer: TextTokenizer, token_id: int, prefix: str, *, as_ids: bool) -> str:
    """A token's text; for a part of a character its bytes as \\xNN, after `prefix`."""
    if as_ids:
        return f"token_id:{token_id}"
    data = tokenizer.token_bytes(token_id)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return prefix + "".join(f"\\x{byte:02x}" for byte in data)
