"""Long texts: refused before they are tokenized where they cannot fit, and bounded in what they take at once."""

import asyncio
import json
import threading
import unicodedata
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

import serving
import tiny_tokenizers
from octavo_server.config import ServerConfig
from octavo_server.errors import ModelError, RequestError
from octavo_server.frontend.app import create_app
from octavo_server.frontend.model import load_model
from octavo_server.frontend.state import ServerState
from octavo_server.frontend.text.chat_template import ChatTemplate
from octavo_server.frontend.text.token_length import token_length
from octavo_server.frontend.text.tokenizer import TextTokenizer
from octavo_server.frontend.text_threads import SHORT_TEXT, TextThreads
from octavo_server.ipc import Ready

# --- the bound

SWALLOWER = "<swallow>"
LONGER = "a" + " " * 40 + "é"  # an added token with spaces, which some normalizers lengthen …
LENGTHENED = LONGER.replace(" ", "▁")  # … so that it stands for this, too
SHRINKING = ["e\u0301", "\u1100\u1161\u11a8", "\u03b1\u0313\u0300\u0345", "\U0001d400"]
SHRINKING += ["\u212b", "\u212a", "\U0002f800"]
PIECES = [
    *tiny_tokenizers.TEXT,
    *SHRINKING,
    SWALLOWER,
    LONGER,
    LENGTHENED,
    "<tool_call>",
    " ",
    "\t\n",
    "\u2003",
    "aaaa",
]
TEXTS = st.text(max_size=60) | st.lists(st.sampled_from(PIECES), max_size=20).map("".join)


def normalized(make: Callable[[], Tokenizer], normalizer: Any) -> Tokenizer:
    tokenizer = make()
    own = tokenizer.normalizer
    tokenizer.normalizer = normalizer if own is None else normalizers.Sequence([normalizer, own])
    return tokenizer


BOUNDED = ("byte-level BPE", "byte fallback, prefix space", "byte fallback")
KINDS = ("as it is", "NFC", "NFD", "NFKC", "NFKD", "Lowercase")


@pytest.fixture(scope="module")
def bounded(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], TextTokenizer]:
    found = {}
    for family in BOUNDED:
        for kind in KINDS:
            make = tiny_tokenizers.FAMILIES[family]
            tokenizer = make() if kind == "as it is" else normalized(make, getattr(normalizers, kind)())
            tokenizer.add_tokens([AddedToken(SWALLOWER, lstrip=True, rstrip=True), AddedToken(LONGER, normalized=True)])
            directory = tmp_path_factory.mktemp("bounded")
            found[family, kind] = TextTokenizer(tiny_tokenizers.save(tokenizer, directory))
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", BOUNDED)
@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
@example("\u1100\u1161\u11a8" * 500)
@example("\u03b1\u0313\u0300\u0345" * 500)
@example("\U0001d400" * 500)
@example("\u212a" * 500)
@example(" " * 5000 + SWALLOWER + " " * 5000)
@example(LONGER * 100)
@example(LENGTHENED * 100)
def test_a_text_never_has_fewer_tokens_than_the_bound_says(
    bounded: dict[tuple[str, str], TextTokenizer], family: str, kind: str, text: str
) -> None:
    tokenizer = bounded[family, kind]
    assert tokenizer.token_length is not None
    assert tokenizer.token_length.least_tokens(text) <= len(tokenizer.encode(text, add_special_tokens=False))


def test_no_character_shrinks_by_more_in_lower_case_than_is_reckoned_with(
    bounded: dict[tuple[str, str], TextTokenizer],
) -> None:
    length = bounded["byte-level BPE", "Lowercase"].token_length
    assert length is not None
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    assert max(size(one) / size(one.lower()) for one in characters) <= length.bytes / length.ascii_bytes


