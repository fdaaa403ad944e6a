"""Every field of chats and completions by the `openai` client's typed objects, whole and streamed, on the demo model.

Each line of the tables is a field: what a stream adds up to is the whole answer, its shape is what the `openai` package
declares, strictly, and the field does what it says.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import openai
import pytest
from tokenizers import Tokenizer

import serving
from openai_shapes import checked, checked_chunk

MODEL: Final = Path(__file__).resolve().parents[2] / "server" / "octavo_server" / "demo_model"
TOKENIZER: Final = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
DOCS: Final = Path(__file__).resolve().parents[2] / "docs"
HELLO: Final = {"role": "user", "content": "Hello!"}
BEGUN: Final = [HELLO, {"role": "assistant", "content": "Hello! What"}]
FORM: Final = {
    "type": "object",
    "properties": {"a": {"enum": [1, 2]}, "b": {"type": "string", "maxLength": 5}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
Says = Callable[[Any, Any], bool]


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    config = {"max_model_len": 1024, "num_gpu_blocks_override": 512, "served_model_name": ["demo"]}
    with serving.serve(MODEL, fake=False, env={"OMP_NUM_THREADS": "1"}, **config) as server:
        server.wait_until_ready()
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
            yield made


def ids(text: str) -> list[int]:
    found: list[int] = TOKENIZER.encode(text).ids
    return found


def given(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields of the body: those that the client does not know are for its `extra_body`."""
    known = {"temperature": 0, "max_tokens": 40, "messages": [HELLO], "model": "demo"} | fields
    extra = {name: known.pop(name) for name in EXTRA if name in known}
    return known | {"extra_body": extra}


def whole(client: openai.OpenAI, **fields: Any) -> Any:
    return checked(client.chat.completions.with_raw_response.create(**given(fields)).content)


def streamed(client: openai.OpenAI, **fields: Any) -> Any:
    """What the client puts together."""
    options = {"stream_options": {"include_usage": True}}
    extensions: dict[int, Any] = {}  # which the client does not put together
    with client.chat.completions.stream(**given(fields) | options) as stream:
        for event in stream:
            if event.type == "chunk":
                for choice in checked_chunk(event.chunk.to_dict(mode="json")).choices:
                    mine = extensions.setdefault(choice.index, {"token_ids": []})
                    mine["stop_reason"] = getattr(choice, "stop_reason", None)
                    mine["token_ids"] += getattr(choice, "token_ids", [])
        for choice in stream.current_completion_snapshot.choices:
            for name, value in extensions[choice.index].items():
                setattr(choice, name, value)
        return stream.current_completion_snapshot  # the final one is an exception where the length ran out


def told(answer: Any) -> list[Any]:
    """All that a field may change, in plain values."""
    found = []
    for choice in answer.choices:
        logprobs = choice.logprobs and [entry.to_dict() for entry in choice.logprobs.content]
        ended = (choice.index, choice.finish_reason, choice.stop_reason)
        found.append((*ended, choice.message.content, logprobs, getattr(choice, "token_ids", [])))
    return [*found, answer.usage.prompt_tokens, answer.usage.completion_tokens]


def text(answer: Any) -> str:
    return answer.choices[0].message.content or ""


def ended(answer: Any) -> tuple[str, Any]:
    return answer.choices[0].finish_reason, answer.choices[0].stop_reason


def spelt(answer: Any) -> str:
    return b"".join(bytes(entry.bytes) for entry in answer.choices[0].logprobs.content).decode()


def same(answer: Any, plain: Any) -> bool:
    return told(answer) == told(plain)


def cut(length: int) -> Says:
    return lambda answer, _: ended(answer) == ("length", None) and answer.usage.completion_tokens == length


def is_json(answer: Any, _: Any) -> bool:
    found = json.loads(text(answer))
    return sorted(found) == ["a", "b"] and found["a"] in (1, 2)


