"""Tool calls and thoughts in what models write: the same however it comes, and nothing of it lost."""

import ast
import json
import re
import warnings
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import jinja2.sandbox
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from call_templates import NEWER_MISTRAL, PYTHONIC, QWEN3_CODER
from octavo_server.errors import ConfigError
from octavo_server.frontend.text.output_parsers import OutputFormat, Tool, choose_format
from octavo_server.frontend.text.output_parsers.source import Source
from parsed_messages import Whole, calls, put_together
from template_shapes import DEEPSEEK, GEMMA, LLAMA3, MISTRAL, QWEN3

DEMO: Final = Path(__file__).resolve().parents[2] / "server/octavo_server/demo_model/chat_template.jinja"
FORMATS: Final = ("hermes", "llama3_json", "mistral", "pythonic", "qwen3_coder")
THOUGHTS: Final = ("none", "qwen3", "deepseek_r1", "mistral")
TOOLS: Final = (
    Tool("f", {"type": "object", "properties": {"a": {"type": "string"}, "n": {"type": "integer"}, "any": {}}}),
    Tool("get_weather", {"type": "object", "properties": {"city": {"type": "string"}}}),
    Tool("g"),
)


def parse(how: OutputFormat, pieces: Iterable[str], *, tools: Sequence[Tool] = TOOLS, opened: bool = False) -> Whole:
    return put_together(how, pieces, tools=tools, opened=opened)


def form(tools: str = "none", thoughts: str = "none") -> OutputFormat:
    return choose_format("", tools, thoughts)


def read(name: str, text: str, thoughts: str = "none", *, opened: bool = False) -> Whole:
    return parse(form(name, thoughts), [text], opened=opened)


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
@settings(max_examples=300, deadline=None)
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


JSON_VALUES: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
ARGUMENTS: Final = st.dictionaries(st.text(min_size=1, max_size=6), JSON_VALUES, max_size=3)
CALLS: Final = st.lists(st.tuples(st.sampled_from([tool.name for tool in TOOLS]), ARGUMENTS), min_size=1, max_size=3)


def spell_json(name: str, calls: Sequence[tuple[str, str]]) -> str:
    """An answer with these calls, whose arguments are JSON already, as a model might write it."""
    match name:
        case "hermes":
            return "\n".join(f'<tool_call>\n{{"name": "{n}", "arguments": {a}}}\n</tool_call>' for n, a in calls)
        case "llama3_json":
            return "; ".join(f'{{"name": "{n}", "parameters": {a}}}' for n, a in calls)
        case "mistral":
            objects = ", ".join(f'{{"name": "{n}", "arguments": {a}, "id": "a1b2c3d4e"}}' for n, a in calls)
            return f"[TOOL_CALLS] [{objects}]"
    return "".join(f"[TOOL_CALLS]{n}[ARGS]{a}" for n, a in calls)


@pytest.mark.parametrize("name", ["hermes", "llama3_json", "mistral", "newer mistral"])
@settings(max_examples=60, deadline=None)
@given(meant=CALLS, indent=st.sampled_from([None, 1]), ascii_only=st.booleans(), before=st.sampled_from(["", "So: "]))
def test_arguments_in_json_are_the_models_own_text(
    name: str, meant: list[tuple[str, Any]], indent: int | None, ascii_only: bool, before: str
) -> None:
    spelt = [(tool, json.dumps(value, indent=indent, ensure_ascii=ascii_only)) for tool, value in meant]
    before = "" if name == "llama3_json" else before
    whole = read(name.removeprefix("newer "), before + spell_json(name, spelt) + "\n")
    assert [tuple(call) for call in whole.calls] == spelt
    assert whole.content == before.rstrip()


PYTHON_VALUES: Final = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(
    meant=st.lists(st.dictionaries(st.sampled_from(["a", "n", "_x1", "größe"]), PYTHON_VALUES, max_size=3), min_size=1),
    trailing=st.booleans(),
)
def test_arguments_in_python_mean_what_python_takes_them_for(meant: list[dict[str, Any]], trailing: bool) -> None:
    spelt = [[f"{key}={value!r}" for key, value in arguments.items()] for arguments in meant]
    text = ", ".join(f"f({', '.join(args)}{',' if args and trailing else ''})" for args in spelt)
    whole = read("pythonic", f"[{text}]")
    assert calls(whole) == [("f", arguments) for arguments in meant]
    assert whole.content == ""


