"""Rendering and tokenizing against transformers: the same text, the same ids."""

import asyncio
import gc
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import AutoTokenizer

import serving
import tiny_tokenizers
from octavo_server.errors import ModelError, RequestError
from octavo_server.frontend.text.chat_template import ChatTemplate
from octavo_server.frontend.text.line_process import as_line
from octavo_server.frontend.text.template_files import load_chat_template
from octavo_server.frontend.text.tokenizer import TextTokenizer
from octavo_server.frontend.text_threads import SHORT_TEXT

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


# --- a template that will not end, or breaks what runs it

LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
SPELLS = "{% if messages[0].content == 'hang' %}" + LOOP + "{% endif %}{{ messages[0].content }}"
NO_END = {
    "a loop": LOOP,
    "one call that never comes back to Python": "{{ (messages | length + 9) ** (10 ** 9) }}",
}
TOO_MUCH = {
    "memory at once": "{{ messages[0].content * 10 ** 10 }}",
    "memory bit by bit": (
        "{% set ns = namespace(a='x' * 99) %}{% for i in range(99) %}{% set ns.a = ns.a * 2 %}{% endfor %}"
    ),
    "recursion": "{% macro again(x) %}{{ again(x) }}{% endmacro %}{{ again(1) }}",
    "text without end": "{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}",
    "a range": "{% for i in range(10 ** 9) %}{% endfor %}",
    "half of a character": r"{{ '\ud800' }}",
}


@pytest.mark.parametrize("name", NO_END)
def test_a_template_without_end_is_stopped_and_its_request_refused(name: str) -> None:
    template = ChatTemplate(NO_END[name], {}, seconds=0.3)
    with pytest.raises(RequestError, match="no end in the time that it has") as caught:
        template.render(CHAT)
    assert caught.value.status == 400


def test_a_template_that_cannot_be_compiled_in_time_is_told_when_the_model_is_loaded() -> None:
    """Jinja computes constants when it compiles."""
    with pytest.raises(ModelError, match="cannot be compiled"):
        ChatTemplate("{{ 9 ** (10 ** 9) }}", {}, seconds=0.3)


@pytest.mark.parametrize("name", TOO_MUCH)
def test_a_template_that_takes_too_much_is_refused_and_the_process_lives_on(name: str) -> None:
    hostile = "{% if messages[0].role == 'system' %}" + TOO_MUCH[name] + "{% endif %}fine"
    template = ChatTemplate(hostile, {}, seconds=20)
    before = renderers()
    with pytest.raises(RequestError, match=r"refuses these messages: \S+"):
        template.render(CHAT)
    assert template.render(CHAT[1:]) == "fine"
    assert renderers() == before


def renderers() -> set[int]:
    """Processes of this one that render."""
    lists = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    pids = {int(word) for path in lists for word in path.read_text().split()}
    return {pid for pid in pids if b"template_worker" in Path(f"/proc/{pid}/cmdline").read_bytes()}


def test_a_template_that_was_stopped_renders_the_next_chat() -> None:
    template = ChatTemplate(SPELLS, {}, seconds=0.3)
    for text in ("hang", "one", "hang", "two"):
        chat = [{"role": "user", "content": text}]
        if text == "hang":
            with pytest.raises(RequestError):
                template.render(chat)
        else:
            assert template.render(chat) == text