EXTRA: Final = (
    "top_k", "min_p", "repetition_penalty", "ignore_eos", "min_tokens", "skip_special_tokens", "stop_token_ids",
    "include_stop_str_in_output", "bad_words", "allowed_token_ids", "structured_outputs", "continue_final_message",
    "add_generation_prompt", "echo", "cache_salt", "priority", "return_token_ids", "request_id", "session_id",
    "truncate_prompt_tokens", "stream_interval", "spaces_between_special_tokens", "include_reasoning",
    "timeout",
)  # fmt: skip
CHATS: Final[list[tuple[dict[str, Any], Says]]] = [
    ({"max_completion_tokens": 3}, cut(3)),
    ({"max_tokens": 4}, cut(4)),
    ({"stop": " can"}, lambda a, _: (text(a), *ended(a)) == ("Hello! What", "stop", " can")),
    ({"stop": ["zzz", " do"]}, lambda a, _: (text(a), *ended(a)) == ("Hello! What can I", "stop", " do")),
    ({"temperature": 1.9, "seed": 3, "max_tokens": 12}, lambda a, plain: text(a) != text(plain)),
    (
        {"temperature": 1, "seed": 3, "n": 3, "max_tokens": 12},
        lambda a, _: [choice.index for choice in a.choices] == [0, 1, 2],
    ),
    ({"temperature": 1.9, "top_p": 0, "seed": 3}, same),
    ({"temperature": 1.9, "top_k": 1, "seed": 3}, same),
    ({"temperature": 1.9, "min_p": 1, "seed": 3}, same),
    ({"repetition_penalty": 5, "max_tokens": 12}, lambda a, plain: text(a) != text(plain)),
    ({"logit_bias": {str(ids("Hello")[0]): -100}}, lambda a, _: not text(a).startswith("Hello")),
    ({"bad_words": ["Hello"]}, lambda a, _: "Hello" not in text(a)),
    ({"logprobs": True}, lambda a, _: spelt(a) == text(a) != ""),
    (
        {"logprobs": True, "top_logprobs": 2},
        lambda a, _: all(
            [top.logprob for top in entry.top_logprobs][:1] == [entry.logprob] and len(entry.top_logprobs) == 2
            for entry in a.choices[0].logprobs.content
        ),
    ),
    ({"ignore_eos": True, "max_tokens": 13}, cut(13)),
    (
        {"ignore_eos": True, "max_tokens": 13, "skip_special_tokens": False},
        lambda a, plain: text(a).startswith(f"{text(plain)}<|im_end|>"),
    ),
    ({"min_tokens": 13, "max_tokens": 14}, lambda a, _: a.usage.completion_tokens >= 13),
    ({"stop_token_ids": ids(" can")}, lambda a, _: (text(a), *ended(a)) == ("Hello! What", "stop", ids(" can")[0])),
    ({"stop": " can", "include_stop_str_in_output": True}, lambda a, _: text(a) == "Hello! What can"),
    ({"structured_outputs": {"choice": ["yes", "no"]}}, lambda a, _: text(a) in ("yes", "no")),
    ({"structured_outputs": {"regex": "[0-9]{3}"}}, lambda a, _: len(text(a)) == 3 and text(a).isdecimal()),
    ({"structured_outputs": {"grammar": 'start: "a" /[0-9]{2}/ "b"'}}, lambda a, _: text(a)[::3] == "ab"),
    ({"structured_outputs": {"json": FORM}, "temperature": 1, "seed": 1}, is_json),
    ({"response_format": {"type": "json_object"}, "max_tokens": 4}, lambda a, _: text(a).startswith("{")),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": FORM}}},
        is_json,
    ),
    ({"messages": BEGUN, "continue_final_message": True}, lambda a, _: text(a) == " can I do for you?"),
    (
        {"messages": BEGUN, "continue_final_message": True, "echo": True},
        lambda a, plain: text(a) == text(plain),
    ),
    ({"add_generation_prompt": False}, lambda a, plain: a.usage.prompt_tokens < plain.usage.prompt_tokens),
    ({"truncate_prompt_tokens": 3}, lambda a, _: a.usage.prompt_tokens == 3),
    ({"return_token_ids": True}, lambda a, plain: TOKENIZER.decode(a.choices[0].token_ids) == text(plain)),
    ({"request_id": "mine"}, lambda a, _: a.id == "chatcmpl-mine"),
    ({"service_tier": "auto"}, lambda a, _: a.service_tier == "default"),
    ({"messages": [{"role": "user", "name": "ann", "content": [{"type": "text", "text": "Hello!"}]}]}, same),
    ({"user": "u", "metadata": {"a": "b"}, "store": True, "safety_identifier": "s", "prompt_cache_key": "k"}, same),
    ({"cache_salt": "mine", "priority": -3, "timeout": 60, "session_id": "s", "stream_interval": 4}, same),
    ({"reasoning_effort": "none", "include_reasoning": False, "verbosity": "medium", "modalities": ["text"]}, same),
    (
        {"frequency_penalty": 2, "presence_penalty": 2, "add_generation_prompt": False, "ignore_eos": True}
        | {"max_tokens": 14},
        lambda a, _: text(a).endswith("hear. Why did the"),  # without them it is the end of sequence over and over
    ),
    ({"presence_penalty": 0, "frequency_penalty": 0, "parallel_tool_calls": True}, same),
]