def test_a_text_of_the_longest_token_alone_meets_the_bound(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizers.byte_level_bpe()
    longest = "x" * 40
    tokenizer.add_tokens([longest])
    read = TextTokenizer(tiny_tokenizers.save(tokenizer, tmp_path))
    assert read.token_length is not None
    assert read.token_length.least_tokens(longest * 7) == 7 == len(read.encode(longest * 7, add_special_tokens=False))
    assert read.token_length.least_tokens(longest * 7 + "x") == 8


@pytest.mark.parametrize("kind", ["NFC", "NFD", "NFKC", "NFKD"])
def test_no_character_shrinks_by_more_than_is_reckoned_with(
    bounded: dict[tuple[str, str], TextTokenizer], kind: Any
) -> None:
    """Decomposing and composing each, for all characters there are: their product bounds any text's."""
    length = bounded["byte-level BPE", kind].token_length
    assert length is not None
    whole = {"NFC": "NFD", "NFKC": "NFKD"}.get(kind, kind)
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    parts = {one: unicodedata.normalize(whole, one) for one in characters}
    decomposing = max(size(one) / size(several) for one, several in parts.items())
    composed = [one for one in characters if unicodedata.normalize(kind, one) == one]
    composing = max(size(parts[one]) / size(one) for one in composed)
    assert decomposing * composing <= length.bytes / length.ascii_bytes


def size(text: str) -> int:
    return len(text.encode())


def removing() -> Tokenizer:
    tokenizer = tiny_tokenizers.byte_level_bpe()
    split = pre_tokenizers.Split(Regex(r"\s+"), "removed")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, tokenizer.pre_tokenizer])
    return tokenizer


def without_a_byte() -> Tokenizer:
    tokenizer = tiny_tokenizers.gemma_like()
    spec = tokenizer.to_str().replace('"<0xE9>"', '"<0xe9 is not here>"')
    return Tokenizer.from_str(spec)


UNBOUNDED: dict[str, Callable[[], Tokenizer]] = {
    "unknown characters become one token": tiny_tokenizers.metaspace_unigram,
    "a byte has no token": without_a_byte,
    "spaces are removed": removing,
    "text is stripped": lambda: normalized(tiny_tokenizers.byte_level_bpe, normalizers.Strip()),
    "text is replaced by less": lambda: normalized(tiny_tokenizers.byte_level_bpe, normalizers.Replace("ab", "")),
    "a pattern is replaced": lambda: normalized(
        tiny_tokenizers.byte_level_bpe, normalizers.Replace(Regex("a+"), "aaaa")
    ),
}


@pytest.mark.parametrize("kind", UNBOUNDED)
def test_where_a_token_can_stand_for_any_length_there_is_no_bound(kind: str, tmp_path: Path) -> None:
    read = TextTokenizer(tiny_tokenizers.save(UNBOUNDED[kind](), tmp_path))
    assert read.token_length is None


def test_words_as_a_whole_have_no_bound() -> None:
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    assert token_length(tokenizer, json.loads(tokenizer.to_str())) is None


# --- tokenizers that would take all memory, or give up


@pytest.mark.parametrize(
    "replaced",
    [
        [normalizers.Replace("a", "b" * 17)],
        [normalizers.Replace("a", "bbbbb"), normalizers.Replace(Regex("b+"), "cccc")],
    ],
)
def test_a_tokenizer_that_makes_texts_much_longer_is_refused(replaced: list[Any], tmp_path: Path) -> None:
    made = normalized(tiny_tokenizers.byte_level_bpe, normalizers.Sequence(replaced))
    with pytest.raises(ModelError, match="times as long"):
        TextTokenizer(tiny_tokenizers.save(made, tmp_path))


