"""What answers of chats say: content, thoughts and tool calls, by an engine that answers with the prompt's own tokens.

The template shows nothing but what the user says, so that a test says what the model is to write.
"""

import itertools
import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletion

import serving
import tiny_tokenizers
from octavo_server.frontend.openai import ChatCompletionRequest

# Names of variables and markers are what the server knows a model by.
TEMPLATE = (
    "{% if false %}{{ tools }}<tool_call></tool_call><think></think>{{ enable_thinking }}{{ style }}{% endif %}"
    "{% for m in messages %}{{ m.content }}{% endfor %}"
    "{% if enable_thinking is defined and enable_thinking %}<think>{% endif %}"
)
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "find",
        "parameters": {"type": "object", "properties": {"what": {"type": "string"}}, "required": ["what"]},
    },
}
OTHER: Any = {"type": "function", "function": {"name": "count"}}
CALL = '<tool_call>\n{"name": "find", "arguments": {"what": "é"}}\n</tool_call>'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[serving.ServerProcess]:
    model = serving.text_model(tmp_path_factory.mktemp("answers") / "model")
    tokenizer = tiny_tokenizers.byte_level_bpe()
    tokenizer.add_special_tokens(["<think>", "</think>"])  # as some models have them: left out of a text elsewhere
    tiny_tokenizers.save(tokenizer, model, chat_template=TEMPLATE)
    with serving.serve(model) as process:
        process.wait_until_ready()
        yield process


@pytest.fixture(scope="module")
def http(server: serving.ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=serving.PATIENCE_SECONDS) as client:
        yield client


@pytest.fixture(scope="module")
def client(server: serving.ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def say(client: openai.OpenAI, text: str, **fields: Any) -> ChatCompletion:
    """The answer, which is this text."""
    answer: ChatCompletion = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": text}], **fields
    )
    return answer


def say_streamed(client: openai.OpenAI, text: str, **fields: Any) -> Any:
    """The answer, put together by the client from its chunks."""
    with client.chat.completions.stream(model="tiny", messages=[{"role": "user", "content": text}], **fields) as stream:
        for _ in stream:
            pass
        return stream.get_final_completion()


def refused(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "a"}]} | fields
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


# --- calls


@pytest.mark.parametrize("ask", [say, say_streamed])
def test_a_call_is_no_content_and_ends_the_answer_by_its_reason(client: openai.OpenAI, ask: Any) -> None:
    choice = ask(client, CALL, tools=[TOOL]).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name, json.loads(call.function.arguments)) == ("function", "find", {"what": "é"})
    assert call.id.startswith("call_")


@pytest.mark.parametrize("ask", [say, say_streamed])
def test_several_calls_behind_a_text_have_ids_of_their_own(client: openai.OpenAI, ask: Any) -> None:
    second = CALL.replace("find", "count").replace('{"what": "é"}', "{}")
    choice = ask(client, f"Let me look.\n{CALL}\n{second}", tools=[TOOL, OTHER]).choices[0]
    assert choice.message.content.strip() == "Let me look."
    calls = choice.message.tool_calls
    assert [call.function.name for call in calls] == ["find", "count"]
    assert calls[0].id != calls[1].id


def test_the_first_delta_of_a_call_names_it_and_the_others_add_to_its_arguments(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": CALL}], tools=[TOOL], stream=True
    )
    deltas = [chunk.choices[0].delta for chunk in stream]
    calls = [call for delta in deltas for call in delta.tool_calls or ()]
    assert len(calls) > 2  # as they come
    assert all(call.index == 0 for call in calls)
    assert [call.function.name for call in calls if call.function and call.function.name] == ["find"]
    assert [call.type for call in calls] == ["function"] + [None] * (len(calls) - 1)
    assert calls[0].id and not any(call.id for call in calls[1:])
    assert all(len(delta.tool_calls or ()) <= 1 and not (delta.content and delta.tool_calls) for delta in deltas)


def test_without_tools_nothing_is_a_call(client: openai.OpenAI) -> None:
    for fields in ({}, {"tools": [TOOL], "tool_choice": "none"}):
        choice = say(client, CALL, **fields).choices[0]
        assert (choice.message.content, choice.finish_reason) == (CALL, "stop")
        assert choice.message.tool_calls is None


