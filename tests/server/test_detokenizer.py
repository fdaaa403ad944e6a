"""Streaming text out of tokens: equal to decoding everything at once, whatever the text, the tokenizer and the cut."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

import tiny_tokenizers
from octavo_server.errors import ModelError
from octavo_server.frontend.text.detokenizer import Detokenizer
from octavo_server.frontend.text.stop_strings import StopStrings
from octavo_server.frontend.text.tokenizer import TextTokenizer

PIECES = [*tiny_tokenizers.TEXT, "<tool_call>", "�", " "]
TEXTS = st.text(max_size=60) | st.lists(st.sampled_from(PIECES)).map("".join)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TextTokenizer]:
    base = tmp_path_factory.mktemp("tokenizers")
    return {name: TextTokenizer(path) for name, path in tiny_tokenizers.families(base)}


def stream(tokenizer: TextTokenizer, ids: list[int], *, at_start: bool = True) -> list[str]:
    detokenizer = Detokenizer(tokenizer, at_start=at_start)
    return [detokenizer.add(token_id) for token_id in ids]


@pytest.mark.parametrize("family", tiny_tokenizers.FAMILIES)
@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
def test_the_pieces_joined_are_the_decoded_text(tokenizers: dict[str, TextTokenizer], family: str, text: str) -> None:
    tokenizer = tokenizers[family]
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("family", tiny_tokenizers.FAMILIES)
@settings(max_examples=150, deadline=None)
@given(text=TEXTS, data=st.data())
def test_a_text_cut_off_anywhere_shows_whole_characters_only(
    tokenizers: dict[str, TextTokenizer], family: str, text: str, data: st.DataObject
) -> None:
    tokenizer = tokenizers[family]
    ids = tokenizer.encode(text, add_special_tokens=False)
    shown = "".join(stream(tokenizer, ids[: data.draw(st.integers(0, len(ids)))]))
    whole = tokenizer.decode(ids)
    assert whole.startswith(shown)


@pytest.mark.parametrize("family", tiny_tokenizers.FAMILIES)
@settings(max_examples=150, deadline=None)
@given(prompt=TEXTS, answer=TEXTS)
def test_an_answer_continues_its_prompt(
    tokenizers: dict[str, TextTokenizer], family: str, prompt: str, answer: str
) -> None:
    """Decoding prompt and answer together is the reference: the answer keeps the space that opens it."""
    tokenizer = tokenizers[family]
    prompt_ids = tokenizer.encode("x" + prompt, add_special_tokens=False)
    ids = tokenizer.encode(answer, add_special_tokens=False)
    expected = tokenizer.decode(prompt_ids + ids).removeprefix(tokenizer.decode(prompt_ids))
    assert "".join(stream(tokenizer, ids, at_start=False)) == expected


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_sequence_of_byte_level_tokens_is_decoded_as_the_library_does(
    tokenizers: dict[str, TextTokenizer], data: st.DataObject
) -> None:
    tokenizer = tokenizers["byte-level BPE"]
    ids = data.draw(st.lists(st.integers(0, 400), max_size=20))
    shown, whole = "".join(stream(tokenizer, ids)), tokenizer.decode(ids)
    assert whole in (shown, shown + "�")  # what an incomplete end would be


# Characters of several code points: skin tones, families, flags, accents, hangul from parts, variation selectors.
CLUSTERS = ["👍🏽", "👨‍👩‍👧‍👦", "🇩🇪", "e\u0301", "한", "❤️", "🏴‍☠️", "नि", "𝒳", "\u200d", "\x00", "￿"]


@pytest.mark.parametrize("family", tiny_tokenizers.FAMILIES)
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_tokens_whose_characters_are_whole_give_the_librarys_text(
    tokenizers: dict[str, TextTokenizer], family: str, data: st.DataObject
) -> None:
    """Tokens in an order that no text has, special ones and ids without a token among them."""
    tokenizer = tokenizers[family]
    whole = [token_id for token_id in range(600) if is_whole(tokenizer.token_bytes(token_id))]
    characters = st.sampled_from(CLUSTERS) | st.text(min_size=1, max_size=3)
    parts = st.sampled_from(whole).map(lambda token_id: [token_id]) | characters.map(
        lambda text: tokenizer.encode(text, add_special_tokens=False)
    )
    ids = [token_id for part in data.draw(st.lists(parts, max_size=12)) for token_id in part]
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


def is_whole(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@pytest.mark.parametrize("family", ["byte-level BPE", "byte fallback", "byte fallback, prefix space"])
@settings(max_examples=150, deadline=None)
@given(
    text=st.lists(st.sampled_from(CLUSTERS) | st.characters(codec="utf-8", min_codepoint=128), max_size=20).map("".join)
)
def test_every_piece_is_made_of_whole_characters_and_comes_as_soon_as_it_can(
    tokenizers: dict[str, TextTokenizer], family: str, text: str
) -> None:
    tokenizer = tokenizers[family]
    ids = tokenizer.encode("a" + text, add_special_tokens=False)
    data, shown = b"", ""
    for token_id, piece in zip(ids, stream(tokenizer, ids), strict=True):
        data, shown = data + tokenizer.token_bytes(token_id), shown + piece
        assert shown == data.removeprefix(b" ").decode(errors="ignore")


@pytest.mark.parametrize("family", tiny_tokenizers.FAMILIES)
@settings(max_examples=150, deadline=None)
@given(text=TEXTS | st.lists(st.sampled_from([*PIECES, *CLUSTERS]), max_size=8).map("".join), data=st.data())
def test_a_stop_string_is_found_wherever_the_borders_of_tokens_fall(
    tokenizers: dict[str, TextTokenizer], family: str, text: str, data: st.DataObject
) -> None:
    tokenizer = tokenizers[family]
    ids = tokenizer.encode(text, add_special_tokens=False)
    whole = tokenizer.decode(ids)
    start = data.draw(st.integers(0, len(whole)))
    stop = whole[start : start + data.draw(st.integers(1, 9))] or "never"
    checker = StopStrings([stop])
    shown = "".join(checker.add(piece) for piece in stream(tokenizer, ids)) + checker.end()
    at = whole.find(stop)
    assert shown == (whole if at < 0 else whole[:at])
    assert checker.found == (None if at < 0 else stop)


def test_the_bytes_of_an_emoji_appear_together(tokenizers: dict[str, TextTokenizer]) -> None:
    tokenizer = tokenizers["byte fallback"]
    ids = tokenizer.encode("🙂", add_special_tokens=False)
    assert len(ids) == 4
    assert stream(tokenizer, ids) == ["", "", "", "🙂"]


def test_special_tokens_are_left_out(tokenizers: dict[str, TextTokenizer]) -> None:
    for tokenizer in tokenizers.values():
        ids = tokenizer.encode("<|im_start|>hello<|im_end|>", add_special_tokens=False)
        assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids) == "hello"
        assert tokenizer.token_bytes(ids[0]) == b"<|im_start|>"


def test_an_added_token_stands_for_itself(tmp_path: Path) -> None:
    """The library decodes it as if it were byte-level and loses the accents."""
    with_added_token = tiny_tokenizers.byte_level_bpe()
    with_added_token.add_tokens(["été"])
    tokenizer = TextTokenizer(tiny_tokenizers.save(with_added_token, tmp_path))
    ids = tokenizer.encode("été", add_special_tokens=False)
    assert len(ids) == 1
    assert stream(tokenizer, ids) == ["été"]


def test_an_id_without_a_token_has_no_text(tokenizers: dict[str, TextTokenizer]) -> None:
    for tokenizer in tokenizers.values():
        assert stream(tokenizer, [100_000]) == [""]


def test_a_decoder_that_looks_at_neighbours_is_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordPiece({"a": 0, "##b": 1, "[UNK]": 2}))
    tokenizer.decoder = decoders.WordPiece()
    tiny_tokenizers.save(tokenizer, tmp_path)
    with pytest.raises(ModelError, match="WordPiece"):
        TextTokenizer(tmp_path)
