"""POST /v1/responses by the `openai` client's typed objects, unmodified, against the demo model."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest
from openai.types.responses import Response
from pydantic import BaseModel

import octavo_server
import openai_models
import serving
from octavo_server.frontend.message_fields import MAX_CALLS

DEMO = Path(octavo_server.__file__).parent / "demo_model"
WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the weather in a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
CALL = {"type": "function_call", "call_id": "c", "name": "get_weather", "arguments": "{}"}
NO_SCHEMA: dict[str, Any] = {"type": "json_schema", "name": "x", "schema": {"type": "int"}}


@pytest.fixture(scope="module")
def server() -> Iterator[serving.ServerProcess]:
    with serving.serve(DEMO, fake=False, env={"OMP_NUM_THREADS": "1"}, max_num_seqs=16, max_model_len=1024) as process:
        process.wait_until_ready()
        yield process


@pytest.fixture(scope="module")
def client(server: serving.ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def ask(client: openai.OpenAI, input: Any = "Hello!", **fields: Any) -> Response:
    answer: Response = client.responses.create(
        model="tiny", input=input, **{"temperature": 0, "max_output_tokens": 60} | fields
    )
    return answer


def chat(client: openai.OpenAI, messages: Any, **fields: Any) -> Any:
    """The same through the chat endpoint, which has tests of its own."""
    asked = {"temperature": 0, "max_tokens": 60} | fields
    return client.chat.completions.create(model="tiny", messages=messages, **asked)


# --- text


def test_a_text_is_answered_as_the_chat_endpoint_answers_it(client: openai.OpenAI) -> None:
    found = ask(client, "Tell me a joke about a token.", instructions="Be brief.", metadata={"a": "b"}, user="me")
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Tell me a joke about a token."},
    ]
    expected = chat(client, messages)
    assert found.output_text == expected.choices[0].message.content != ""
    assert found.usage is not None
    assert found.usage.input_tokens == expected.usage.prompt_tokens
    assert found.usage.output_tokens == expected.usage.completion_tokens
    assert found.usage.total_tokens == found.usage.input_tokens + found.usage.output_tokens
    assert found.usage.output_tokens_details.reasoning_tokens == 0
    assert (found.status, found.object, found.model, found.error) == ("completed", "response", "tiny", None)
    assert (found.instructions, found.metadata, found.user) == ("Be brief.", {"a": "b"}, "me")
    (message,) = found.output
    assert message.type == "message"
    assert (message.role, message.status) == ("assistant", "completed")


def test_items_of_every_kind_become_the_chat_that_they_are(client: openai.OpenAI) -> None:
    call = {"name": "get_weather", "arguments": '{"city": "Rome"}'}
    items: Any = [
        {"role": "developer", "content": "Be kind."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Weather in Rome?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAA"},
        {"type": "function_call", "call_id": "c1", "id": "fc_1", "status": "completed", **call},
        {
            "type": "function_call_output",
            "call_id": "c1",
            "output": [{"type": "input_text", "text": "grey"}],
        },
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "It is grey.", "annotations": [], "logprobs": []}],
        },
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No more."}]},
        {"role": "user", "content": "Tell me a joke."},
    ]
    messages = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": "Weather in Rome?"},
        {"role": "assistant", "tool_calls": [{"id": "c1", "type": "function", "function": call}]},
        {"role": "tool", "tool_call_id": "c1", "content": "grey"},
        {"role": "assistant", "content": "It is grey."},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No more."}]},
        {"role": "user", "content": "Tell me a joke."},
    ]
    found, expected = ask(client, items), chat(client, messages)
    assert found.output_text == expected.choices[0].message.content
    assert found.usage is not None
    assert found.usage.input_tokens == expected.usage.prompt_tokens


def test_a_response_that_is_cut_off_is_incomplete_and_says_why(client: openai.OpenAI) -> None:
    found = ask(client, "Tell me a story.", max_output_tokens=5)
    assert found.status == "incomplete"
    assert found.incomplete_details is not None
    assert found.incomplete_details.reason == "max_output_tokens"
    assert found.completed_at is None
    assert found.usage is not None
    assert found.usage.output_tokens == 5
    assert found.output[0].type == "message"
    assert found.output[0].status == "incomplete"
    with client.responses.create(
        model="tiny", input="Tell me a story.", temperature=0, max_output_tokens=5, stream=True
    ) as stream:
        last = list(stream)[-1]
    assert last.type == "response.incomplete"
    assert last.response.output_text == found.output_text
    assert last.response.status == "incomplete"


def test_log_probabilities_are_given_where_they_are_asked_for(client: openai.OpenAI) -> None:
    found = ask(client, include=["message.output_text.logprobs"], top_logprobs=2, max_output_tokens=6)
    expected = chat(client, [{"role": "user", "content": "Hello!"}], logprobs=True, top_logprobs=2, max_tokens=6)
    part: Any = found.output[0].content[0]  # type: ignore[union-attr]
    chosen = [(entry.token, entry.bytes, len(entry.top_logprobs)) for entry in part.logprobs]
    reference = expected.choices[0].logprobs.content
    assert chosen == [(entry.token, entry.bytes, len(entry.top_logprobs)) for entry in reference]
    assert [entry.logprob for entry in part.logprobs] == pytest.approx([entry.logprob for entry in reference])
    streamed = []
    with client.responses.create(
        model="tiny",
        input="Hello!",
        temperature=0,
        max_output_tokens=6,
        top_logprobs=2,
        include=["message.output_text.logprobs"],
        stream=True,
    ) as stream:
        for event in stream:
            if event.type == "response.output_text.delta":
                streamed += [entry.token for entry in event.logprobs]
    assert streamed == [entry.token for entry in part.logprobs]
    assert ask(client, max_output_tokens=6).output[0].content[0].logprobs == []  # type: ignore[union-attr]


# --- streams

TEXT_EVENTS = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.completed",
]
CALL_EVENTS = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.function_call_arguments.delta",
    "response.function_call_arguments.done",
    "response.output_item.done",
    "response.completed",
]


def without_repeats(names: list[str]) -> list[str]:
    return [name for at, name in enumerate(names) if at == 0 or names[at - 1] != name]


def same(left: Response, right: Response) -> None:
    """The same but for ids and times."""

    def shown(response: Response) -> Any:
        plain = response.model_dump(exclude={"id", "created_at", "completed_at", "usage"})
        for item in plain["output"]:
            item.pop("parsed_arguments", None)  # which the client's helper adds
        text = re.sub(r"(msg|fc|rs|call|resp)_[0-9a-f_]+", "ID", json.dumps(plain))
        return json.loads(text)

    assert shown(left) == shown(right)


def test_a_stream_has_every_event_of_the_reference_in_order_and_adds_up(client: openai.OpenAI) -> None:
    whole = ask(client, "Tell me a joke.")
    with client.responses.create(
        model="tiny", input="Tell me a joke.", temperature=0, max_output_tokens=60, stream=True
    ) as stream:
        events = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert without_repeats([event.type for event in events]) == TEXT_EVENTS
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text
    assert len(deltas) > 3  # in pieces, not at once
    first, last = events[0], events[-1]
    assert first.type == "response.created"
    assert last.type == "response.completed"
    assert first.response.status == "in_progress"
    assert first.response.output == []
    assert first.response.id == last.response.id
    same(last.response, whole)
    (message,) = last.response.output
    for event in events:
        if event.type in ("response.output_text.delta", "response.content_part.done", "response.output_text.done"):
            assert (event.item_id, event.output_index, event.content_index) == (message.id, 0, 0)


def test_the_stream_helper_of_the_client_puts_it_together(client: openai.OpenAI) -> None:
    with client.responses.stream(model="tiny", input="Tell me a joke.", temperature=0, max_output_tokens=60) as stream:
        texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert final.output_text == "".join(texts) == ask(client, "Tell me a joke.").output_text


def test_a_stream_is_named_events_and_nothing_else(server: serving.ServerProcess) -> None:
    body = {"model": "tiny", "input": "Hi", "stream": True, "max_output_tokens": 4}
    answer = httpx.post(f"{server.url}/v1/responses", json=body, timeout=serving.PATIENCE_SECONDS)
    assert answer.headers["content-type"].startswith("text/event-stream")
    blocks = answer.text.removesuffix("\n\n").split("\n\n")
    for block in blocks:
        name, data = block.split("\n")
        assert name == f"event: {json.loads(data.removeprefix('data: '))['type']}"
    assert blocks[-1].startswith(("event: response.completed", "event: response.incomplete"))


# --- the reference

SERVED: dict[str, dict[str, Any]] = {
    "text": {"input": "Tell me a joke.", "instructions": "Be brief.", "metadata": {"a": "b"}, "user": "me"},
    "log-probabilities": {"input": "Hello!", "include": ["message.output_text.logprobs"], "top_logprobs": 2},
    "cut off": {"input": "Tell me a story.", "max_output_tokens": 3},
    "stopped by a string": {"input": "Tell me a joke.", "stop": ["octopus"], "top_logprobs": 1},
    "a call": {"input": "What is the weather in Paris?", "tools": [WEATHER], "safety_identifier": "x"},
    "a call by its name": {
        "input": "Hi",
        "tools": [WEATHER],
        "tool_choice": {"type": "function", "name": "get_weather"},
    },
    "no call of those that may be": {
        "input": "Tell me a joke.",
        "tools": [WEATHER | {"strict": False}],
        "tool_choice": {
            "type": "allowed_tools",
            "mode": "auto",
            "tools": [{"type": "function", "name": "get_weather"}],
        },
        "parallel_tool_calls": False,
    },
    "JSON": {
        "input": "Somebody, as JSON.",
        "text": {"format": {"type": "json_schema", "name": "person", "schema": SCHEMA, "description": "somebody"}},
        "max_output_tokens": 200,
    },
    "what has no effect": {
        "input": "Hi",
        "store": False,
        "truncation": "disabled",
        "service_tier": "auto",
        "background": False,
        "reasoning": {"summary": "auto"},
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "k",
        "max_tool_calls": 3,
    },
}


@pytest.mark.parametrize("name", SERVED)
def test_what_is_sent_is_what_the_reference_has_and_a_stream_ends_as_the_whole(
    server: serving.ServerProcess, name: str
) -> None:
    body = {"model": "tiny", "temperature": 0, "max_output_tokens": 60} | SERVED[name]
    with httpx.Client(base_url=server.url, timeout=serving.PATIENCE_SECONDS) as http:
        whole = http.post("/v1/responses", json=body)
        assert whole.status_code == 200, whole.text
        openai_models.check_response(whole.text)
        stream = http.post("/v1/responses", json=body | {"stream": True}).text
    texts = [line.removeprefix("data: ") for line in stream.splitlines() if line.startswith("data: ")]
    found = [json.loads(text) for text in texts]
    for text, event in zip(texts, found, strict=True):
        openai_models.check_event(event["type"], text)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    final = Response.model_validate(found[-1]["response"])
    same(final, Response.model_validate_json(whole.text))
    for event in found:
        if event["type"] == "response.output_item.done":
            assert event["item"] == found[-1]["response"]["output"][event["output_index"]]
    if "logprobs" in str(body):
        told = [entry for event in found if event["type"].endswith("_text.delta") for entry in event["logprobs"]]
        (item,) = found[-1]["response"]["output"]
        assert told == item["content"][0]["logprobs"] != []
        said = "".join(entry["token"] for entry in told)
        assert said.startswith(item["content"][0]["text"])  # the last token may be cut by a stop string
        assert said[: -len(told[-1]["token"])] in item["content"][0]["text"]


# --- tools


def test_a_tools_round_trip(client: openai.OpenAI) -> None:
    question = "What is the weather in Paris?"
    first = ask(client, question, tools=[WEATHER])
    (call,) = first.output
    assert call.type == "function_call"
    assert (call.name, json.loads(call.arguments), call.status) == ("get_weather", {"city": "Paris"}, "completed")
    result = '{"temperature": 21, "sky": "sunny"}'
    answer: Any = {"type": "function_call_output", "call_id": call.call_id, "output": result}
    by_id = ask(client, [answer], previous_response_id=first.id, tools=[WEATHER])
    by_items = ask(client, [{"role": "user", "content": question}, call, answer], tools=[WEATHER])
    assert by_id.output_text == by_items.output_text
    assert "21" in by_id.output_text
    tool = {"type": "function", "function": {key: WEATHER[key] for key in ("name", "description", "parameters")}}
    expected = chat(
        client,
        [
            {"role": "user", "content": question},
            {
                "role": "assistant",
                "tool_calls": [
                    {
                        "id": call.call_id,
                        "type": "function",
                        "function": {"name": call.name, "arguments": call.arguments},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": call.call_id, "content": result},
        ],
        tools=[tool],
    )
    assert expected.choices[0].message.content == by_id.output_text


def test_a_streamed_call_adds_up(client: openai.OpenAI) -> None:
    whole = ask(client, "What is the weather in Paris?", tools=[WEATHER])
    with client.responses.stream(
        model="tiny", input="What is the weather in Paris?", tools=[WEATHER], temperature=0, max_output_tokens=60
    ) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert without_repeats([event.type for event in events]) == CALL_EVENTS
    pieces = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    (call,) = final.output
    assert call.type == "function_call"
    assert "".join(pieces) == call.arguments == whole.output[0].arguments  # type: ignore[union-attr]
    (done,) = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert (done.arguments, done.item_id) == (call.arguments, call.id)
    same(final, whole)


@pytest.mark.parametrize(
    "choice",
    [
        "required",
        {"type": "function", "name": "get_weather"},
        {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "get_weather"}]},
    ],
    ids=lambda choice: choice if isinstance(choice, str) else choice["type"],
)
def test_a_call_can_be_demanded(client: openai.OpenAI, choice: Any) -> None:
    other = {"type": "function", "name": "get_time", "parameters": {"type": "object", "properties": {}}}
    tools = [WEATHER] if choice == "required" else [WEATHER, other]
    found = ask(client, "Tell me a joke.", tools=tools, tool_choice=choice, temperature=1)
    assert found.status == "completed"
    calls = [item for item in found.output if item.type == "function_call"]
    assert calls
    for call in calls:
        assert call.name == "get_weather"
        jsonschema.validate(json.loads(call.arguments), WEATHER["parameters"])
    assert found.tool_choice == choice or found.tool_choice.model_dump(exclude_none=True) == choice  # type: ignore[union-attr]


CITIES: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Bern"]}},
    "required": ["city"],
    "additionalProperties": False,
}
UNSERVABLE: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string", "pattern": "(?=P).*"}}}


def test_tools_are_strict_unless_it_is_said_or_cannot_be(client: openai.OpenAI) -> None:
    """As OpenAI has it. A language of schemas that no grammar has is no reason to refuse who never asked for it."""
    for said, parameters, strict in (
        ({}, WEATHER["parameters"], True),
        ({"strict": False}, WEATHER["parameters"], False),
        ({}, UNSERVABLE, False),
    ):
        tool = WEATHER | {"parameters": parameters} | said
        found = ask(client, "What is the weather in Paris?", tools=[tool])
        assert [tool.strict for tool in found.tools] == [strict]  # type: ignore[union-attr]
        assert [item.type for item in found.output] == ["function_call"]
    with pytest.raises(openai.BadRequestError, match="look-around") as caught:
        ask(client, tools=[WEATHER | {"name": "other"}, WEATHER | {"parameters": UNSERVABLE, "strict": True}])
    assert caught.value.param == "tools[1].parameters"


def test_one_tool_that_cannot_be_strict_leaves_the_others_strict(client: openai.OpenAI) -> None:
    loose = [WEATHER | {"name": name, "parameters": UNSERVABLE} for name in ("forecast", "archive")]
    tools = [loose[0], WEATHER | {"parameters": CITIES}, loose[1]]
    found = ask(client, "What is the weather in Paris?", tools=tools, temperature=1)
    assert [tool.strict for tool in found.tools] == [False, True, False]  # type: ignore[union-attr]
    calls = [item for item in found.output if item.type == "function_call"]
    for call in calls:
        assert call.name != "get_weather" or json.loads(call.arguments)["city"] in ("Oslo", "Bern")
    named = ask(client, "Paris?", tools=tools, tool_choice={"type": "function", "name": "forecast"}, temperature=1)
    assert set(json.loads(named.output[0].arguments)) <= {"city"}  # type: ignore[union-attr]


def test_arguments_keep_to_the_schema_where_nothing_is_said_of_strict(client: openai.OpenAI) -> None:
    found = ask(client, "What is the weather in Paris?", tools=[WEATHER | {"parameters": CITIES}])
    (call,) = found.output
    assert call.type == "function_call"
    jsonschema.validate(json.loads(call.arguments), CITIES)


def test_a_call_that_was_cut_off_does_not_end_its_conversation(client: openai.OpenAI) -> None:
    first = ask(client, "What is the weather in Paris?", tools=[WEATHER], tool_choice="required", max_output_tokens=18)
    assert [(item.type, item.status) for item in first.output] == [("function_call", "incomplete")]  # type: ignore[union-attr]
    second = ask(client, "Hello!", previous_response_id=first.id)
    assert second.output_text
    again = ask(client, [{"role": "user", "content": "Hi"}, *first.output, {"role": "user", "content": "Hello!"}])
    assert again.output_text


def test_a_call_can_be_sent_back_whatever_its_name(client: openai.OpenAI) -> None:
    call: Any = CALL | {"name": "functions.get weather!"}
    result: Any = {"type": "function_call_output", "call_id": "c", "output": "There is no such function."}
    for arguments in ("{}", "no JSON"):
        first = ask(client, [{"role": "user", "content": "Hi"}, call | {"arguments": arguments}, result])
        assert ask(client, "Hello!", previous_response_id=first.id).output_text
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, [call | {"name": None}, result])
    assert caught.value.param == "input[0].name"


def test_tools_that_must_not_be_called_are_not(client: openai.OpenAI) -> None:
    found = ask(client, "What is the weather in Paris?", tools=[WEATHER], tool_choice="none")
    assert [item.type for item in found.output] == ["message"]


# --- structured text


class Person(BaseModel):
    """What is asked for."""

    name: str
    age: int


def test_text_keeps_to_its_schema(client: openai.OpenAI) -> None:
    text: Any = {"format": {"type": "json_schema", "name": "person", "schema": SCHEMA, "strict": True}}
    for seed in range(5):
        found = ask(
            client, "Somebody, as JSON.", text=text, temperature=1, max_output_tokens=200, extra_body={"seed": seed}
        )
        assert found.status == "completed"
        jsonschema.validate(json.loads(found.output_text), SCHEMA)
    assert found.text is not None
    assert found.text.format is not None
    assert found.text.format.model_dump(by_alias=True, exclude_none=True) == text["format"]


def test_any_object_can_be_asked_for(client: openai.OpenAI) -> None:
    text: Any = {"format": {"type": "json_object"}}
    found = ask(client, 'Give me {"a": 1} as JSON.', text=text, max_output_tokens=200)
    assert found.status == "completed"
    assert isinstance(json.loads(found.output_text), dict)


def test_the_client_parses_what_it_asked_for(client: openai.OpenAI) -> None:
    asked: Any = {"temperature": 0, "max_output_tokens": 300, "input": "Ann is 7 years old. As JSON."}
    parsed = client.responses.parse(model="tiny", text_format=Person, **asked)
    assert isinstance(parsed.output_parsed, Person)
    with client.responses.stream(model="tiny", text_format=Person, **asked) as stream:
        assert stream.get_final_response().output_parsed == parsed.output_parsed


# --- what is kept


def test_a_conversation_goes_on_by_the_id_of_its_last_response(client: openai.OpenAI) -> None:
    first = ask(client, "My name is Zelda.", instructions="Be brief.")
    with client.responses.create(
        model="tiny", input="Tell me a joke.", previous_response_id=first.id, temperature=0, stream=True
    ) as stream:
        last = list(stream)[-1]
    assert last.type == "response.completed"
    second = last.response
    third = ask(client, "What is my name?", previous_response_id=second.id)
    assert "Zelda" in third.output_text
    assert third.previous_response_id == second.id
    messages = [  # instructions are of one response alone
        {"role": "user", "content": "My name is Zelda."},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "Tell me a joke."},
        {"role": "assistant", "content": second.output_text},
        {"role": "user", "content": "What is my name?"},
    ]
    expected = chat(client, messages)
    assert third.output_text == expected.choices[0].message.content
    assert third.usage is not None
    assert third.usage.input_tokens == expected.usage.prompt_tokens


def test_a_response_can_be_read_again_listed_and_deleted(client: openai.OpenAI) -> None:
    first = ask(client, "One")
    second = ask(client, [{"role": "user", "content": "Two"}], previous_response_id=first.id)
    assert client.responses.retrieve(second.id) == second
    items = list(client.responses.input_items.list(second.id, order="asc"))
    texts = [item.content[0].text for item in items]  # type: ignore[union-attr]
    assert texts == ["One", first.output_text, "Two"]
    page = client.responses.input_items.list(second.id, limit=2)
    assert [item.content[0].text for item in page.data] == ["Two", first.output_text]  # type: ignore[union-attr]
    assert page.has_more
    assert len({item.id for item in client.responses.input_items.list(second.id, limit=1)}) == 3  # page by page
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.delete(first.id)
    with pytest.raises(openai.BadRequestError):
        ask(client, "Three", previous_response_id=first.id)
    third = ask(client, "Three", previous_response_id=second.id)  # which holds what was said before it
    items = list(client.responses.input_items.list(third.id, order="asc"))
    texts += [second.output_text, "Three"]
    assert [item.content[0].text for item in items] == texts  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["mine", "resp_mine"])
def test_a_name_of_the_clients_own_is_behind_what_all_names_have(client: openai.OpenAI, name: str) -> None:
    found = ask(client, extra_body={"request_id": name})
    assert found.id == "resp_mine"
    assert client.responses.retrieve("resp_mine") == found


def test_what_must_not_be_kept_is_not(client: openai.OpenAI) -> None:
    found = ask(client, store=False)
    assert found.store is False  # type: ignore[attr-defined]
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(found.id)
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, previous_response_id=found.id)
    assert caught.value.code == "previous_response_not_found"
    assert caught.value.param == "previous_response_id"


def test_a_response_that_does_not_run_in_the_background_cannot_be_cancelled(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.cancel(ask(client).id)
    with pytest.raises(openai.NotFoundError):
        client.responses.cancel("resp_none")


# --- tokens of the input


def test_the_input_is_counted_as_it_is_given_to_the_model(client: openai.OpenAI) -> None:
    first = ask(client, "My name is Zelda.")
    asked: Any = {"input": "What is my name?", "instructions": "Be brief.", "previous_response_id": first.id}
    for more in ({}, {"tool_choice": "auto"}, {"tools": [WEATHER]}, {"tools": [WEATHER], "tool_choice": "none"}):
        counted = client.responses.input_tokens.count(model="tiny", **asked, **more)
        assert counted.object == "response.input_tokens"
        usage = client.responses.create(model="tiny", max_output_tokens=1, **asked, **more).usage
        assert usage is not None
        assert counted.input_tokens == usage.input_tokens
    assert client.responses.input_tokens.count(input="word " * 5000).input_tokens > 5000  # beyond the context
    named = {"input": "a", "tool_choice": {"type": "function", "name": "f"}}
    unknown = {"input": "a", "previous_response_id": "x"}
    for body, param in (({}, "input"), (unknown, "previous_response_id"), (named, "tool_choice")):
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.input_tokens.count(**body)  # type: ignore[call-overload]
        assert caught.value.param == param


def test_conversations_are_not_compacted(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="not compacted"):
        client.responses.compact(model="tiny", input="Hi")


# --- refusals


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"background": True}, "background", "as long as its connection"),
        ({"truncation": "auto"}, "truncation", "client's choice"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt", "no prompts are stored"),
        ({"conversation": "conv_1"}, "conversation", "previous_response_id"),
        ({"service_tier": "flex"}, "service_tier", "one tier"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]", "type web_search are not supported"),
        ({"tools": [{"type": "namespace", "name": "x"}]}, "tools[0]", "functions have one name"),
        (
            {"tools": [{"type": "custom", "name": "x"}]},
            "tools[0]",
            "type custom are not supported: a call's arguments",
        ),
        ({"tools": [{"type": "mcp", "server_label": "x"}]}, "tools[0]", "type mcp are not supported"),
        ({"tools": [WEATHER, WEATHER]}, "tools", "two functions of the name get_weather"),
        ({"tool_choice": "required"}, "tool_choice", "together with tools"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice", "type file_search are not supported"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "f"}}, "tool_choice", "not among the tools"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]", "type item_reference are not supported"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].content[0]",
            "text only",
        ),
        ({"input": []}, "input", "not be empty"),
        ({"input": (MAX_CALLS + 1) * [CALL]}, "input", "more than 256 calls"),
        ({"max_output_tokens": 0}, "max_output_tokens", "greater than or equal to 1"),
        ({"max_output_tokens": 5000}, "input", "5000"),
        ({"input": "word " * 2000}, "input", "token"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort", "does not think"),
        ({"text": {"verbosity": "high"}}, "text.verbosity", "one way to talk"),
        ({"text": {"format": NO_SCHEMA}}, "text.format.schema", ""),
        ({"chat_template_kwargs": {"nothing": 1}}, "chat_template_kwargs.nothing", "no such variable"),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"messages": []}, "messages", "here they are the input"),
        ({"max_tokens": 5}, "max_tokens", "here it is max_output_tokens"),
        ({"max_completion_tokens": 5}, "max_completion_tokens", "here it is max_output_tokens"),
        ({"max_output_token": 5}, "max_output_token", "did you mean max_output_tokens?"),
        ({"return_token_ids": True}, "return_token_ids", "/v1/chat/completions takes it"),
        ({"response_format": {"type": "json_object"}}, "response_format", 'in text: {"format":'),
        ({"reasoning_effort": "low"}, "reasoning_effort", 'in reasoning: {"effort":'),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools[0].function", "beside the type"),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "f"}}},
            "tool_choice.function",
            "beside the type",
        ),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input", "nothing in it"),
        ({"include": ["everything"]}, "include[0]", "message.output_text.logprobs"),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else "",
)
def test_what_is_not_done_is_refused_with_its_field_and_the_reason(
    server: serving.ServerProcess, fields: dict[str, Any], param: str, said: str
) -> None:
    for stream in (False, True):
        body = {"model": "tiny", "input": "Hi", "stream": stream} | fields
        answer = httpx.post(f"{server.url}/v1/responses", json=body, timeout=serving.PATIENCE_SECONDS)
        error = answer.json()["error"]
        assert answer.status_code == 400, error
        assert error["param"] == param
        assert said in error["message"]
        assert "messages[" not in error["message"]


def test_options_of_streams_are_refused_without_a_stream(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="stream: true"):
        ask(client, stream_options={"include_obfuscation": False})


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="other", input="Hi")


# --- clients that leave


def test_a_client_that_leaves_frees_everything_and_leaves_nothing_behind(server: serving.ServerProcess) -> None:
    body = {"model": "tiny", "input": "Tell me a story.", "ignore_eos": True, "request_id": "resp_left", "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/responses", json=body, timeout=serving.PATIENCE_SECONDS) as answer:
        pieces = answer.iter_bytes()
        next(pieces)
        serving.until(lambda: server.metric("vllm:num_requests_running") == 1)
    serving.until(lambda: server.metric("vllm:num_requests_running") == 0)
    serving.until(lambda: server.metric("vllm:kv_cache_usage_perc") == 0)
    assert httpx.get(f"{server.url}/v1/responses/resp_left").status_code == 404