def ended(client: openai.OpenAI, ask: Any, **fields: Any) -> tuple[str, str | None, list[str]]:
    """How the answer ended, its content, and the arguments of its calls; the client raises where it is cut off."""
    try:
        answer = ask(client, CALL, tools=[TOOL], **fields)
    except openai.LengthFinishReasonError as error:
        answer = error.completion
    (choice,) = answer.choices
    return (
        choice.finish_reason,
        choice.message.content,
        [call.function.arguments for call in choice.message.tool_calls or ()],
    )


def tokens_until(part: str) -> int:
    tokenizer = tiny_tokenizers.byte_level_bpe()
    return len(tokenizer.encode(CALL[: CALL.index(part)]).ids)


NAMED: Any = {"type": "function", "function": {"name": "find"}}
WHOLE = '{"what": "é"}'


@pytest.mark.parametrize(
    ("fields", "reason", "content", "arguments"),
    [
        ({}, "tool_calls", None, [WHOLE]),
        ({"tool_choice": "required"}, "tool_calls", None, [WHOLE]),
        ({"tool_choice": NAMED}, "stop", None, [WHOLE]),
        ({"stop": "</tool"}, "tool_calls", None, [WHOLE]),
        ({"stop": '": "é'}, "stop", None, ['{"what']),
        ({"tool_choice": NAMED, "stop": '": "é'}, "stop", None, ['{"what']),
        ({"max_tokens": tokens_until('": "é')}, "length", None, ['{"what']),
        ({"max_tokens": tokens_until(" {")}, "length", '<tool_call>\n{"name": "find", "arguments":', []),
        ({"tool_choice": "required", "max_tokens": 8}, "length", None, []),
        ({"tool_choice": NAMED, "max_completion_tokens": tokens_until(" {")}, "length", None, []),
    ],
    ids=str,
)
@pytest.mark.parametrize("ask", [say, say_streamed])
def test_how_an_answer_ended_tells_whether_its_call_is_whole(
    client: openai.OpenAI, ask: Any, fields: dict[str, Any], reason: str, content: str | None, arguments: list[str]
) -> None:
    assert ended(client, ask, **fields) == (reason, content, arguments)


def test_a_stop_token_behind_a_call_leaves_it_one(client: openai.OpenAI, http: httpx.Client) -> None:
    text = f"{CALL}<|im_start|>"
    (token,) = http.post("/tokenize", json={"prompt": "<|im_start|>", "add_special_tokens": False}).json()["tokens"]
    choice: Any = say(client, text, tools=[TOOL], extra_body={"stop_token_ids": [token]}).choices[0]
    assert (choice.finish_reason, choice.stop_reason, len(choice.message.tool_calls)) == ("tool_calls", token, 1)


def test_each_choice_is_read_for_itself(client: openai.OpenAI) -> None:
    choices = say(client, CALL, tools=[TOOL], n=2).choices  # the second one begins with the prompt's second token
    assert choices[0].finish_reason == "tool_calls"
    assert choices[1].message.content and not choices[1].message.tool_calls


def test_calls_and_results_of_earlier_answers_are_taken_back(client: openai.OpenAI) -> None:
    answer = say_streamed(client, CALL, tools=[TOOL]).choices[0].message
    messages = [
        {"role": "user", "content": "x"},
        answer,
        {"role": "tool", "tool_call_id": answer.tool_calls[0].id, "content": "found"},
    ]
    later = client.chat.completions.create(model="tiny", messages=messages, tools=[TOOL])
    assert later.choices[0].message.content == "xfound"


def test_tools_that_make_no_sense_are_refused_by_name(http: httpx.Client) -> None:
    function = TOOL["function"]
    named = {"type": "function", "function": {"name": "nobody"}}
    for fields, param in (
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tools": [{"type": "custom", "custom": {"name": "a"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": function | {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": function | {"name": "a" * 65}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": function | {"parameters": {"type": "objekt"}}}]}, "tools[0].f"),
        ({"tools": [TOOL], "tool_choice": named}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "sometimes"}, "tool_choice"),
        *(({"tool_choice": choice}, "tool_choice") for choice in ("none", "auto", "required")),  # as OpenAI does
        ({"tool_choice": "auto", "tools": []}, "tool_choice"),
        ({"tools": [TOOL], "structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"tools": [TOOL] * 129}, "tools"),
    ):
        assert refused(http, **fields)["param"].startswith(param), fields


def test_a_tool_choice_without_tools_is_the_clients_typed_refusal(client: openai.OpenAI) -> None:
    for choice in ("none", "auto", "required"):  # as OpenAI does, which takes the first two in responses
        with pytest.raises(openai.BadRequestError, match="only allowed together with tools") as caught:
            client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "a"}], tool_choice=choice
            )
        assert caught.value.param == "tool_choice"
    assert (
        client.responses.create(model="tiny", input="a", tool_choice="auto", max_output_tokens=1).tool_choice == "auto"
    )