def test_a_process_that_was_killed_is_replaced() -> None:
    before = renderers()
    template = ChatTemplate("{{ messages[0].role }}", {})
    (pid,) = renderers() - before
    os.kill(pid, signal.SIGKILL)
    serving.until(lambda: not serving.is_alive(pid))
    assert template.render(CHAT) == "system"
    (other,) = renderers() - before
    assert other != pid
    template.close()
    assert not serving.is_alive(other)


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "stopped"])
def test_a_process_that_fails_by_no_fault_of_the_chat_is_told_as_the_servers(killed: bool) -> None:
    before = renderers()
    template = ChatTemplate("{{ messages[0].role }}", {})
    template._processes.patience = 60.0 if killed else 0.2
    (pid,) = renderers() - before
    os.kill(pid, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        rendering = pool.submit(template.render, CHAT)
        if killed:
            serving.until(lambda: serving.unread_bytes(pid) > 0)
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(RequestError, match="try again") as caught:
            rendering.result()
    assert (caught.value.status, caught.value.type, caught.value.param) == (503, "server_error", None)
    template._processes.patience = 60.0
    assert template.render(CHAT) == "system"


def test_chats_render_while_another_one_does_not_end() -> None:
    template = ChatTemplate(SPELLS, {}, seconds=600)
    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(template.render, [{"role": "user", "content": "hang"}])
        serving.until(lambda: not template._processes._idle)
        assert [template.render([{"role": "user", "content": str(number)}]) for number in range(9)] == list("012345678")
        assert not hanging.done()
        template.close()
        with pytest.raises(RequestError):
            hanging.result()


def test_closing_and_forgetting_leave_no_process() -> None:
    before = renderers()
    template = ChatTemplate("x", {})
    assert len(renderers() - before) == 1
    del template
    gc.collect()
    assert renderers() <= before


@settings(max_examples=30, deadline=None)
@given(
    messages=st.lists(
        st.dictionaries(
            st.text(max_size=5),
            st.text() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.none(),
        ),
        max_size=5,
    )
)
def test_messages_reach_the_template_as_they_are(messages: list[dict[str, Any]], echo: ChatTemplate) -> None:
    without_nulls = [{name: value for name, value in entry.items() if value is not None} for entry in messages]
    assert json.loads(echo.render(messages)) == without_nulls  # as transformers leaves them out


@pytest.fixture(scope="module")
def echo() -> ChatTemplate:
    return ChatTemplate("{{ messages | tojson(ensure_ascii=true) }}", {})


def test_a_prompt_of_megabytes_comes_back_whole(echo: ChatTemplate) -> None:
    chat = [{"role": "user", "content": "äöü🙂" * 1_000_000}]
    assert json.loads(echo.render(chat)) == chat


@pytest.fixture(scope="module")
def hostile_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[serving.ServerProcess]:
    model = serving.text_model(tmp_path_factory.mktemp("hostile") / "model")
    (model / "chat_template.jinja").write_text(SPELLS)
    with serving.serve(model, env={"OCTAVO_API_KEY": "secret"}) as server:
        server.wait_until_ready()
        yield server


def chat_request(server: serving.ServerProcess, text: str) -> httpx.Response:
    body = {"model": "tiny", "messages": [{"role": "user", "content": text}]}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=serving.PATIENCE_SECONDS)


def test_a_hostile_template_holds_back_neither_health_nor_other_requests(hostile_server: serving.ServerProcess) -> None:
    server, answers = hostile_server, 0
    with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=server.url) as http:
        hanging = pool.submit(chat_request, server, "hang")
        serving.until(lambda: "R" in {state(pid) for pid in renderers_of(server)})
        assert chat_request(server, "hello").json()["choices"][0]["message"]["content"] == "hello"
        begun = time.monotonic()
        while not hanging.done():
            assert http.get("/health").status_code == 200
            answers += 1
        assert answers > 10 * (time.monotonic() - begun), "a look at /health took 100 ms and more"
    refused = hanging.result()
    assert refused.status_code == 400
    assert "no end in the time that it has" in refused.json()["error"]["message"]
    assert refused.json()["error"]["param"] == "messages"


async def test_callers_take_turns_and_long_chats_leave_a_thread_to_the_short() -> None:
    template, done = ChatTemplate("x", {}), list[str]()
    gates = {name: threading.Event() for name in ("long", "hangs")}

    def rendering(name: str) -> Callable[[], str]:
        def render() -> str:
            if name in gates:
                gates[name].wait(60)
            done.append(name)
            return name

        return render

    def asked(name: str, caller: bytes, length: int = 1) -> "asyncio.Task[str]":
        return asyncio.create_task(template.in_turn(caller, length, rendering(name)))

    tasks = [asked("long", b"a", SHORT_TEXT + 1), *(asked(f"long {at}", b"a", SHORT_TEXT + 1) for at in range(3))]
    await asyncio.sleep(0)
    assert await asked("short", b"b") == "short"
    tasks.append(asked("hangs", b"a"))
    tasks += [asked(f"a{at}", b"a") for at in range(3)]
    await asyncio.sleep(0)
    other = asked("b", b"b")
    await asyncio.sleep(0)
    gates["hangs"].set()
    assert await other == "b"
    assert done[:3] == ["short", "hangs", "a0"] and done.index("b") <= 3
    gates["long"].set()
    assert sorted(await asyncio.gather(*tasks)) == ["a0", "a1", "a2", "hangs", "long", "long 0", "long 1", "long 2"]
    template.close()


