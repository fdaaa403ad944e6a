"""Rendering and tokenizing against transformers: the same text, the same ids."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors
from transformers import AutoTokenizer

import tiny_tokenizers
from octavo_server.errors import ModelError, RequestError
from octavo_server.frontend.text.chat_template import ChatTemplate, load_chat_template
from octavo_server.frontend.text.tokenizer import TextTokenizer

CHAT = [
    {"role": "system", "content": "You are <b>brief</b> & 'polite'."},
    {"role": "user", "content": "  Grüße! What is 2 + 2?\n"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "And 3 + 3?"},
]
TOOL_CHAT = [
    {"role": "user", "content": "Weather in Köln?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": "a1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Köln", "n": 1}}}
        ],
    },
    {"role": "tool", "content": '{"sky": "grey"}', "tool_call_id": "a1"},
]

TEMPLATES = {
    "chatml": tiny_tokenizers.CHATML,
    "llama 2 style, system folded into the first turn": """
{%- if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set rest = messages[1:] %}
{%- else %}{% set system = none %}{% set rest = messages %}{% endif %}
{%- for m in rest %}
    {%- set head = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' if loop.first and system else '' %}
    {%- if m['role'] == 'user' %}{{ bos_token + '[INST] ' + head + m['content'].strip() + ' [/INST]' }}
    {%- elif m['role'] == 'assistant' %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}{% endif %}
{%- endfor %}
""",
    "blocks on lines of their own, whitespace trimmed": """
{{ bos_token }}
{% for m in messages %}
    {% if m.role == "assistant" %}
        {% generation %}
[{{ m.role | upper }}] {{ m.content }}
        {% endgeneration %}
    {% else %}
[{{ m.role }}] {{ m.content }}
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}
[ASSISTANT]
{% endif %}
""",
    "namespace, loop controls, macros, tojson": """
{%- macro show(value) %}{{ value | tojson }}{% endmacro %}
{%- set ns = namespace(count=0) %}
{%- for m in messages %}
    {%- if ns.count >= 3 %}{% break %}{% endif %}
    {%- if m.role == 'system' %}{% continue %}{% endif %}
    {%- set ns.count = ns.count + 1 %}
    {%- if m.tool_calls is defined and m.tool_calls %}
        {%- for call in m.tool_calls %}CALL {{ call.function | tojson(indent=2) }}{% endfor %}
    {%- else %}{{ m.role ~ ': ' ~ show(m.content) }}{% endif %}
{% endfor %}{{ ns.count }} {{ tools is none }} {{ documents is none }} {{ pad_token is defined }}
""",
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_tokenizers.save(tiny_tokenizers.byte_level_bpe(), tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("chat", [CHAT, TOOL_CHAT], ids=["plain", "tools"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_chat_is_rendered_as_transformers_renders_it(directory: Path, name: str, chat: list[dict[str, Any]]) -> None:
    reference = AutoTokenizer.from_pretrained(directory)
    expected = reference.apply_chat_template(
        chat, chat_template=TEMPLATES[name], tokenize=False, add_generation_prompt=True
    )
    template = ChatTemplate(TEMPLATES[name], TextTokenizer(directory).named_tokens)
    assert template.render(chat) == expected


@pytest.mark.parametrize(
    "flags", [{}, {"add_bos_token": True}, {"add_eos_token": True}, {"add_bos_token": False}], ids=str
)
@pytest.mark.parametrize("family", tiny_tokenizers.FAMILIES)
def test_texts_get_the_ids_that_transformers_gives(tmp_path: Path, family: str, flags: dict[str, bool]) -> None:
    model = tiny_tokenizers.save(tiny_tokenizers.FAMILIES[family](), tmp_path, **flags)
    reference, tokenizer = AutoTokenizer.from_pretrained(model), TextTokenizer(model)
    for text in [*tiny_tokenizers.TEXT, "", "<s>already there", "<|im_start|>user\nhi<|im_end|>"]:
        assert tokenizer.encode(text, add_special_tokens=True) == reference(text)["input_ids"]
        assert (
            tokenizer.encode(text, add_special_tokens=False) == reference(text, add_special_tokens=False)["input_ids"]
        )


def test_the_post_processor_of_the_file_counts_where_the_configuration_is_silent(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizers.byte_level_bpe()
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    model = tiny_tokenizers.save(tokenizer, tmp_path)
    ids = TextTokenizer(model).encode("hello", add_special_tokens=True)
    assert ids[0] == bos
    assert ids == AutoTokenizer.from_pretrained(model)("hello")["input_ids"]


def test_the_file_goes_before_the_configuration_and_a_named_default_is_taken(tmp_path: Path) -> None:
    named = {"chat_template": [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "by name"}]}
    template = load_chat_template(tmp_path, named, {})
    assert template is not None
    assert template.render([]) == "by name"
    (tmp_path / "chat_template.jinja").write_text("by file")
    template = load_chat_template(tmp_path, named, {})
    assert template is not None
    assert template.render([]) == "by file"
    assert load_chat_template(tmp_path / "nowhere", {}, {}) is None


def test_what_a_template_refuses_becomes_a_refused_request() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}", {})
    with pytest.raises(RequestError, match="roles must alternate") as caught:
        template.render(CHAT)
    assert caught.value.status == 400
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "escape",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
    ],
)
def test_a_template_cannot_leave_the_sandbox(escape: str) -> None:
    chat = [dict(message) for message in CHAT]
    with pytest.raises(RequestError):
        ChatTemplate(escape, {}).render(chat)
    assert chat == CHAT


def test_a_broken_template_is_told_when_the_model_is_loaded() -> None:
    with pytest.raises(ModelError, match="not valid Jinja"):
        ChatTemplate("{% for %}", {})


def test_a_directory_with_only_tokenizer_model_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(ModelError, match="convert it with"):
        TextTokenizer(tmp_path)