# --- thoughts


THOUGHT = "<think>One and one.</think>Two."


@pytest.mark.parametrize("ask", [say, say_streamed])
def test_thoughts_stand_under_both_names_and_are_no_content(client: openai.OpenAI, ask: Any) -> None:
    message = ask(client, THOUGHT).choices[0].message
    assert message.content == "Two."
    assert message.reasoning == message.reasoning_content == "One and one."


def test_thoughts_that_are_not_wanted_are_left_out_and_still_counted(client: openai.OpenAI) -> None:
    for ask in (say, say_streamed):
        answer = ask(client, THOUGHT, extra_body={"include_reasoning": False}, **usage_of(ask))
        assert answer.choices[0].message.content == "Two."
        assert not hasattr(answer.choices[0].message, "reasoning")
        assert answer.usage.completion_tokens_details.reasoning_tokens > 0


def usage_of(ask: Any) -> dict[str, Any]:
    return {"stream_options": {"include_usage": True}} if ask is say_streamed else {}


@pytest.mark.parametrize("ask", [say, say_streamed])
def test_tokens_of_thoughts_are_counted(client: openai.OpenAI, ask: Any) -> None:
    tokenizer = tiny_tokenizers.byte_level_bpe()
    answer = ask(client, THOUGHT, **usage_of(ask))
    counted = answer.usage.completion_tokens_details.reasoning_tokens
    assert counted == len(tokenizer.encode("One and one.").ids)
    assert ask(client, "No.", **usage_of(ask)).usage.completion_tokens_details.reasoning_tokens == 0


def test_log_probabilities_are_those_of_the_content(client: openai.OpenAI) -> None:
    text = f"{THOUGHT} Then:{CALL}"
    whole = say(client, text, tools=[TOOL], logprobs=True, top_logprobs=1).choices[0]
    assert whole.logprobs and whole.logprobs.content
    spelt = b"".join(bytes(token.bytes or ()) for token in whole.logprobs.content).decode()
    assert spelt.startswith(whole.message.content or "?")  # nothing of the thoughts
    assert spelt.strip() == "Two. Then:"
    streamed = say_streamed(client, text, tools=[TOOL], logprobs=True, top_logprobs=1).choices[0]
    assert streamed.logprobs.content == whole.logprobs.content


def test_thoughts_that_the_prompt_began_need_no_marker(client: openai.OpenAI) -> None:
    kwargs = {"chat_template_kwargs": {"enable_thinking": True}}
    message: Any = say(client, "Hm.</think>Yes.", extra_body=kwargs).choices[0].message
    # The echo ends with the prompt's own marker: a special token, which is nothing that is said.
    assert (message.reasoning, message.content) == ("Hm.", "Yes.")
    shown: Any = say(client, "Hm.</think>Yes.", extra_body=kwargs | {"skip_special_tokens": False}).choices[0].message
    assert shown.content == "Yes.<think>"


def test_effort_reaches_a_template_that_has_a_switch(client: openai.OpenAI, http: httpx.Client) -> None:
    def prompt(**fields: Any) -> int:
        usage = say(client, "a", **fields).usage
        return usage.prompt_tokens if usage else 0

    assert prompt(reasoning_effort="high") == prompt() + 1 == prompt(reasoning_effort="none") + 1
    switched_off = {"chat_template_kwargs": {"enable_thinking": False}}
    assert prompt(reasoning_effort="high", extra_body=switched_off) == prompt()  # the closer word counts
    assert refused(http, reasoning_effort="very")["param"] == "reasoning_effort"


