"""What forces tool calls: llguidance takes every grammar, and what it allows is what our parsers read."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import jsonschema
import pytest

from call_grammars import Vocabulary, vocabularies
from octavo_server.frontend.text.output_parsers import OutputFormat, Tool, choose_format

FORMATS: Final = ("hermes", "llama3_json", "mistral", "pythonic", "qwen3_coder")
EXACT: Final = FORMATS[:3]
WEATHER: Final = Tool(
    "get_weather",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "unit": {"enum": ["C", "F"]},
            "hours": {"type": "array", "items": {"$ref": "#/$defs/hour"}},
            "exact": {"type": "boolean"},
        },
        "required": ["city", "unit"],
        "$defs": {"hour": {"type": "integer"}},
    },
    strict=True,
)
NOW: Final = Tool("now-utc", {}, strict=True)
TOOLS: Final = (WEATHER, NOW)
VOCABULARIES: Final = dict(vocabularies())

dumps = partial(json.dumps, ensure_ascii=False)  # llguidance lets JSON escape only what must be
# One call as each format has it: (name, arguments in order) to text.
SPELL: Final[dict[str, Callable[[str, dict[str, Any]], str]]] = {
    "hermes": lambda name, arguments: (
        f'<tool_call>\n{{"name": "{name}", "arguments": {dumps(arguments)}}}\n</tool_call>'
    ),
    "llama3_json": lambda name, arguments: f'{{"name": "{name}", "parameters": {dumps(arguments)}}}',
    "mistral": lambda name, arguments: f'{{"name": "{name}", "arguments": {dumps(arguments)}}}',
    "pythonic": lambda name, arguments: (
        f"{name}({', '.join(f'{key}={_python(value)}' for key, value in arguments.items())})"
    ),
    "qwen3_coder": lambda name, arguments: "\n".join(
        ["<tool_call>", f"<function={name}>"]
        + [
            f"<parameter={key}>\n{value if isinstance(value, str) else dumps(value)}\n</parameter>"
            for key, value in arguments.items()
        ]
        + ["</function>", "</tool_call>"]
    ),
}


def _python(value: Any) -> str:
    return dumps(value) if isinstance(value, str) else repr(value)


def spell(name: str, vocabulary: Vocabulary, *calls: tuple[str, dict[str, Any]]) -> str:
    """An answer that is these calls."""
    if name == "mistral" and "[ARGS]" in vocabulary.token_ids:
        return "".join(f"[TOOL_CALLS]{tool}[ARGS]{dumps(arguments)}" for tool, arguments in calls)
    texts = [SPELL[name](*call) for call in calls]
    match name:
        case "mistral":
            return f"[TOOL_CALLS][{', '.join(texts)}]"
        case "pythonic":
            return f"[{', '.join(texts)}]"
    return ("; " if name == "llama3_json" else "\n").join(texts)


def read(form: OutputFormat, text: str, tools: Sequence[Tool]) -> tuple[str, list[tuple[str, Any]]]:
    parser = form.parser(tools, reasoning_open=False)
    parsed, rest = parser.add(text), parser.end()
    found: dict[int, list[str]] = {}
    for call in (*parsed.calls, *rest.calls):
        found.setdefault(call.index, [call.name or "", ""])[1] += call.arguments
    return parsed.content + rest.content, [(tool, json.loads(arguments)) for tool, arguments in found.values()]


@pytest.fixture(params=FORMATS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=VOCABULARIES)
def vocabulary(request: pytest.FixtureRequest) -> Vocabulary:
    return VOCABULARIES[request.param]


def grammar(name: str, vocabulary: Vocabulary, tools: Sequence[Tool], *, required: bool, parallel: bool = True) -> str:
    found = choose_format("", name, "none", token_ids=vocabulary.token_ids).call_grammar(
        tools, required=required, parallel=parallel
    )
    assert found is not None
    return found


CALL: Final = ("get_weather", {"city": 'Os"lo\\é\n', "unit": "C"})
FULL: Final = ("get_weather", {"city": "", "days": -2, "unit": "F", "hours": [1, 20], "exact": True})
EMPTY: Final = ("now-utc", {})


@pytest.mark.parametrize("calls", [[CALL], [FULL], [EMPTY], [CALL, EMPTY, FULL]])
def test_calls_as_the_models_write_them_are_allowed_and_read_as_they_were_meant(
    name: str, vocabulary: Vocabulary, calls: list[tuple[str, dict[str, Any]]]
) -> None:
    text = spell(name, vocabulary, *calls)
    for required in (True, False):
        assert vocabulary.accepts(grammar(name, vocabulary, TOOLS, required=required), text)
    form = choose_format("", name, "none")
    assert read(form, text, TOOLS) == ("", calls)


@pytest.mark.parametrize(
    "call",
    [
        ("get_weather", {"city": "Oslo"}),
        ("get_weather", {"city": "Oslo", "unit": "K"}),
        ("get_weather", {"city": "Oslo", "days": "two", "unit": "C"}),
        ("get_weather", {"city": "Oslo", "unit": "C", "hours": ["x"]}),
        ("get_weather", {"city": "Oslo", "unit": "C", "other": 1}),
        ("now-utc", {"zone": "CET"}),
        ("unknown", {}),
    ],
)
def test_calls_that_are_not_valid_are_impossible(
    name: str, vocabulary: Vocabulary, call: tuple[str, dict[str, Any]]
) -> None:
    text = spell(name, vocabulary, call)
    for required in (True, False):
        assert not vocabulary.accepts(grammar(name, vocabulary, TOOLS, required=required), text)


@pytest.mark.parametrize("name", [*EXACT, "qwen3_coder"], indirect=True)
def test_objects_within_arguments_have_no_other_properties_either(name: str, vocabulary: Vocabulary) -> None:
    at = {"type": "object", "properties": {"x": {"type": "integer"}}}
    both = {"type": "object", "allOf": [dict(at), {"properties": {"y": {"type": "integer"}}}]}
    tool = Tool("go", {"type": "object", "properties": {"at": at, "both": both}}, strict=True)
    forced = grammar(name, vocabulary, [tool], required=True)
    for arguments, is_allowed in (
        ({"at": {"x": 1}, "both": {"x": 1, "y": 2}}, True),
        ({"at": {"x": 1, "y": 2}}, False),
    ):
        assert vocabulary.accepts(forced, spell(name, vocabulary, ("go", arguments))) == is_allowed


def test_required_means_that_nothing_but_calls_can_come(name: str, vocabulary: Vocabulary) -> None:
    forced = grammar(name, vocabulary, TOOLS, required=True)
    assert not vocabulary.accepts(forced, "")
    assert not vocabulary.accepts(forced, "It rains.")
    assert not vocabulary.accepts(forced, "So: " + spell(name, vocabulary, EMPTY))


def test_a_named_tool_is_the_only_one_that_can_be_called(name: str, vocabulary: Vocabulary) -> None:
    forced = grammar(name, vocabulary, [WEATHER], required=True, parallel=False)
    assert vocabulary.accepts(forced, spell(name, vocabulary, CALL))
    assert not vocabulary.accepts(forced, spell(name, vocabulary, EMPTY))


def test_calls_that_may_not_be_parallel_come_alone(name: str, vocabulary: Vocabulary) -> None:
    for required in (True, False):
        forced = grammar(name, vocabulary, TOOLS, required=required, parallel=False)
        assert vocabulary.accepts(forced, spell(name, vocabulary, CALL))
        assert not vocabulary.accepts(forced, spell(name, vocabulary, CALL, EMPTY))


def test_free_text_may_be_anything_that_is_no_call(name: str, vocabulary: Vocabulary) -> None:
    free = grammar(name, vocabulary, TOOLS, required=False)
    for text in ("", "It rains.", " \n", "é < 3 [x] {y} <tool", "a\nb\n"):
        assert vocabulary.accepts(free, text)
    if name not in ("llama3_json", "pythonic"):
        text = f"I look.\n{spell(name, vocabulary, CALL)}\nSo."
        assert vocabulary.accepts(free, text)
        assert read(choose_format("", name, "none"), text, TOOLS) == ("I look.\nSo.", [CALL])


@pytest.mark.parametrize("required", [True, False])
def test_whatever_a_grammar_lets_through_is_read_as_valid_calls(
    name: str, vocabulary: Vocabulary, required: bool
) -> None:
    """Random answers, token by token from the masks; none may hold a call that its tool's schema refuses."""
    form = choose_format("", name, "none", token_ids=vocabulary.token_ids)
    forced = grammar(name, vocabulary, TOOLS, required=required)
    schemas = {tool.name: {"additionalProperties": False, **tool.parameters} for tool in TOOLS}
    seen = 0
    for seed in range(6):
        text = vocabulary.sample(forced, seed)
        if text is None:
            continue
        content, calls = read(form, text, TOOLS)
        assert not (required and content)
        for tool, arguments in calls:
            jsonschema.validate(arguments, schemas[tool])
        seen += bool(calls)
    assert seen or not required