@pytest.fixture(scope="module")
def plain(client: openai.OpenAI) -> Any:
    return whole(client)


@pytest.mark.parametrize(
    ("fields", "says"), CHATS, ids=lambda value: ", ".join(value) if isinstance(value, dict) else ""
)
def test_a_field_of_chats_does_what_it_says(
    client: openai.OpenAI, plain: Any, fields: dict[str, Any], says: Says
) -> None:
    answer = whole(client, **fields)
    assert says(answer, plain), told(answer)
    assert told(streamed(client, **fields)) == told(answer)  # and the same once more: a seed repeats


def test_instructions_of_a_developer_are_those_of_the_system(client: openai.OpenAI) -> None:
    prompts = []
    for role in ("system", "developer"):
        messages = [{"role": role, "content": "Be brief."}, HELLO]
        prompts.append(whole(client, messages=messages, return_token_ids=True).prompt_token_ids)
    assert prompts[0] == prompts[1] != whole(client, return_token_ids=True).prompt_token_ids
    assert "Be brief." in TOKENIZER.decode(prompts[0])


def test_a_prompt_that_comes_again_is_cached_and_the_usage_says_so(client: openai.OpenAI) -> None:
    long = [{"role": "user", "content": "How many pages are there? " * 20}]
    details = [whole(client, messages=long, max_tokens=1).usage.prompt_tokens_details for _ in range(2)]
    usage = streamed(client, messages=long, max_tokens=1).usage
    assert details[0].cached_tokens < 32 < details[1].cached_tokens == usage.prompt_tokens_details.cached_tokens
    salted = whole(client, messages=long, max_tokens=1, cache_salt="other").usage
    assert salted.prompt_tokens_details.cached_tokens == 0
    assert salted.prompt_tokens == usage.prompt_tokens


# --- completions


PROMPT: Final = "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n"


def complete(client: openai.OpenAI, **fields: Any) -> Any:
    body = {"model": "demo", "prompt": PROMPT, "temperature": 0, "max_tokens": 6} | fields
    return checked(httpx.post(f"{client.base_url}completions", json=body, timeout=60.0).content)


def streamed_completion(client: openai.OpenAI, **fields: Any) -> dict[int, Any]:
    """By the client: of each choice its text, how it ended, and its log-probabilities' lists."""
    body = {"model": "demo", "prompt": PROMPT, "temperature": 0, "max_tokens": 6} | fields
    found: dict[int, Any] = {}
    for chunk in client.completions.create(stream=True, **body):
        for choice in chunk.choices:
            one = found.setdefault(choice.index, {"text": "", "end": None, "tokens": [], "logprobs": [], "offsets": []})
            one["text"] += choice.text
            one["end"] = choice.finish_reason or one["end"]
            if choice.logprobs is not None:
                one["tokens"] += choice.logprobs.tokens
                one["logprobs"] += choice.logprobs.token_logprobs
                one["offsets"] += choice.logprobs.text_offset
    return found


def test_a_prompt_that_fills_the_context_can_be_scored(client: openai.OpenAI) -> None:
    prompt = (ids(PROMPT) * 1024)[:1024]  # all of max_model_len
    fields: dict[str, Any] = {"echo": True, "logprobs": 0, "max_tokens": 0}
    full, shorter = (complete(client, prompt=some, **fields) for some in (prompt, prompt[:-1]))
    scores = full.choices[0].logprobs.token_logprobs
    assert (full.usage.prompt_tokens, full.usage.completion_tokens, len(scores)) == (1024, 0, 1024)
    assert scores[1:-1] == pytest.approx(shorter.choices[0].logprobs.token_logprobs[1:], abs=1e-4)
    for wanted in ({"max_tokens": 1}, {"prompt": [*prompt, 5]}):
        body = {"model": "demo", "prompt": prompt} | fields | wanted
        assert httpx.post(f"{client.base_url}completions", json=body, timeout=60.0).status_code == 400
    cut = complete(client, prompt=[5, *prompt], truncate_prompt_tokens=-1, **fields)
    assert cut.choices[0].text == full.choices[0].text


def test_a_chats_log_probabilities_are_of_its_content_and_a_completions_of_its_end_too(client: openai.OpenAI) -> None:
    (choice,) = complete(client, logprobs=0, max_tokens=100).choices
    assert choice.finish_reason == "stop"
    assert "".join(choice.logprobs.tokens) == choice.text + "<|im_end|>"
    tools = [{"type": "function", "function": {"name": "get_time"}}]
    content = whole(client, max_tokens=100).choices[0].message.content
    spelt_out = {"skip_special_tokens": False, "include_stop_str_in_output": True}
    for fields in ({}, {"tools": tools}, {"stop": content[4:8]}, {"extra_body": spelt_out}):
        chat = whole(client, logprobs=True, max_tokens=100, **fields).choices[0]
        assert chat.finish_reason == "stop" and chat.message.content
        assert "".join(entry.token for entry in chat.logprobs.content).startswith(chat.message.content)
        assert len("".join(entry.token for entry in chat.logprobs.content[:-1])) < len(chat.message.content)


