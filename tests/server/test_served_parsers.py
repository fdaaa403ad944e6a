"""Families of models by their templates, and by flags: calls and thoughts through a whole server, by the client.

The engine answers with what stands in the prompt between two marks, so that templates are as the families have them.
Marks of calls and thoughts are special tokens, as these models have them: they must not be lost before they are read.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import openai
import pytest

import serving
import tiny_tokenizers
from call_templates import NEWER_MISTRAL, PYTHONIC, QWEN3_CODER
from openai_shapes import checked, checked_chunk
from template_shapes import DEEPSEEK, LLAMA3

PLAIN: Final = "{% for m in messages %}{{ m.content }}{% endfor %}{{ tools }}"  # which tells of no format
MARKS: Final = (
    "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]", "<|python_tag|>", "<|python_start|>",
    "<|python_end|>", "<think>", "</think>",
)  # fmt: skip
# family: (template, flags)
SERVED: Final[dict[str, tuple[str, dict[str, str]]]] = {
    "Llama 3": (LLAMA3, {}),
    "Llama 4": (PYTHONIC, {}),
    "newer Mistral": (NEWER_MISTRAL + "{#- {{ tools }} -#}{% if tools %}{% endif %}", {}),
    "DeepSeek": (DEEPSEEK, {}),
    "Qwen 3 Coder": (QWEN3_CODER + "{% if tools %}{% endif %}", {}),
    "flags": (PLAIN, {"tool_call_parser": "mistral", "reasoning_parser": "deepseek_r1"}),
    "other flags": (LLAMA3, {"tool_call_parser": "hermes", "reasoning_parser": "qwen3"}),
}


def tool(name: str, **properties: str) -> Any:
    parameters = {"type": "object", "properties": {key: {"type": kind} for key, kind in properties.items()}}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS: Final = [tool("get_weather", city="string"), tool("g", a="object", n="integer")]
PARIS: Final = '{"city": "Paris"}'
NESTED: Final = r'{"a": {"b": "} \"{[", "c": [1, {}]}}'  # braces within a string
# (family, text, reasoning, content, calls)
ANSWERS: Final[list[tuple[str, str, str | None, str | None, list[tuple[str, str]]]]] = [
    ("Llama 3", f'{{"name": "get_weather", "parameters": {PARIS}}}', None, None, [("get_weather", PARIS)]),
    (
        "Llama 3",
        f'<|python_tag|>{{"name": "g", "parameters": {NESTED}}}; {{"name": "get_weather", "parameters": {PARIS}}}',
        None,
        None,
        [("g", NESTED), ("get_weather", PARIS)],
    ),
    ("Llama 3", 'I say: {"name": "Bob"}', None, 'I say: {"name": "Bob"}', []),
    ("Llama 3", '{"name": "nobody", "parameters": {}}', None, '{"name": "nobody", "parameters": {}}', []),
    (
        "Llama 4",
        "Let me see. <|python_start|>[get_weather(city='Paris'), g(n=-3, a={'b': '}]'})]<|python_end|>",
        None,
        "Let me see.",
        [("get_weather", PARIS), ("g", '{"n": -3, "a": {"b": "}]"}}')],
    ),
    (
        "newer Mistral",
        f"[THINK]It is [sunny].[/THINK]Well.[TOOL_CALLS]get_weather[ARGS]{PARIS}[TOOL_CALLS]g[CALL_ID]a1[ARGS]{NESTED}",
        "It is [sunny].",
        "Well.",
        [("get_weather", PARIS), ("g", NESTED)],
    ),
    ("newer Mistral", f"[TOOL_CALLS]nobody[ARGS]{PARIS}", None, None, [("nobody", PARIS)]),
    ("newer Mistral", "[TOOL_CALLS]g[ARGS][1]", None, "g[1]", []),  # arguments are an object; special tokens no content
    ("DeepSeek", "One and one.</think>Two.", "One and one.", "Two.", []),
    ("DeepSeek", "One and", "One and", "", []),
    (
        "Qwen 3 Coder",
        '<tool_call>\n<function=g>\n<parameter=a>\n{"b": [1]}\n</parameter>\n<parameter=n>\n5\n</parameter>\n'
        "</function>\n</tool_call>",
        None,
        None,
        [("g", '{"a": {"b": [1]}, "n": 5}')],
    ),
    (
        "flags",
        f'hm</think>So:[TOOL_CALLS] [{{"name": "get_weather", "arguments": {PARIS}}}]',
        "hm",
        "So:",
        [("get_weather", PARIS)],
    ),
    (
        "other flags",
        f'<think>hm</think>\n<tool_call>{{"name": "g", "arguments": {NESTED}}}</tool_call>',
        "hm",
        None,
        [("g", NESTED)],
    ),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return serving.text_model(tmp_path_factory.mktemp("parsers") / "model")


@pytest.fixture(scope="module", params=SERVED)
def served(request: pytest.FixtureRequest, model: Path) -> Iterator[tuple[str, openai.OpenAI]]:
    """One family after the other."""
    template, flags = SERVED[request.param]
    tokenizer = tiny_tokenizers.byte_level_bpe()
    tokenizer.add_special_tokens([*MARKS, "<say>", "</say>"])
    tiny_tokenizers.save(tokenizer, model, chat_template=template)
    marks = f"{tokenizer.token_to_id('<say>')} {tokenizer.token_to_id('</say>')}"
    with serving.serve(model, env={"FAKE_ANSWER": marks}, max_model_len=2048, **flags) as server:
        server.wait_until_ready()
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            yield request.param, client


def body(text: str, **fields: Any) -> dict[str, Any]:
    messages: Any = [{"role": "user", "content": f"Say it. <say>{text}</say>"}]
    return {"model": "tiny", "messages": messages, "tools": TOOLS, "max_tokens": 500} | fields


def whole(client: openai.OpenAI, text: str, **fields: Any) -> Any:
    return checked(client.chat.completions.with_raw_response.create(**body(text, **fields)).content)


def streamed(client: openai.OpenAI, text: str, **fields: Any) -> Any:
    with client.chat.completions.stream(**body(text, **fields)) as stream:
        for event in stream:
            if event.type == "chunk":
                checked_chunk(event.chunk.to_dict(mode="json"))
        return stream.current_completion_snapshot


def told(answer: Any) -> tuple[Any, ...]:
    (choice,) = answer.choices
    calls = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls or ()]
    return choice.finish_reason, getattr(choice.message, "reasoning", None), choice.message.content, calls


def test_calls_and_thoughts_are_read_as_the_family_writes_them(served: tuple[str, openai.OpenAI]) -> None:
    family, client = served
    mine = [answer[1:] for answer in ANSWERS if answer[0] == family]
    assert mine
    fields = {}
    if family == "DeepSeek":  # its calls are not read
        fields = {"tools": []}
        with pytest.raises(openai.BadRequestError, match="no place for tools"):
            whole(client, "a")
    for text, reasoning, content, calls in mine:
        for ask in (whole, streamed):
            answer = ask(client, text, **fields)
            assert told(answer) == ("tool_calls" if calls else "stop", reasoning, content, calls), text


@pytest.mark.parametrize(
    ("flag", "known"),
    [("tool_call_parser", "hermes, llama3_json, "), ("reasoning_parser", "deepseek_r1, mistral, qwen3 and none")],
)
def test_a_server_with_an_unknown_parser_ends_and_tells_the_known_ones(model: Path, flag: str, known: str) -> None:
    with serving.serve(model, **{flag: "nope"}) as server:
        assert server.process.wait(serving.PATIENCE_SECONDS) == 1
        assert f"--{flag.replace('_', '-')} nope is unknown; known are {known}" in server.log
