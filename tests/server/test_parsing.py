"""An answer read in pieces says what it says as a whole: its parts, the tokens of its content, and of its thoughts."""

from collections.abc import Iterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from octavo_server.frontend.answer import Delta
from octavo_server.frontend.parsing import ChoiceParser, Parsing, Piece
from octavo_server.frontend.text.output_parsers import Tool, choose_format
from octavo_server.ipc import TokenLogprobs

FORMAT = choose_format("<tool_call> <think></think>")
TOOLS = (Tool("f"),)
PARSING = Parsing(FORMAT, TOOLS, reasoning_open=False)
WORDS = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    '{"name": "f", "arguments": {"a": 1}}',
    "\n",
    " ",
    "a",
    "<",
]
TEXTS = st.lists(st.sampled_from(WORDS) | st.text(max_size=3), max_size=12).map("".join)


def deltas(text: str, tokens: list[int], steps: list[int]) -> list[Delta]:
    """The text in tokens that end at `tokens`, which come in steps that end at `steps`."""
    ends = sorted({position % (len(text) + 1) for position in tokens} | {len(text)})
    made, begin, delta = [], 0, Delta()
    for number, end in enumerate(ends):
        delta.add_token(number, begin)
        delta.logprobs.append(TokenLogprobs([number], [0.0], 1))
        delta.add_text(text[begin:end])
        begin = end
        if number in steps:
            made.append(delta)
            delta = Delta()
    delta.finish_reason = "stop"
    return [*made, delta]


def read(pieces: list[Delta], parsing: Parsing = PARSING) -> tuple[ChoiceParser, list[Piece]]:
    parser = parsing.choice(with_logprobs=True)
    return parser, [parser.add(piece) for piece in pieces]


def told(parser: ChoiceParser, pieces: list[Piece]) -> dict[str, Any]:
    calls: dict[int, list[str]] = {}
    for piece in pieces:
        for call in piece.calls:
            calls.setdefault(call.index, [call.name or ""]).append(call.arguments)
    return {
        "content": "".join(piece.content for piece in pieces),
        "reasoning": "".join(piece.reasoning for piece in pieces),
        "calls": {index: (name, "".join(arguments)) for index, (name, *arguments) in calls.items()},
        "tokens": [entry.token_ids[0] for piece in pieces for entry in piece.logprobs],
        "thoughts": parser.reasoning_tokens,
        "called": parser.called,
    }


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.lists(st.integers(0, 200), max_size=12), st.lists(st.integers(0, 12), max_size=12))
def test_however_tokens_come_they_say_the_same(text: str, tokens: list[int], steps: list[int]) -> None:
    in_steps, whole = deltas(text, tokens, steps), deltas(text, tokens, [])
    assert told(*read(in_steps)) == told(*read(whole))


CALL = f"<tool_call>{WORDS[4]}</tool_call>"
TOKENS = ["<think>", "</think>", CALL, "</tool_call>", " ", "x", "x y", "<", ""]


def one_each(tokens: list[str]) -> Iterator[Delta]:
    """A delta for each token; one without a text is a part of a character."""
    for number, text in enumerate(tokens):
        delta = Delta()
        delta.add_token(number, sum(map(len, tokens[:number])))
        delta.logprobs.append(TokenLogprobs([number], [0.0], 1))
        delta.add_text(text)
        delta.finish_reason = "stop" if number == len(tokens) - 1 else None
        yield delta


def together(tokens: list[str]) -> Delta:
    whole = Delta()
    for delta in one_each(tokens):
        whole.add_token(delta.token_ids[0], delta.offsets[0])
        whole.logprobs += delta.logprobs
        whole.add_text(delta.text)
    whole.finish_reason = "stop"
    return whole


@settings(max_examples=600, deadline=None)
@given(st.lists(st.sampled_from(TOKENS), min_size=1, max_size=9), st.sampled_from([TOOLS, ()]), *[st.booleans()] * 2)
def test_a_token_read_by_itself_says_what_it_says_among_all(
    tokens: list[str], tools: tuple[Tool, ...], opened: bool, hides: bool
) -> None:
    parsing = Parsing(FORMAT, tools, opened, FORMAT.kept_markers if hides else ())
    assert told(*read(list(one_each(tokens)), parsing)) == told(*read([together(tokens)], parsing))