def test_variables_of_a_template_are_those_that_it_reads(client: openai.OpenAI, http: httpx.Client) -> None:
    assert say(client, "a", extra_body={"chat_template_kwargs": {"style": "x"}}).choices[0].message.content == "a"
    for name in ("messages", "tools", "bos_token", "no_such_name"):
        error = refused(http, chat_template_kwargs={name: 1})
        assert error["param"] == f"chat_template_kwargs.{name}"
        assert "enable_thinking, style" in error["message"]
    assert refused(http, chat_template_kwargs={"style": "x" * 70_000})["param"] == "chat_template_kwargs"
    deep: Any = 1
    for _ in range(20):
        deep = [deep]
    assert refused(http, chat_template_kwargs={"style": deep})["param"] == "chat_template_kwargs"


# --- messages


def test_an_answer_sent_back_with_all_its_fields_is_accepted(client: openai.OpenAI) -> None:
    answer = {
        "role": "assistant",
        "content": "b",
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "reasoning": "hm",
        "reasoning_content": "hm",
        "tool_calls": None,
        "parsed": None,
        "provider_specific_fields": {"refusal": None},
        "thinking_blocks": [{"type": "thinking"}],
        "images": [],
        "of_some_other_client": None,
    }
    messages: Any = [{"role": "user", "content": "a"}, answer, {"role": "user", "content": "c"}]
    assert client.chat.completions.create(model="tiny", messages=messages).choices[0].message.content == "abc"


def test_what_is_of_no_effect_takes_no_memory() -> None:
    call = {"id": "a", "function": {"name": "f", "arguments": "{}", "parsed_arguments": "zzz"}, "index": "zzz"}
    answer = {"role": "assistant", "content": "b", "annotations": "zzz" * 9, "tool_calls": [call], "images": ["zzz"]}
    (message,) = ChatCompletionRequest(model="m", messages=[answer]).messages  # type: ignore[list-item]
    assert "zzz" not in message.model_dump_json(exclude={"role"})


def test_tools_of_other_kinds_are_refused_with_the_reason(http: httpx.Client) -> None:
    error = refused(http, tools=[{"type": "custom", "custom": {"name": "grep"}}])
    assert error["param"] == "tools[0].type" and "arguments are JSON" in error["message"]


def test_parts_are_text_and_an_earlier_refusal_is_what_was_said(client: openai.OpenAI, http: httpx.Client) -> None:
    messages: Any = [
        {"role": "developer", "content": [{"type": "text", "text": "a"}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "b"}]},
        {"role": "assistant", "refusal": "c"},
    ]
    assert client.chat.completions.create(model="tiny", messages=messages).choices[0].message.content == "abc"
    for kind in ("image_url", "input_audio", "file", "video_url"):
        error = refused(http, messages=[{"role": "user", "content": [{"type": kind, kind: {}}]}])
        assert error["param"] == "messages[0].content[0].type"
        assert kind in error["message"] and "text only" in error["message"]


def test_the_last_message_is_gone_on_with_and_repeated_if_wanted(client: openai.OpenAI, http: httpx.Client) -> None:
    messages: Any = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "Yes, "}]
    extra = {"continue_final_message": True, "add_generation_prompt": False, "echo": True}
    for stream in (False, True):
        body = {"model": "tiny", "messages": messages, "stream": stream} | extra
        assert content_of(http.post("/v1/chat/completions", json=body)) == "Yes, aYes, "
    assert refused(http, continue_final_message=True)["param"] == "continue_final_message"
    extra["add_generation_prompt"] = True
    assert refused(http, messages=messages, **extra)["param"] == "add_generation_prompt"


def content_of(answer: httpx.Response) -> str:
    if not answer.headers["content-type"].startswith("text/event-stream"):
        return str(answer.json()["choices"][0]["message"]["content"])
    events = [json.loads(line[6:]) for line in answer.text.split("\n\n") if line and not line.endswith("[DONE]")]
    return "".join(event["choices"][0]["delta"].get("content") or "" for event in events)


# --- what is told besides


def test_usage_is_told_as_it_grows_where_that_is_wanted(http: httpx.Client) -> None:
    for path, prompt in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello world"}]}),
        ("/v1/completions", {"prompt": "hello world"}),
    ):
        options = {"include_usage": True, "continuous_usage_stats": True}
        answer = http.post(path, json={"model": "tiny", "stream": True, "stream_options": options} | prompt)
        events = [json.loads(line[6:]) for line in answer.text.split("\n\n") if line and not line.endswith("[DONE]")]
        counts = [event["usage"]["completion_tokens"] for event in events]
        assert counts == sorted(counts) and counts[-1] > counts[0] >= 0


