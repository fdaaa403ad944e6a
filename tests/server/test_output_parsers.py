"""Tool calls and thoughts in what models write: the same however it comes, and nothing of it lost."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo_server.frontend.text.output_parsers import OutputFormat, Tool, choose_format

FORMATS: Final = ("hermes", "llama3_json", "mistral", "pythonic", "qwen3_coder")
THOUGHTS: Final = ("none", "qwen3", "deepseek_r1", "mistral")
TOOLS: Final = (
    Tool("f", {"type": "object", "properties": {"a": {"type": "string"}, "n": {"type": "integer"}, "any": {}}}),
    Tool("get_weather", {"type": "object", "properties": {"city": {"type": "string"}}}),
    Tool("g"),
)


@dataclass
class Whole:
    """A message put together from what a parser gave out."""

    content: str = ""
    reasoning: str = ""
    calls: list[list[str]] = field(default_factory=list)


def parse(form: OutputFormat, pieces: Iterable[str], *, tools: Sequence[Tool] = TOOLS, opened: bool = False) -> Whole:
    parser = form.parser(tools, reasoning_open=opened)
    whole = Whole()
    for parsed in [*map(parser.add, pieces), parser.end()]:
        whole.content += parsed.content
        whole.reasoning += parsed.reasoning
        assert [call.index for call in parsed.calls] == sorted({call.index for call in parsed.calls})
        for call in parsed.calls:
            if call.name is not None:
                assert call.index == len(whole.calls)
                whole.calls.append([call.name, ""])
            whole.calls[call.index][1] += call.arguments
    return whole


def form(tools: str = "none", thoughts: str = "none") -> OutputFormat:
    return choose_format("", tools, thoughts)


def read(name: str, text: str, thoughts: str = "none", *, opened: bool = False) -> Whole:
    return parse(form(name, thoughts), [text], opened=opened)


def calls(whole: Whole) -> list[tuple[str, Any]]:
    return [(name, json.loads(arguments)) for name, arguments in whole.calls]


# Text rich in what matters to some reader, whole and in parts.
MARKERS: Final = (
    "<tool_call>", "</tool_call>", "<tool", "</", "<|python_tag|>", "<|pyth", "[TOOL_CALLS]", "[TOOL_", "[ARGS]",
    "[CALL_ID]", "<|python_start|>", "<|python_end|>", "<function=f>", "<function=", "</function>", "<parameter=a>",
    "<parameter=n>", "<parameter=any>", "</parameter>", "<think>", "</think>", "</thi", "[THINK]", "[/THINK]",
)  # fmt: skip
SYNTAX: Final = (
    '{"name": "f", "arguments": {', '{"name": "g"}', '{"name": "nobody", "parameters": {}}', '"arguments": ', '"a": ',
    '{"arguments": {"n": 1}, "name": "f"}', '{"name":', '"f"', "[f(", "f(a=", "[g()]", "n=1", "a='", 'a="', "=", "g()",
    "(", ")", "[", "]", "{", "}", '"', "'", "\\", '\\"', "\\u00e9", "\\ud83d", "\\x4", "\\", "'''", '"""', ",", ";",
    ":", "True", "null", "-1.5e3", "0x1F", "1_0", "nan", " ", "\n", "\r\n", "\t", "é", "日本", "😀", "\u2028", "\x00",
)  # fmt: skip
PARTS: Final = st.lists(st.sampled_from(MARKERS + SYNTAX), max_size=14).map("".join)


def pieces_of(text: str, cuts: Sequence[int]) -> list[str]:
    places = sorted({cut % (len(text) + 1) for cut in cuts})
    return [text[begin:end] for begin, end in zip([0, *places], [*places, len(text)], strict=True)]


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=200, deadline=None)
@given(
    text=PARTS,
    cuts=st.lists(st.integers(0, 300), max_size=8),
    thoughts=st.sampled_from(THOUGHTS),
    opened=st.booleans(),
    tools=st.sampled_from([TOOLS, ()]),
)
def test_what_is_streamed_adds_up_to_the_whole_message(
    name: str, text: str, cuts: list[int], thoughts: str, opened: bool, tools: Sequence[Tool]
) -> None:
    how = form(name, thoughts)
    whole = parse(how, [text], tools=tools, opened=opened)
    assert parse(how, pieces_of(text, cuts), tools=tools, opened=opened) == whole
    assert parse(how, text, tools=tools, opened=opened) == whole
    for text_out in (whole.content, whole.reasoning, *(part for call in whole.calls for part in call)):
        text_out.encode()  # half a surrogate pair could not be sent
    if not whole.calls and thoughts == "none":
        assert whole.content == text
