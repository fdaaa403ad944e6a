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