# What a parameter may be as Qwen3-Coder spells it, by the text; and what it may not.
BARE: Final[dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]]] = {
    "listed, one is null": (
        {"type": ["string", "null"], "enum": ["red", None]}, {"red": "red", "null": None}, ["blue"]
    ),
    "a word or null": (
        {"anyOf": [{"const": "red", "type": "string"}, {"type": "null"}]}, {"red": "red", "null": None}, ['"red"']
    ),
    "named words or null": (
        {"anyOf": [{"$ref": "#/$defs/color"}, {"type": "null"}]}, {"red": "red", "blue": "blue", "null": None}, ["pink"]
    ),
    "words of two kinds": ({"oneOf": [{"const": "a"}, {"enum": ["b", "c"]}]}, {"a": "a", "c": "c"}, ["d"]),
    "a word and a number": ({"enum": ["red", 5, "5 or 6"]}, {"red": "red", "5": 5, "5 or 6": "5 or 6"}, ["6", '"red"']),
    "a word like a number": ({"enum": ["5", 1.5, True]}, {"5": "5", "1.5": 1.5, "true": True}, ["2.5", "false"]),
    "a text or null": ({"type": ["string", "null"]}, {"red": "red", '"red"': '"red"', "null": None, "5": "5"}, []),
    "a number or a text": ({"type": ["integer", "string"]}, {"5": 5, "five": "five", "5.5": "5.5", "true": "true"}, []),
    "a number or a word": (
        {"anyOf": [{"type": "integer"}, {"const": "all"}]}, {"5": 5, "-12": -12, "all": "all"}, ["5.5", "some", '"all"']
    ),
    "yes, no or null": ({"type": ["boolean", "null"]}, {"true": True, "null": None}, ["yes", '"true"']),
    "a list or null": (
        {"anyOf": [{"type": "array", "items": {"type": "integer"}}, {"type": "null"}]},
        {"[1, 2]": [1, 2], "null": None}, ['["x"]', "x"],
    ),
    "a list or a text": (
        {"anyOf": [{"type": "array", "items": {"type": "integer"}}, {"type": "string"}]},
        {"[1, 2]": [1, 2], "x": "x", '["x"]': '["x"]'}, [],
    ),
    "an object or a word": (
        {"anyOf": [{"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}, {"const": "{}"}]},
        {'{"x": 1}': {"x": 1}, "{}": "{}"}, ["[]", '{"y": 1}'],
    ),
}  # fmt: skip


def bare(schema: dict[str, Any]) -> Tool:
    parameters = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return Tool("f", {**parameters, "$defs": {"color": {"type": "string", "enum": ["red", "blue"]}}}, strict=True)


def bare_call(value: str) -> str:
    return f"<tool_call>\n<function=f>\n<parameter=a>\n{value}\n</parameter>\n</function>\n</tool_call>"


@pytest.mark.parametrize("case", BARE)
def test_a_bare_value_of_one_of_several_types_is_read_as_the_one_that_is_valid(
    case: str, vocabulary: Vocabulary
) -> None:
    schema, meant, refused = BARE[case]
    tool = bare(schema)
    forced = grammar("qwen3_coder", vocabulary, [tool], required=True)
    for text, value in meant.items():
        assert vocabulary.accepts(forced, bare_call(text)), text
        _, ((_, arguments),) = read(choose_format("", "qwen3_coder", "none"), bare_call(text), [tool])
        assert dumps(arguments) == dumps({"a": value})
        jsonschema.validate(arguments, tool.parameters)
    for text in refused:
        assert not vocabulary.accepts(forced, bare_call(text)), text


@pytest.mark.parametrize("case", [case for case in BARE if BARE[case][2]])
def test_whatever_bare_value_a_grammar_lets_through_is_valid(case: str) -> None:
    tool, vocabulary = bare(BARE[case][0]), VOCABULARIES["bytes"]
    forced, seen = grammar("qwen3_coder", vocabulary, [tool], required=True, parallel=False), 0
    for seed in range(12):
        if (text := vocabulary.sample(forced, seed)) is not None and text.endswith("</tool_call>"):
            _, ((_, arguments),) = read(choose_format("", "qwen3_coder", "none"), text, [tool])
            jsonschema.validate(arguments, tool.parameters)
            seen += 1
    assert seen


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"enum": ["red", None]}, '"red"', "red"),
        ({"enum": ["red", None]}, "None", None),
        ({"enum": ["red", None]}, "blue", "blue"),
        ({"enum": ["red", 5]}, "6", "6"),
        ({"type": ["integer", "string"]}, '"5"', '"5"'),
        ({"enum": ["1", True]}, "1", "1"),
        ({"type": ["string", "number"]}, "NaN", "NaN"),
    ],
)
def test_a_bare_value_that_nothing_forced_is_taken_for_what_is_valid_if_there_is_such(
    schema: dict[str, Any], text: str, value: Any
) -> None:
    _, ((_, arguments),) = read(choose_format("", "qwen3_coder", "none"), bare_call(text), [bare(schema)])
    assert dumps(arguments) == dumps({"a": value})