async def sent(template: ChatTemplate, text: str) -> str:
    """Rendered as the event loop has it done."""
    question = template.question([{"role": "user", "content": text}])
    return await template.in_turn(b"", len(text), lambda: template.asked(question), lambda: as_line(question))


async def test_the_event_loop_renders_short_chats_without_a_thread_and_long_ones_whole() -> None:
    before = renderers()
    template = ChatTemplate("{{ messages[0].content * 2 }}", {})
    (pid,) = renderers() - before
    assert [await sent(template, text) for text in ("one", "two")] == ["oneone", "twotwo"]
    assert not template._threads._threads and renderers() - before == {pid}
    text = "äöü🙂" * 200_000  # more than the pipes hold
    assert await sent(template, text) == text * 2
    template.close()


async def test_the_event_loop_is_told_why_nothing_was_rendered() -> None:
    template = ChatTemplate(SPELLS, {}, seconds=0.3)
    hanging, others = asyncio.create_task(sent(template, "hang")), list[str]()
    while not hanging.done():
        others.append(await sent(template, "other"))
    with pytest.raises(RequestError, match="no end in the time that it has") as caught:
        await hanging
    assert caught.value.status == 400 and len(others) > 1 and set(others) == {"other"}
    template.close()


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "stopped"])
async def test_the_event_loop_is_told_of_a_process_that_fails_by_no_fault_of_the_chat(killed: bool) -> None:
    before = renderers()
    template = ChatTemplate("{{ messages[0].role }}", {})
    template._processes.patience = 60.0 if killed else 0.2
    (pid,) = renderers() - before
    os.kill(pid, signal.SIGSTOP)
    rendering = asyncio.create_task(sent(template, "x"))
    await asyncio.sleep(0)
    if killed:
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(RequestError, match="try again") as caught:
        await rendering
    assert (caught.value.status, caught.value.param) == (503, None)
    template._processes.patience = 60.0
    assert await sent(template, "x") == "user"
    assert not serving.is_alive(pid)
    template.close()


def renderers_of(server: serving.ServerProcess) -> list[int]:
    return [pid for pid, command in server.children().items() if "template_worker" in command]


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_what_renders_knows_no_keys(hostile_server: serving.ServerProcess) -> None:
    pids = renderers_of(hostile_server)
    assert pids
    for pid in pids:
        assert b"secret" not in Path(f"/proc/{pid}/environ").read_bytes()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_renderer_outlives_its_server(tmp_path: Path, how: signal.Signals) -> None:
    with serving.serve(serving.text_model(tmp_path / "model")) as server:
        server.wait_until_ready()
        (pid,) = renderers_of(server)
        server.process.send_signal(how)
        server.process.wait(serving.PATIENCE_SECONDS)
        serving.until(lambda: not serving.is_alive(pid))


def test_a_renderer_that_does_not_end_outlives_a_killed_server_by_its_time_at_most(tmp_path: Path) -> None:
    model = serving.text_model(tmp_path / "model")
    (model / "chat_template.jinja").write_text(SPELLS)
    with serving.serve(model) as server, ThreadPoolExecutor(1) as pool:
        server.wait_until_ready()
        (pid,) = renderers_of(server)
        hanging = pool.submit(chat_request, server, "hang")
        serving.until(lambda: state(pid) == "R")
        server.process.kill()
        serving.until(lambda: not serving.is_alive(pid))
        assert hanging.exception() is not None


def test_a_directory_with_only_tokenizer_model_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(ModelError, match="convert it with"):
        TextTokenizer(tmp_path)
