"""The shapes of published chat templates against transformers: the same prompts, and the same chats refused."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jinja2
import pytest
from transformers import AutoTokenizer

import serving
import tiny_tokenizers
from call_templates import PYTHONIC, QWEN3_CODER
from octavo_server.errors import ConfigError, ModelError, RequestError
from octavo_server.frontend.model import load_model
from octavo_server.frontend.text.chat_template import ChatTemplate
from octavo_server.frontend.text.template_files import load_chat_template
from octavo_server.frontend.text.tokenizer import TextTokenizer
from template_shapes import DEEPSEEK, EITHER, GENERATION, LLAMA3, PARTS, QWEN3, SHAPES

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": 'The weather <now> & "here", für Köln',
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    },
    {"type": "function", "function": {"name": "time", "parameters": {"type": "object", "properties": {}}}},
]
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": {"city": "Köln", "b": 1}}}
CHATS: dict[str, list[dict[str, Any]]] = {
    "one question": [{"role": "user", "content": "  Grüße!\n"}],
    "system and turns": [
        {"role": "system", "content": " Be <b>brief</b>. "},
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "4 "},
        {"role": "user", "content": "And 3?"},
    ],
    "a tool's round": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": '{"sky": "grey"}', "tool_call_id": "abcdefghi"},
    ],
    "two calls": [
        {"role": "user", "content": "Weather twice?"},
        {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL, CALL | {"id": "jklmnopqr"}]},
        {"role": "tool", "content": "grey", "tool_call_id": "abcdefghi"},
        {"role": "tool", "content": "blue", "tool_call_id": "jklmnopqr"},
        {"role": "assistant", "content": "Grey and blue."},
        {"role": "user", "content": "Thanks!"},
    ],
    "reasoning": [
        {"role": "user", "content": "Think."},
        {"role": "assistant", "content": "Done.", "reasoning_content": "\nhm, hm\n"},
        {"role": "user", "content": "Again."},
        {"role": "assistant", "content": "<think>\nwell\n</think>\n\nDone again.", "tool_calls": None},
    ],
    "reasoning by another name": [
        {"role": "user", "content": "Think."},
        {"role": "assistant", "content": "Done.", "reasoning": "hm"},
    ],
    "assistant first": [{"role": "assistant", "content": "Hello?"}, {"role": "user", "content": "Hi."}],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
}
VARIABLES: dict[str, dict[str, Any]] = {
    "Qwen 3": {"enable_thinking": False},
    "Llama 3": {"date_string": "26 Jul", "tools_in_user_message": False},
    "generation tags": {"documents": [{"title": "one", "text": "a"}, {"title": "two", "text": "b"}]},
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_tokenizers.save(tiny_tokenizers.byte_level_bpe(), tmp_path_factory.mktemp("shapes"))


@pytest.fixture(scope="module")
def reference(directory: Path) -> Any:
    return AutoTokenizer.from_pretrained(directory)


@pytest.fixture(scope="module")
def compiled(directory: Path) -> Iterator[Callable[[str], ChatTemplate]]:
    made: dict[str, ChatTemplate] = {}
    names = TextTokenizer(directory).named_tokens
    yield lambda source: made.setdefault(source, made.get(source) or ChatTemplate(source, names))
    for template in made.values():
        template.close()


def both(reference: Any, template: ChatTemplate, chat: Any, **options: Any) -> tuple[str | None, str | None]:
    """What transformers makes of a chat, and what we make of it; None where it is refused."""
    variables = options.pop("variables", {})
    flags = {"add_generation_prompt": True} | options
    expected = found = None
    with contextlib.suppress(jinja2.TemplateError, ValueError, TypeError):
        expected = reference.apply_chat_template(
            chat, chat_template=template.source, tokenize=False, **flags, **variables
        )
    with contextlib.suppress(RequestError):
        found = template.render(chat, variables=variables, **flags)
    return expected, found


BROKEN = '{"city": "Bonn'
# A template that looks what arguments are shows the text; another one gets a mapping, which it iterates over, or dumps.
WITH_CALLS = {name: SHAPES[name] for name in ("Llama 3", "Mistral", "Qwen 3", "DeepSeek")} | {
    "pythonic": PYTHONIC,
    "Qwen 3 Coder": QWEN3_CODER,
    "asks for a mapping": "{% for m in messages %}{% for c in m.tool_calls or [] %}{% set a = c.function.arguments %}"
    "{{ a | tojson if a is mapping else a }}{% endfor %}{% endfor %}",
}


@pytest.mark.parametrize("shape", WITH_CALLS)
def test_arguments_that_are_no_mapping_fail_in_no_template(shape: str, compiled: Callable[[str], ChatTemplate]) -> None:
    call = CALL | {"function": {"name": "weather", "arguments": BROKEN}}
    chat = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "grey", "tool_call_id": "abcdefghi"},
    ]
    found = compiled(WITH_CALLS[shape]).render(chat)
    as_text = shape in ("Qwen 3", "asks for a mapping")
    assert ("INVALID_ARGUMENTS" in found) is not as_text
    assert (BROKEN if as_text or shape == "Qwen 3 Coder" else json.dumps(BROKEN)) in found


@pytest.mark.parametrize("shape", SHAPES)
def test_every_conversation_is_rendered_or_refused_as_transformers_does(
    shape: str, reference: Any, compiled: Callable[[str], ChatTemplate]
) -> None:
    template, rendered = compiled(SHAPES[shape]), 0
    for name, chat in CHATS.items():
        if name == "parts" and shape != "either kind of content":
            continue  # a template of strings gets a string: see below
        for tools in (None, TOOLS):
            for variables in ({}, VARIABLES.get(shape, {})):
                for prompt in (True, False):
                    options = {"tools": tools, "variables": variables, "add_generation_prompt": prompt}
                    expected, found = both(reference, template, chat, **options)
                    assert found == expected, (name, options)
                    rendered += found is not None
    assert rendered >= 8


OPEN = {
    "plain": "The answer is",
    "spaces behind, which some templates strip": "The answer is  ",
    "a line's end": "One\nTwo\n",
    "spaces before": "  indented",
    "thought, which some templates cut off": "<think>\nhm\n</think>\n\nSo",
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_last_message_is_left_open_as_transformers_leaves_it(
    shape: str, reference: Any, compiled: Callable[[str], ChatTemplate]
) -> None:
    rendered = 0
    for name, text in OPEN.items():
        chat = [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": text}]
        options = {"add_generation_prompt": False, "continue_final_message": True}
        expected, found = both(reference, compiled(SHAPES[shape]), chat, **options)
        assert found == expected, name
        rendered += found is not None
        assert found is None or found.rstrip().endswith(text.strip())
    assert rendered >= 4


@pytest.mark.parametrize("last", [{"role": "assistant", "tool_calls": [CALL], "content": None}, {"role": "assistant"}])
def test_a_message_without_text_cannot_be_continued(last: Any, compiled: Callable[[str], ChatTemplate]) -> None:
    with pytest.raises(RequestError, match="no content that could be continued") as caught:
        compiled(QWEN3).render([last], add_generation_prompt=False, continue_final_message=True)
    assert caught.value.param == "continue_final_message"


def test_an_open_message_and_the_beginning_of_a_new_one_contradict_each_other(
    compiled: Callable[[str], ChatTemplate],
) -> None:
    with pytest.raises(RequestError, match="add_generation_prompt: false"):
        compiled(QWEN3).render([{"role": "assistant", "content": "So"}], continue_final_message=True)


def test_a_part_that_the_template_drops_cannot_be_continued(compiled: Callable[[str], ChatTemplate]) -> None:
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "<think>a</think>b"}]
    with pytest.raises(RequestError, match="leaves out a part of the last message") as caught:
        compiled(DEEPSEEK).render(chat, add_generation_prompt=False, continue_final_message=True)
    assert caught.value.param == "continue_final_message"


# --- what a request may set


@pytest.mark.parametrize(
    ("source", "asked", "set_in_a_branch", "tools"),
    [
        (QWEN3, {"enable_thinking"}, {"content", "thought"}, True),
        (LLAMA3, {"custom_tools", "tools_in_user_message", "date_string"}, {"call", "first", "system"}, True),
        (GENERATION, {"documents"}, set(), False),
        (DEEPSEEK, set(), {"content"}, False),
        ("{% set mine = 1 %}{{ mine }}{{ eos_token }}{{ range(3) }}", set(), set(), False),
        ("{% for a in messages %}{{ a }}{% endfor %}{{ a }}", {"a"}, set(), False),
        ("{% macro f(x) %}{{ x }}{{ inner }}{% endmacro %}{{ f(1) }}", {"inner"}, set(), False),
    ],
)
def test_a_request_may_set_what_the_template_reads_and_the_server_does_not_give(
    source: str, asked: set[str], set_in_a_branch: set[str], tools: bool, compiled: Callable[[str], ChatTemplate]
) -> None:
    template = compiled(source)
    assert template.variables == asked | set_in_a_branch
    assert template.knows_tools == tools


@pytest.mark.parametrize(
    "name",
    ["messages", "tools", "add_generation_prompt", "bos_token", "raise_exception", "range", "ns", "__class__"],
)
def test_no_other_variable_is_taken(name: str, compiled: Callable[[str], ChatTemplate]) -> None:
    with pytest.raises(RequestError, match=r"it has: .*enable_thinking") as caught:
        compiled(QWEN3).render(CHATS["one question"], variables={name: "x"})
    assert caught.value.param == f"chat_template_kwargs.{name}"


# --- strings and parts


def test_a_template_gets_the_kind_of_content_that_it_takes(
    reference: Any, compiled: Callable[[str], ChatTemplate]
) -> None:
    text, parts = CHATS["one question"], CHATS["parts"]
    joined = [{"role": "user", "content": "a\nb"}]
    assert compiled(QWEN3).render(parts) == compiled(QWEN3).render(joined)  # it knows strings alone
    assert compiled(PARTS).render(parts) == "[user] a b"
    assert compiled(PARTS).render(text) == f"[user] {text[0]['content']}"  # it knows parts alone
    assert both(reference, compiled(EITHER), parts) == ("user: (a)(b)\n",) * 2


def test_the_flag_says_which_kind_of_content_the_template_takes() -> None:
    source = "{% for m in messages %}{{ m.content | tojson }}{% endfor %}"
    chat, part = [{"role": "user", "content": "a"}], {"type": "text", "text": "a"}
    assert json.loads(ChatTemplate(source, {}, content_format="openai").render(chat)) == [part]
    assert (
        json.loads(ChatTemplate(PARTS[:0] + source, {}, content_format="string").render([{"content": [part]}])) == "a"
    )
    listed = "{% for m in messages %}{% for p in m.content %}{{ p }}{% endfor %}{% endfor %}"
    assert ChatTemplate(listed, {}, content_format="string").render(chat) == "a"


# --- where templates come from


def test_chats_with_tools_take_the_template_for_them(tmp_path: Path) -> None:
    tiny_tokenizers.save(
        tiny_tokenizers.byte_level_bpe(),
        tmp_path,
        chat_template=[
            {"name": "default", "template": "plain"},
            {"name": "tool_use", "template": "{{ tools | length }} {{ kind }}"},
        ],
    )
    reference = AutoTokenizer.from_pretrained(tmp_path)
    template = load_chat_template(tmp_path, TextTokenizer(tmp_path).config, {})
    assert template is not None
    assert template.knows_tools
    assert template.variables == {"kind"}
    for tools in (None, TOOLS, []):
        expected = reference.apply_chat_template(CHATS["one question"], tools=tools, tokenize=False, kind="k")
        assert template.render(CHATS["one question"], tools=tools, variables={"kind": "k"}) == expected


def test_files_go_before_the_configuration_as_in_transformers(tmp_path: Path) -> None:
    """Whatever is in the directory: which text is rendered, without tools and with."""
    config = {"chat_template": [{"name": "default", "template": "config"}, {"name": "tool_use", "template": "ctools"}]}
    (tmp_path / "additional").mkdir()
    for jinja in (False, True):
        for additional in ((), ("tool_use",), ("default",), ("other", "tool_use")):
            where = tmp_path / f"{jinja}-{'-'.join(additional)}"
            tiny_tokenizers.save(tiny_tokenizers.byte_level_bpe(), where, **config)
            if jinja:
                (where / "chat_template.jinja").write_bytes(b"file\r\nlines")
            for name in additional:
                (where / "additional_chat_templates").mkdir(exist_ok=True)
                (where / "additional_chat_templates" / f"{name}.jinja").write_text(name)
            reference = AutoTokenizer.from_pretrained(where)
            template = load_chat_template(where, TextTokenizer(where).config, {})
            for tools in (None, TOOLS):
                try:
                    expected = reference.apply_chat_template(CHATS["one question"], tools=tools, tokenize=False)
                except ValueError:  # none is called default
                    assert template is None
                    continue
                if template is not None:  # transformers alone takes a tool_use without a default
                    assert template.render(CHATS["one question"], tools=tools) == expected


def test_a_processors_file_counts_where_there_is_no_other(tmp_path: Path) -> None:
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "from the processor"}))
    template = load_chat_template(tmp_path, {}, {})
    assert template is not None
    assert template.render([]) == "from the processor"
    other = load_chat_template(tmp_path, {"chat_template": "from the tokenizer"}, {})
    assert other is not None
    assert other.render([]) == "from the tokenizer"


def test_the_flag_goes_before_the_models_own(tmp_path: Path) -> None:
    model = serving.text_model(tmp_path / "model")
    (tmp_path / "mine.jinja").write_text("mine: {{ messages[0].content }}{{ eos_token }}")
    for given in (str(tmp_path / "mine.jinja"), "mine: {{ messages[0].content }}{{ eos_token }}"):
        served = load_model(model, given)
        assert served.chat_template is not None
        assert served.chat_template.render([{"role": "user", "content": "hi"}]) == "mine: hi<|im_end|>"
        served.chat_template.close()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("/nowhere/x.jinja", "there is no such file"),
        ("{% for %}", "not valid Jinja"),
        ("{{ 'x' * 2000 }}{% if %}" + "y" * 5000, "not valid Jinja"),
    ],
)
def test_a_template_that_cannot_be_used_is_told_with_its_flag(tmp_path: Path, given: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"--chat-template .*{said}") as caught:
        load_model(serving.text_model(tmp_path / "model"), given)
    assert len(str(caught.value)) < 1000


def test_a_file_that_is_too_large_or_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "large.jinja").write_text("x" * (2**20 + 1))
    (tmp_path / "binary.jinja").write_bytes(b"\xff\xfe")
    for name, said in (("large", "larger than"), ("binary", "cannot be read")):
        with pytest.raises(ConfigError, match=f"--chat-template .*{said}"):
            load_chat_template(tmp_path, {}, {}, str(tmp_path / f"{name}.jinja"))
    (tmp_path / "chat_template.json").write_text("{")
    with pytest.raises(ModelError, match="not valid JSON"):
        load_chat_template(tmp_path, {}, {})


@pytest.mark.parametrize(
    "escape",
    [
        "{% set ns = namespace() %}{% set ns.__class__ = messages %}",
        "{{ namespace(__class__=1) }}",
        "{{ namespace({'_x': 1}) }}",
        "{{ dict.mro() }}",
        "{{ dict.__subclasses__() }}",
    ],
)
def test_namespaces_and_dictionaries_are_no_way_out(escape: str) -> None:
    with pytest.raises(RequestError, match="refuses these messages"):
        ChatTemplate(escape, {}).render(CHATS["one question"])


def test_namespaces_and_dictionaries_serve_templates() -> None:
    source = "{% set ns = namespace(self=1, a=2) %}{% set ns.a = 3 %}{{ ns.a }}{{ ns.self }}{{ dict(b=4).b }}"
    assert ChatTemplate(source, {}).render([]) == "314"