def test_where_a_tokenizer_gives_up_that_is_told_as_an_error(tmp_path: Path) -> None:
    made = tiny_tokenizers.byte_level_bpe()
    split = pre_tokenizers.Split(Regex(r"(a+)+$|(x+x+)+y"), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([split, made.pre_tokenizer])
    tokenizer = TextTokenizer(tiny_tokenizers.save(made, tmp_path))
    text = "a" * 40 + "!"
    with pytest.raises(RequestError, match="cannot take this text apart") as caught:
        tokenizer.encode(text, add_special_tokens=False)
    assert caught.value.status == 400
    with pytest.raises(RequestError, match="cannot take this text apart"):
        tokenizer.encode_part(text, 3, "left", add_special_tokens=False)
    assert tokenizer.encode("aa", add_special_tokens=False)


# --- refused before it is tokenized


@pytest.fixture
async def state(tmp_path: Path) -> AsyncIterator[ServerState]:
    directory = serving.text_model(tmp_path / "model")
    state = ServerState(ServerConfig(model=directory, served_model_name=("m",)))
    state.model = load_model(directory)
    state.client.ready = Ready(1, 1, max_model_len=2048, block_size=16, num_blocks=64, phases={})
    state.client._last_heard = float("inf")
    yield state
    state.close()


@pytest.mark.parametrize("route", ["completions", "chat/completions"])
async def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenized(
    state: ServerState, route: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(_self: TextTokenizer, text: str, **_: Any) -> list[int]:
        raise RuntimeError(f"{len(text)} characters are tokenized")

    monkeypatch.setattr(TextTokenizer, "encode", encode)
    text = "a" * 2**21
    fields: dict[str, Any] = (
        {"prompt": ["short", text]} if route == "completions" else {"messages": [{"role": "user", "content": text}]}
    )
    transport = httpx.ASGITransport(create_app(state))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        answer = await client.post(f"/v1/{route}", json={"model": "m", **fields})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", next(iter(fields)))
    assert "the model's context is 2048 tokens" in error["message"]
    assert "tokens or more" in error["message"]
    assert state.admission.num_open == 0


async def test_a_chat_that_cannot_fit_is_refused_before_it_is_rendered(
    state: ServerState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ChatTemplate, "render", None)
    piece = {"role": "user", "content": [{"type": "text", "text": "a" * 2**12}]}
    transport = httpx.ASGITransport(create_app(state))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        answer = await client.post("/v1/chat/completions", json={"model": "m", "messages": [piece] * 2**9})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded"), answer.text


# --- taking turns


@pytest.fixture
async def threads() -> AsyncIterator[TextThreads]:
    threads = TextThreads(long_texts_at_once=3 * SHORT_TEXT)
    yield threads
    threads.close()


class Work:
    """Work that goes on until it is let go."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        self._name, self._log = name, log

    def __call__(self) -> str:
        self._log.append(self._name)
        self.begun.set()
        self.go.wait(60)
        return self._name


async def begun(work: Work) -> None:
    assert await asyncio.to_thread(work.begun.wait, 60)


LONG = 2 * SHORT_TEXT


async def test_long_texts_take_turns_and_short_ones_do_not_wait(threads: TextThreads) -> None:
    log: list[str] = []
    first, second, third = (Work(name, log) for name in ("first", "second", "third"))
    tasks = [asyncio.create_task(threads.run_on_text(LONG, work)) for work in (first, second, third)]
    await begun(first)
    for _ in range(20):
        assert await threads.run_on_text(SHORT_TEXT, lambda: "short") == "short"
    assert log == ["first"]
    first.go.set()
    await begun(second)
    assert log == ["first", "second"]
    second.go.set()
    third.go.set()
    assert await asyncio.gather(*tasks) == ["first", "second", "third"]


async def test_what_fits_together_goes_together_and_nothing_passes_by(threads: TextThreads) -> None:
    log: list[str] = []
    small = SHORT_TEXT + 1
    works = [Work(name, log) for name in ("first", "huge", "behind it")]
    tasks = [
        asyncio.create_task(threads.run_on_text(length, work))
        for length, work in zip((small, 100 * SHORT_TEXT, small), works, strict=True)
    ]
    await begun(works[0])
    assert await threads.run(lambda: log) == ["first"]  # the last would fit, but does not go before the huge one
    for work in works:
        work.go.set()
    assert await asyncio.gather(*tasks) == ["first", "huge", "behind it"]


async def test_a_text_that_nobody_waits_for_any_more_holds_its_place_as_long_as_it_is_worked_on(
    threads: TextThreads,
) -> None:
    log: list[str] = []
    first, gone, last = (Work(name, log) for name in ("first", "gone", "last"))
    tasks = [asyncio.create_task(threads.run_on_text(LONG, work)) for work in (first, gone, last)]
    await begun(first)
    tasks[1].cancel()  # it waits
    tasks[0].cancel()  # its thread works on
    assert await asyncio.gather(*tasks[:2], return_exceptions=True) != ["first", "gone"]
    for _ in range(20):
        await threads.run(lambda: None)
    assert log == ["first"]
    first.go.set()
    last.go.set()
    assert await tasks[2] == "last"
    assert log == ["first", "last"]


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "a"}] * 2**10,
        [{"role": "user", "content": [{"type": "text", "text": "a"}] * 2**9}] * 2,
        [{"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "x" * 2**17}}]}],
        [{"role": "assistant", "content": "a", "reasoning": "x" * 2**17}],
    ],
    ids=["many messages", "many parts", "arguments", "thoughts"],
)
async def test_whatever_takes_long_to_render_counts_as_a_long_chat(
    state: ServerState, messages: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []

    async def in_turn(_self: ChatTemplate, _caller: bytes, length: int, *_: object) -> str:
        lengths.append(length)
        raise RequestError("enough")

    monkeypatch.setattr(ChatTemplate, "in_turn", in_turn)
    transport = httpx.ASGITransport(create_app(state))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        await client.post("/v1/chat/completions", json={"model": "m", "messages": messages})
    assert lengths[0] > SHORT_TEXT