@settings(max_examples=300, deadline=None)
@given(TEXTS, TEXTS)
def test_every_token_of_a_plain_answer_is_content(text: str, tail: str) -> None:
    plain = "".join(character for character in text + tail if character not in "<>{")
    found = told(*read(deltas(plain, list(range(1, len(plain))), [])))
    if found["content"] == plain:  # what is nothing but space may be cut off
        assert found["tokens"] == list(range(len(plain)))
    assert found["thoughts"] == 0


def test_tokens_are_told_apart_by_where_they_stand() -> None:
    parts = ["<think>", "a", "b", "</think>", "\n\n", "c", "<", "d", "\n<tool_call>\n", WORDS[4], "</tool_call>"]
    ends = [sum(map(len, parts[: number + 1])) for number in range(len(parts))]
    found = told(*read(deltas("".join(parts), ends, list(range(len(parts))))))
    assert (found["reasoning"], found["content"].strip(), found["called"]) == ("ab", "c<d", True)
    assert found["thoughts"] == 2
    assert found["tokens"][:3] == [5, 6, 7]


def test_text_that_stop_strings_hold_back_keeps_its_tokens() -> None:
    first, second = Delta(), Delta()
    for number in range(3):
        delta = first if number < 2 else second
        delta.add_token(number, number)
        delta.logprobs.append(TokenLogprobs([number], [0.0], 1))
        if number != 1:
            delta.add_text("a" if number == 0 else "bc")
    second.finish_reason = "stop"
    assert told(*read([first, second]))["tokens"] == [0, 1, 2]


def halves(tokens: list[str], cuts: set[int]) -> list[Delta]:
    """Deltas that end in the middle of tokens, as where a stop string holds back what may be its beginning."""
    made, delta, at = [], Delta(), 0
    for number, text in enumerate(tokens):
        delta.add_token(number, at)
        delta.logprobs.append(TokenLogprobs([number], [0.0], 1))
        at += len(text)
        if number in cuts:
            delta.add_text(text[: len(text) // 2])
            made.append(delta)
            delta, text = Delta(), text[len(text) // 2 :]
        delta.add_text(text)
    delta.finish_reason = "stop"
    return [*made, delta]


HALVED = [
    "<<",
    "<",
    "<|",
    "|>",
    "a<",
    "</think>",
    "</th",
    "ink>x",
    "<think>",
    "<tool",
    "_call>",
    CALL,
    " y",
    "}}",
    "\n<",
]


@settings(max_examples=600, deadline=None)
@given(st.lists(st.sampled_from(HALVED), min_size=1, max_size=9), st.sets(st.integers(0, 8)), *[st.booleans()] * 3)
def test_a_token_counts_once_whichever_half_of_it_comes_when(
    tokens: list[str], cuts: set[int], opened: bool, hides: bool, called: bool
) -> None:
    parsing = Parsing(FORMAT, TOOLS if called else (), opened, FORMAT.kept_markers if hides else ())
    whole = told(*read([together(tokens)], parsing))
    assert told(*read(halves(tokens, cuts), parsing)) == whole
    if whole["content"] == "".join(tokens) and not whole["reasoning"]:
        assert whole["tokens"] == list(range(len(tokens)))


def test_of_what_is_held_back_no_token_is_lost() -> None:
    for tokens in (["a", "<", "<", "b"], ["<", "<", "<", "<tool", "x"], ["a", "  ", "<", "<"]):
        assert told(*read(list(one_each(tokens))))["tokens"] == list(range(len(tokens)))


def test_a_marker_that_is_hidden_is_so_however_it_is_spelt() -> None:
    parsing = Parsing(FORMAT, (), reasoning_open=False, hidden=FORMAT.kept_markers)
    for tokens in (["a", "<", "think", ">", "b"], ["a<think", ">b"], ["a<think>b"]):
        for pieces in (list(one_each(tokens)), [together(tokens)]):
            assert told(*read(pieces, parsing))["content"] == "ab"
    assert told(*read(list(one_each(["a", "<", "thin", "b<th"])), parsing))["content"] == "a<thinb<th"