def test_tokens_of_an_echoed_prompt_are_told_where_they_stand(client: openai.OpenAI) -> None:
    text = complete(client, echo=True, logprobs=0).choices[0]
    assert text.text.startswith(PROMPT)
    for token, offset in zip(text.logprobs.tokens, text.logprobs.text_offset, strict=True):
        assert text.text.startswith(token, offset)
    of_ids = complete(client, prompt=[1, 2, 300, 301], echo=True, logprobs=0).choices[0].logprobs.text_offset
    assert of_ids == sorted(of_ids) and of_ids[0] == 0


def put(choice: Any) -> dict[str, Any]:
    logprobs = choice.logprobs
    return {
        "text": choice.text,
        "end": choice.finish_reason,
        "tokens": logprobs.tokens if logprobs else [],
        "logprobs": logprobs.token_logprobs if logprobs else [],
        "offsets": logprobs.text_offset if logprobs else [],
    }


def choices(answer: Any) -> list[str]:
    return [choice.text for choice in answer.choices]


COMPLETIONS: Final[list[tuple[dict[str, Any], Says]]] = [
    ({"prompt": ids(PROMPT)}, lambda a, plain: choices(a) == choices(plain)),
    ({"prompt": [PROMPT, "Hello"]}, lambda a, plain: choices(a)[0] == choices(plain)[0] and len(choices(a)) == 2),
    ({"prompt": [ids(PROMPT), ids("Hello")]}, lambda a, plain: choices(a)[0] == choices(plain)[0]),
    ({"prompt": [PROMPT, PROMPT], "n": 2}, lambda a, plain: choices(a) == choices(plain) * 4),
    ({"max_tokens": None}, lambda a, _: a.usage.completion_tokens <= 16),
    ({"echo": True}, lambda a, _: choices(a) == [PROMPT + "Hello! What can I do"]),
    ({"echo": True, "logprobs": 1}, lambda a, _: "".join(a.choices[0].logprobs.tokens) == choices(a)[0]),
    ({"echo": True, "logprobs": 2, "max_tokens": 0}, lambda a, _: choices(a) == [PROMPT]),
    ({"logprobs": 2}, lambda a, _: all(len(top) == 2 for top in a.choices[0].logprobs.top_logprobs)),
    ({"stop": [" can"]}, lambda a, _: choices(a) == ["Hello! What"]),
    ({"prompt": "Hello", "frequency_penalty": 2, "max_tokens": 8}, lambda a, _: choices(a) != ["Hi" * 8]),
    ({"suffix": "", "best_of": 1, "user": "u"}, lambda a, plain: choices(a) == choices(plain)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "says"), COMPLETIONS, ids=lambda value: ", ".join(value) if isinstance(value, dict) else ""
)
def test_a_field_of_completions_does_what_it_says(client: openai.OpenAI, fields: dict[str, Any], says: Says) -> None:
    answer = complete(client, **fields)
    assert says(answer, complete(client)), choices(answer)
    assert list(streamed_completion(client, **fields).values()) == [put(choice) for choice in answer.choices]


@pytest.mark.parametrize("fields", [{"suffix": "x"}, {"best_of": 2}, {"n": 2, "best_of": 3}], ids=str)
def test_what_completions_no_longer_have_is_the_clients_typed_refusal(
    client: openai.OpenAI, fields: dict[str, Any]
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="demo", prompt="a", **fields)
    assert caught.value.param == list(fields)[-1] and caught.value.param in caught.value.message


PAGES: Final = {page.name: page.read_text(encoding="utf-8") for page in sorted(DOCS.glob("*.md"))}


@pytest.mark.parametrize("page", [name for name, text in PAGES.items() if "```python" in text])
def test_the_examples_of_a_page_print_what_stands_there(
    client: openai.OpenAI, capsys: pytest.CaptureFixture[str], page: str
) -> None:
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL))
    assert "http://127.0.0.1:8000/v1" in code
    names: dict[str, Any] = {}
    exec(code.replace("http://127.0.0.1:8000/v1", str(client.base_url)), names)
    names["client"].close()
    assert capsys.readouterr().out.splitlines() == re.findall(r"^print\(.*\)  # (.*)$", code, re.MULTILINE)