def test_tokens_are_spelt_by_their_ids_where_that_is_wanted(http: httpx.Client) -> None:
    extra = {"return_tokens_as_token_ids": True, "return_token_ids": True}
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "logprobs": True, "top_logprobs": 1}
    choice = http.post("/v1/chat/completions", json=body | extra).json()["choices"][0]
    spelt = [entry["token"] for entry in choice["logprobs"]["content"]]
    assert spelt and spelt == [f"token_id:{token}" for token in choice["token_ids"]][: len(spelt)]
    body = {"model": "tiny", "prompt": "hello", "logprobs": 1, "echo": True}
    logprobs = http.post("/v1/completions", json=body | extra).json()["choices"][0]["logprobs"]
    assert all(token.startswith("token_id:") for token in logprobs["tokens"])
    assert all(key.startswith("token_id:") for top in logprobs["top_logprobs"] if top for key in top)


def test_a_name_of_the_clients_own_is_the_answers_and_its_tier_is_told(client: openai.OpenAI) -> None:
    answer = say(client, "a", service_tier="auto", extra_body={"request_id": "mine-1"})
    assert (answer.id, answer.service_tier) == ("chatcmpl-mine-1", "default")
    answer = say_streamed(client, "a", service_tier="auto", extra_body={"request_id": "mine-1"})
    assert (answer.id, answer.service_tier) == ("chatcmpl-mine-1", "default")


def test_prompts_are_cut_to_what_is_wanted_or_fits(http: httpx.Client) -> None:
    def prompt(**fields: Any) -> list[int]:
        body = {"model": "tiny", "return_token_ids": True, "max_tokens": 4} | fields
        choice = http.post("/v1/completions", json=body).json()["choices"][0]
        ids: list[int] = choice["prompt_token_ids"]
        return ids

    ids = list(itertools.islice(itertools.cycle([70, 71, 72, 73, 74]), 300))  # the context has 256
    assert prompt(prompt=ids, truncate_prompt_tokens=7) == ids[-7:]
    assert prompt(prompt=ids, truncate_prompt_tokens=7, truncation_side="right") == ids[:7]
    assert prompt(prompt=ids, truncate_prompt_tokens=-1) == ids[-252:]
    assert prompt(prompt=[70, 71], truncate_prompt_tokens=7) == [70, 71]
    whole = prompt(prompt="hello again")
    assert prompt(prompt="hello again", truncate_prompt_tokens=2) == whole[-2:]
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "hello again"}], "return_token_ids": True}
    assert (
        http.post("/v1/chat/completions", json=chat | {"truncate_prompt_tokens": 2}).json()["prompt_token_ids"]
        == whole[-2:]
    )
    long = {"model": "tiny", "prompt": "x" * (2**20 + 1), "truncate_prompt_tokens": 2}
    assert http.post("/v1/completions", json=long).json()["error"]["param"] == "prompt"


@pytest.mark.parametrize(
    "fields",
    [
        {"store": True},
        {"store": False, "metadata": {"a": "b"}},
        {"user": "u", "safety_identifier": "s", "prompt_cache_key": "k"},
        {"prompt_cache_retention": "24h", "prompt_cache_options": {"mode": "implicit", "ttl": "30m"}},
        {"prediction": {"type": "content", "content": "hello"}},
        {"service_tier": "default", "verbosity": "medium", "modalities": ["text"]},
        {"parallel_tool_calls": True, "tool_choice": None, "tools": []},
        {"response_format": {"type": "text"}, "top_logprobs": 0, "logprobs": False},
        {"spaces_between_special_tokens": False, "length_penalty": 1.0, "use_beam_search": False, "best_of": 1},
    ],
    ids=lambda fields: ", ".join(fields),
)
def test_what_is_harmless_is_of_no_effect(http: httpx.Client, fields: dict[str, Any]) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
    answer = http.post("/v1/chat/completions", json=body | fields)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"] == http.post("/v1/chat/completions", json=body).json()["choices"]