LITERALS: Final = (
    r"'it\'s \x41\u00e9'", r'"\101\7\0"', r"'\q\\\n'", "'''a 'quoted' \"b\"'''", '"""\nx\\\ny"""', "''", '""', "1_000",
    "0x1f", "-0b101", "1.", ".5", "+3", "1e3", "[1, 2,]", "[]", "{}", "{'a': {'b': [True, None]}, }", "'\\U0001F600'",
)  # fmt: skip


@pytest.mark.parametrize("literal", LITERALS)
def test_pythons_other_ways_to_write_a_literal_are_known(literal: str) -> None:
    whole = read("pythonic", f"[f(a={literal})]")
    assert calls(whole) == [("f", {"a": eval_literal(literal)})]


def eval_literal(text: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an escape that Python does not know
        return ast.literal_eval(text.strip())


FAMILIES: Final = {
    "demo": (DEMO.read_text(), "hermes", "none"),
    "Qwen 3": (QWEN3, "hermes", "qwen3"),
    "Llama 3": (LLAMA3, "llama3_json", "none"),
    "Mistral": (MISTRAL, "mistral", "none"),
    "newer Mistral": (NEWER_MISTRAL, "mistral", "mistral"),
    "Llama 4": (PYTHONIC, "pythonic", "none"),
    "Qwen 3 Coder": (QWEN3_CODER, "qwen3_coder", "none"),
    "DeepSeek": (DEEPSEEK, "none", "qwen3"),
    "Gemma": (GEMMA, "none", "none"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_template_says_how_a_model_writes(family: str) -> None:
    template, tools, thoughts = FAMILIES[family]
    found = choose_format(template)
    assert found.names == (tools, thoughts)
    assert (found.supports_tools, found.supports_reasoning) == (tools != "none", thoughts != "none")
    assert choose_format(template, "none", "none").names == ("none", "none")


@cache
def compiled(template: str) -> jinja2.Template:
    """As transformers compiles it."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    environment.globals["strftime_now"] = lambda _: "today"
    return environment.from_string(template)


def render(template: str, messages: list[dict[str, Any]]) -> str:
    return compiled(template).render(messages=messages, bos_token="<s>", eos_token="</s>")


ROUND_TRIPS: Final = [family for family, (_, tools, _) in FAMILIES.items() if tools != "none"]
END: Final = re.compile(r"(<\|im_end\|>|<\|eot_id\|>|<\|eot\|>|</s>)\s*$")
TYPED: Final = Tool(
    "plan",
    {
        "type": "object",
        "properties": {
            "title": {"type": "string"},
            "hours": {"type": "array", "items": {"type": "integer"}},
            "share": {"type": "number"},
            "sure": {"type": "boolean"},
            "more": {"anyOf": [{"type": "object"}, {"type": "null"}]},
        },
    },
)
TYPED_ARGUMENTS: Final = st.fixed_dictionaries(
    {},
    optional={
        "title": st.sampled_from(["", "5", "null", 'say "hi"', "two\nlines", "a\\b", "日本 😀", "{", "<b>", "  "]),
        "hours": st.lists(st.integers(-9, 99), max_size=3),
        "share": st.floats(-1e6, 1e6, allow_nan=False),
        "sure": st.booleans(),
        "more": st.none() | st.fixed_dictionaries({"deep": st.lists(st.none() | st.booleans(), max_size=2)}),
    },
)


@pytest.mark.parametrize("family", ROUND_TRIPS)
@settings(max_examples=40, deadline=None)
@given(meant=st.lists(TYPED_ARGUMENTS, min_size=1, max_size=3), content=st.sampled_from([None, "Let me see."]))
def test_calls_that_a_template_wrote_are_read_back(
    family: str, meant: list[dict[str, Any]], content: str | None
) -> None:
    template, name, _ = FAMILIES[family]
    if name in ("llama3_json", "pythonic") or family == "Mistral":  # no text beside calls
        content = None
    meant = meant[:1] if family == "Llama 3" else meant  # its template writes one
    made = [
        {"id": "a1b2c3d4e", "type": "function", "function": {"name": "plan", "arguments": value}} for value in meant
    ]
    asked = [{"role": "user", "content": "?"}]
    answer = {"role": "assistant", "tool_calls": made} | (
        {"content": content} if content or family != "Llama 3" else {}
    )
    rendered = render(template, [*asked, answer])
    text = rendered.removeprefix(render(template, asked))
    text = END.sub("", re.sub(r"^(<\|im_start\|>assistant\n|<\|start_header_id\|>.*?\n\n|<\|assistant\|>)", "", text))
    whole = parse(choose_format(template), [text], tools=[TYPED])
    assert calls(whole) == [("plan", value) for value in meant]
    assert whole.content == (content or "")


F_A: Final = '{"name": "f", "arguments": {"a": 1}}'
# (format, text, content, calls)
CASES: Final[dict[str, tuple[str, str, str, list[tuple[str, str]]]]] = {
    "text around calls": (
        "hermes",
        f"One.\n\n<tool_call>\n{F_A}\n</tool_call>\n\nTwo.\n<tool_call>{F_A}</tool_call>\n",
        "One.\n\nTwo.",
        [("f", '{"a": 1}')] * 2,
    ),
    "a tag that goes on otherwise": ("hermes", "<tool_caller> and <tool", "<tool_caller> and <tool", []),
    "a call that is none": ("hermes", " <tool_call>\nno\n</tool_call> ", " <tool_call>\nno\n</tool_call> ", []),
    "one behind it that is": (
        "hermes",
        f"<tool_call>{{<tool_call>{F_A}</tool_call>",
        "<tool_call>{",
        [("f", '{"a": 1}')],
    ),
    "an unknown name": ("hermes", '<tool_call>{"name": "nobody"}</tool_call>', "", [("nobody", "{}")]),
    "no name": ("hermes", '<tool_call>{"arguments": {}}</tool_call>', '<tool_call>{"arguments": {}}</tool_call>', []),
    "a name that is no text": ("hermes", '<tool_call>{"name": 1}', '<tool_call>{"name": 1}', []),
    "half a surrogate pair": ("hermes", r'<tool_call>{"name": "\ud800"}', r'<tool_call>{"name": "\ud800"}', []),
    "the name last": ("hermes", '<tool_call>{"arguments": {"b": [2]}, "name": "g"}', "", [("g", '{"b": [2]}')]),
    "tags within a string": (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"a": "</tool_call>\\"}<tool_call>"}}</tool_call>',
        "",
        [("f", '{"a": "</tool_call>\\"}<tool_call>"}')],
    ),
    "broken JSON with sound brackets": (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"a": print("x")}}</tool_call> ok',
        "ok",
        [("f", '{"a": print("x")}')],
    ),
    "cut off in the name": ("hermes", 'Hm\n<tool_call>\n{"name": "f', 'Hm\n<tool_call>\n{"name": "f', []),
    "cut off before the arguments": ("hermes", '<tool_call>{"name": "f", "ar', '<tool_call>{"name": "f", "ar', []),
    "cut off in the arguments": ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "x', "", [("f", '{"a": "x')]),
    "cut off behind them": ("hermes", f"<tool_call>{F_A[:-1]}", "", [("f", '{"a": 1}')]),
    "a brace too many": ("hermes", f"<tool_call>{F_A}}}\n</tool_call>\n", "", [("f", '{"a": 1}')]),
    "a brace too few": ("hermes", f"<tool_call>{F_A[:-1]}</tool_call>\n", "", [("f", '{"a": 1}')]),
    "two objects in one tag": ("hermes", f"<tool_call>{F_A}\n{F_A}</tool_call>", "", [("f", '{"a": 1}')] * 2),
    "no closing tag": ("hermes", f"<tool_call>{F_A}<tool_call>{F_A}\nso", "so", [("f", '{"a": 1}')] * 2),
    "JSON that is the answer": ("llama3_json", '{"name": "Bob", "age": 4}', '{"name": "Bob", "age": 4}', []),
    "JSON that names no tool": (
        "llama3_json",
        '{"name": "Bob", "parameters": {}}',
        '{"name": "Bob", "parameters": {}}',
        [],
    ),
    "JSON in the middle": ("llama3_json", f"So: {F_A}", f"So: {F_A}", []),
    "behind the tag": ("llama3_json", f"So: <|python_tag|>{F_A};{F_A};", "So:", [("f", '{"a": 1}')] * 2),
    "code behind the tag": ("llama3_json", "<|python_tag|>print(1)", "<|python_tag|>print(1)", []),
    "text behind the call": ("llama3_json", f"{F_A}\nDone.", "Done.", [("f", '{"a": 1}')]),
    "typed": ("llama3_json", '{"type": "function", "name": "g", "parameters": {}}', "", [("g", "{}")]),
    "a list": ("mistral", f"So:[TOOL_CALLS] [{F_A}, {F_A}]\n", "So:", [("f", '{"a": 1}')] * 2),
    "a list that breaks": ("mistral", f"[TOOL_CALLS][{F_A}, oh", "oh", [("f", '{"a": 1}')]),
    "no list": ("mistral", "[TOOL_CALLS]and so on", "[TOOL_CALLS]and so on", []),
    "no mark before arguments": ("mistral", '[TOOL_CALLS]g{"b": 2}', "", [("g", '{"b": 2}')]),
    "an id": ("mistral", 'a[TOOL_CALLS]g[CALL_ID]x1[ARGS]{"b": 2} b', "a b", [("g", '{"b": 2}')]),
    "a list of numbers": ("pythonic", "[1, 2]", "[1, 2]", []),
    "no tool's name": ("pythonic", "[print(a=1)]", "[print(a=1)]", []),
    "a second name that is no tool's": ("pythonic", "[g(), print(a=1)]", "print(a=1)]", [("g", "{}")]),
    "positional arguments": ("pythonic", "[f(1)]", "[f(1)]", []),
    "a value that is no literal": ("pythonic", "[f(a=1, n=b)]", "b)]", [("f", '{"a": 1, "n": ')]),
    "Python cut off": ("pythonic", "[f(a=[True, 'x", "", [("f", '{"a": [true, "x')]),
    "Python cut off in a word": ("pythonic", "[f(a=Tru", "", [("f", '{"a": Tru')]),
    "with marks": ("pythonic", "So: <|python_start|>[g()]<|python_end|>", "So:", [("g", "{}")]),
    "a function alone": ("qwen3_coder", "So:\n<function=g>\n</function>", "So:", [("g", "{}")]),
    "no function": ("qwen3_coder", "<tool_call>\nno", "<tool_call>\nno", []),
    "parameters that nothing closes": (
        "qwen3_coder",
        "<tool_call><function=f><parameter=a>\nx\n<parameter=n>5</function></tool_call>",
        "",
        [("f", '{"a": "x", "n": 5}')],
    ),
    "numbers that are none": (
        "qwen3_coder",
        "<function=f>\n<parameter=n>\nfive\n</parameter>\n<parameter=other>\n5\n</parameter>\n</function>",
        "",
        [("f", '{"n": "five", "other": "5"}')],
    ),
    "half a surrogate pair in Python": ("pythonic", r"[f(a='\ud83dx')]", "", [("f", r'{"a": "\ud83dx"}')]),
    "line breaks of two characters": (
        "qwen3_coder",
        "<function=f>\r\n<parameter=a>\r\nx\r\n\r\n</parameter>\r\n</function>",
        "",
        [("f", r'{"a": "x\r\n"}')],
    ),
    "a value cut off": ("qwen3_coder", "<function=f><parameter=a>\nx y", "", [("f", '{"a": "x y')]),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_a_call_and_what_is_text(case: str) -> None:
    name, text, content, called = CASES[case]
    whole = parse(form(name), text)
    assert (whole.content, [tuple(call) for call in whole.calls]) == (content, called)


# (parser, prompt, text, reasoning, content)
THINKING: Final[dict[str, tuple[str, str, str, str, str]]] = {
    "thoughts first": ("qwen3", "Q", "<think>\nhm\nhm\n</think>\n\nSo: <think>", "hm\nhm", "So: <think>"),
    "none": ("qwen3", "Q", " No </think> thoughts\n", "", " No </think> thoughts\n"),
    "empty ones": ("qwen3", "Q", "<think>\n\n</think>\n\nSo", "", "So"),
    "the prompt opened them": ("qwen3", "Q<think>\n", "hm\n</think>\nSo", "hm", "So"),
    "the prompt closed them": ("qwen3", "Q<think>\n\n</think>\n\n", "So", "", "So"),
    "cut off": ("qwen3", "Q", "<think>hm </thi", "hm </thi", ""),
    "no opening mark": ("deepseek_r1", "Q", "hm</think>So", "hm", "So"),
    "switched off by the prompt": ("deepseek_r1", "Q<think></think>", "So", "", "So"),
    "in brackets": ("mistral", "Q", "[THINK]hm[/THINK]So", "hm", "So"),
}


@pytest.mark.parametrize("case", THINKING)
def test_what_is_thought_and_what_is_answer(case: str) -> None:
    name, prompt, text, reasoning, content = THINKING[case]
    how = form("hermes", name)
    whole = parse(how, text, opened=how.opens_reasoning(prompt))
    assert (whole.reasoning, whole.content) == (reasoning, content)
    # A model without thoughts leaves such text alone.
    assert parse(form("hermes"), text).content == text


def test_calls_come_after_thoughts_and_not_within() -> None:
    call = f"<tool_call>{F_A}</tool_call>"
    whole = read("hermes", f"<think>maybe {call}?</think>\n{call}", "qwen3")
    assert (whole.reasoning, whole.content, whole.calls) == (f"maybe {call}?", "", [["f", '{"a": 1}']])


def test_without_tools_nothing_is_a_call() -> None:
    text = f"<tool_call>{F_A}</tool_call>\n"
    assert parse(form("hermes"), [text], tools=()).content == text


def test_arguments_are_given_out_as_they_come() -> None:
    parser = form("hermes").parser(TOOLS, reasoning_open=False)
    text = '<tool_call>{"name": "f", "arguments": {"a": "a long story"}}</tool_call>'
    given = [(index, call.arguments) for index, letter in enumerate(text) for call in parser.add(letter).calls]
    begin = text.index('{"a"')
    assert given == [(begin, "{")] + [(begin + 1 + n, letter) for n, letter in enumerate(text[begin + 1 : -13])]


def test_an_unknown_parser_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"--tool-call-parser nope is unknown; known are hermes, .* and none"):
        choose_format("", "nope")
    with pytest.raises(ConfigError, match=r"--reasoning-parser nope is unknown; known are deepseek_r1, .* and none"):
        choose_format("", None, "nope")
    assert choose_format("", "llama4_pythonic").names == ("pythonic", "none")


def test_ids_of_calls_are_unlike_each_other_and_as_templates_want_them() -> None:
    assert all(re.fullmatch("call_[0-9a-f]{24}", form("hermes").call_id()) for _ in range(9))
    assert all(re.fullmatch("[a-zA-Z0-9]{9}", form("mistral").call_id()) for _ in range(9))
    assert len({form("mistral").call_id() for _ in range(99)}) == 99


UNITS: Final = (
    "<tool_call>", "<", "<tool_call>{", "[TOOL_CALLS]", "[TOOL_CALLS][", "[TOOL_CALLS]g", "<|python_tag|>", " ",
    "\n \t", "<function=", "<function=f><parameter=a>",
    "</parameter", "\\", "x", "[", "{", '{"', "[f(", "f(a=", "1", "'", ", ",
)  # fmt: skip
OPENINGS: Final = {
    "hermes": ("", '<tool_call>{"name": "', '<tool_call>{"name": "f", "arguments": {"a": ', "<tool_call>{"),
    "llama3_json": ("", '{"name": "f", "parameters": {"a": "', '{"parameters": {"a": '),
    "mistral": ("", "[TOOL_CALLS][", '[TOOL_CALLS]g[ARGS]{"a": "', "[TOOL_CALLS]g"),
    "pythonic": ("", "[", "[f(a=", "[f(a='", "[f(a={'a': ", "[f(n=1"),
    "qwen3_coder": ("", "<function=f", "<function=f><parameter=a>", "<function=f><parameter=n>\n"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_the_work_grows_with_the_text_and_no_faster(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Letter by letter: no text is looked at again and again, and whatever nests does so without recursion."""
    looked_at = 0
    add = Source.add

    def counted(source: Source, piece: str) -> None:
        nonlocal looked_at
        add(source, piece)
        looked_at += len(source.text)

    monkeypatch.setattr(Source, "add", counted)
    how = form(name, "qwen3")
    for opening in OPENINGS[name]:
        for unit in UNITS:
            text = opening + unit * (1_000 // len(unit))
            looked_at = 0
            whole = parse(how, text)
            assert looked_at <= 16 * len(text), (opening, unit)  # the longest marker, held back at each letter
            assert parse(how, [text]) == whole


@pytest.mark.parametrize(
    ("name", "opening"),
    [
        ("hermes", '<tool_call>{"name": "f", "arguments": '),
        ("hermes", '<tool_call>{"extra": '),
        ("llama3_json", '{"name": "f", "parameters": '),
        ("mistral", "[TOOL_CALLS]f"),
        ("pythonic", "[f(a="),
        ("qwen3_coder", "<function=f><parameter=any>"),
        ("qwen3_coder", "<function=f><parameter=n>"),
    ],
)
def test_nesting_may_go_as_deep_as_the_text(name: str, opening: str) -> None:
    for text in (opening + "[" * 100_000, opening + "{" + '"a":[' * 50_000 + "]" * 50_000 + "}" + "</parameter>"):
        whole = read(name, text)
        assert len(whole.content) + sum(len(arguments) for _, arguments in whole.calls) >= 90_000
