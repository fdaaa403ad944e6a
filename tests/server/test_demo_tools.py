"""The `openai` client and the model that ships with us: it calls tools and answers in formats, also unwillingly."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal

import jsonschema
import openai
import pydantic
import pytest
from openai.types.chat import ChatCompletion

import serving

MODEL: Final = Path(__file__).resolve().parents[2] / "server" / "octavo_server" / "demo_model"
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
ORDER: Any = {
    "type": "function",
    "function": {
        "name": "order",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {
                "item": {"type": "string", "enum": ["tea", "cake"]},
                "count": {"type": "integer", "minimum": 1, "maximum": 99},
            },
            "required": ["item", "count"],
            "additionalProperties": False,
        },
    },
}
PARAMETERS: Final = {tool["function"]["name"]: tool["function"]["parameters"] for tool in (WEATHER, ORDER)}


class Person(pydantic.BaseModel):
    """What a test asks for, bounded, so that it comes to an end."""

    model_config = pydantic.ConfigDict(extra="forbid")
    name: str = pydantic.Field(max_length=12)
    age: int = pydantic.Field(ge=0, le=120)
    mood: Literal["glad", "sad"]


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    config = {"max_model_len": 1024, "num_gpu_blocks_override": 512, "served_model_name": ["demo"]}
    with serving.serve(MODEL, fake=False, env={"OMP_NUM_THREADS": "1"}, **config) as server:
        server.wait_until_ready()
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
            yield made


def ask(client: openai.OpenAI, text: str, **fields: Any) -> ChatCompletion:
    messages: Any = [{"role": "user", "content": text}]
    answer: ChatCompletion = client.chat.completions.create(
        model="demo", messages=messages, **{"max_tokens": 200, "temperature": 0, "seed": 1} | fields
    )
    return answer


def ask_streamed(client: openai.OpenAI, text: str, **fields: Any) -> Any:
    messages: Any = [{"role": "user", "content": text}]
    given = {"max_tokens": 200, "temperature": 0, "seed": 1} | fields
    with client.chat.completions.stream(model="demo", messages=messages, **given) as stream:
        for _ in stream:
            pass
        return stream.get_final_completion()


ASKS: Final = pytest.mark.parametrize("ask", [ask, ask_streamed])


def called(choice: Any) -> list[tuple[str, Any]]:
    """Names and arguments of a choice's calls; the arguments fit their schema."""
    found = []
    for call in choice.message.tool_calls or ():
        arguments = json.loads(call.function.arguments)
        jsonschema.validate(arguments, PARAMETERS[call.function.name])
        found.append((call.function.name, arguments))
    return found


def of_schema(name: str, strict: bool | None, schema: dict[str, Any]) -> Any:
    parameters = {"type": "object", "properties": {"city": schema}, "required": ["city"]}
    return {"type": "function", "function": {"name": name, "strict": strict, "parameters": parameters}}


def test_a_schema_that_no_grammar_holds_is_told_by_its_tool_and_refused_where_it_is_strict(
    client: openai.OpenAI,
) -> None:
    ask: Any = {"model": "demo", "messages": [{"role": "user", "content": "The weather in Paris?"}], "max_tokens": 120}
    for schema, reason in (
        ({"type": "string", "pattern": "(?=P).*"}, "it cannot be served: the pattern (?=P).*: look-around"),
        ({"type": "array", "uniqueItems": True}, 'it cannot be served: what cannot be held: "uniqueItems"'),
        ({"oneOf": [{"type": "string"}, {"enum": ["a"]}]}, "it cannot be served: oneOf where one value may fit two"),
        ({"type": "object", "minProperties": 2}, "minProperties cannot be held"),
    ):
        tools = [WEATHER, of_schema("other", False, schema), of_schema("bad", True, schema)]
        named: Any = {"type": "function", "function": {"name": "bad"}}
        for choice in ("auto", "required", named):
            with pytest.raises(openai.BadRequestError) as caught:
                client.chat.completions.create(**ask, tools=tools, tool_choice=choice)
            assert caught.value.param == "tools[2].function.parameters"
            assert f"tools[2].function.parameters: {reason}" in caught.value.message
            assert not any(noise in caught.value.message for noise in ("llguidance", "%json", "coerce", " | "))
        loose: Any = {"type": "function", "function": {"name": "other"}}
        answer = client.chat.completions.create(**ask, tools=tools[:2], tool_choice=loose, temperature=0)
        calls = answer.choices[0].message.tool_calls
        assert [call.function.name for call in calls] == ["other"] and "city" in json.loads(calls[0].function.arguments)


@ASKS
def test_it_calls_a_tool_that_fits_and_talks_where_none_does(client: openai.OpenAI, ask: Any) -> None:
    choice = ask(client, "What is the weather in Paris?", tools=[WEATHER, ORDER]).choices[0]
    assert (choice.finish_reason, called(choice)) == ("tool_calls", [("get_weather", {"city": "Paris"})])
    choice = ask(client, "Hello!", tools=[WEATHER, ORDER]).choices[0]
    assert (choice.finish_reason, called(choice)) == ("stop", [])
    assert choice.message.content


def test_the_result_of_a_call_becomes_its_answer(client: openai.OpenAI) -> None:
    question: Any = {"role": "user", "content": "What is the weather in Paris?"}
    said: Any = ask(client, question["content"], tools=[WEATHER]).choices[0].message
    result: Any = {
        "role": "tool",
        "tool_call_id": said.tool_calls[0].id,
        "content": '{"temperature": 7, "sky": "rainy"}',
    }
    later = client.chat.completions.create(
        model="demo", messages=[question, said, result], tools=[WEATHER], temperature=0, max_tokens=60
    )
    assert later.choices[0].finish_reason == "stop"
    assert later.choices[0].message.content == "It is 7 degrees and rainy in Paris."


@ASKS
def test_a_call_that_is_required_comes_whatever_was_said(client: openai.OpenAI, ask: Any) -> None:
    answer = ask(client, "Hello!", tools=[WEATHER, ORDER], tool_choice="required", temperature=1, n=4)
    for choice in answer.choices:
        assert choice.finish_reason == "tool_calls"
        assert called(choice)
        assert choice.message.content is None


@ASKS
def test_the_named_tool_is_called_and_the_answer_ends_as_openais(client: openai.OpenAI, ask: Any) -> None:
    named = {"type": "function", "function": {"name": "order"}}
    answer = ask(client, "Hello!", tools=[WEATHER, ORDER], tool_choice=named, temperature=1.9, n=4)
    for choice in answer.choices:
        assert choice.finish_reason == "stop"  # as OpenAI's, where a tool was named
        assert [name for name, _ in called(choice)] == ["order"]
    assert len({str(called(choice)) for choice in answer.choices}) > 1  # sampled, not made up


@ASKS
def test_only_allowed_tools_are_called(client: openai.OpenAI, ask: Any) -> None:
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "order"}}]}
    choice: Any = {"type": "allowed_tools", "allowed_tools": allowed}
    answer = ask(client, "What is the weather in Paris?", tools=[WEATHER, ORDER], tool_choice=choice)
    assert [name for name, _ in called(answer.choices[0])] == ["order"]


@ASKS
def test_one_call_where_several_are_not_wanted(client: openai.OpenAI, ask: Any) -> None:
    answer = ask(
        client,
        "Hello!",
        tools=[WEATHER, ORDER],
        tool_choice="required",
        parallel_tool_calls=False,
        temperature=1,
        n=4,
    )
    assert [len(called(choice)) for choice in answer.choices] == [1] * 4


def test_arguments_of_a_strict_tool_fit_and_are_parsed_by_the_client(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="demo",
        messages=[{"role": "user", "content": "Order 3 pieces of cake with the tool."}],
        tools=[openai.pydantic_function_tool(Person)],
        tool_choice="required",
        temperature=1,
        seed=2,
    )
    calls = answer.choices[0].message.tool_calls
    assert calls and all(isinstance(call.function.parsed_arguments, Person) for call in calls)


@ASKS
def test_an_answer_is_parsed_into_a_pydantic_model(client: openai.OpenAI, ask: Any) -> None:
    if ask is ask_streamed:
        answer = ask(client, "Tell me of Ann, who is 30.", response_format=Person, temperature=1)
    else:
        answer = client.chat.completions.parse(
            model="demo",
            messages=[{"role": "user", "content": "Tell me of Ann, who is 30."}],
            response_format=Person,
            temperature=1,
            n=4,
        )
    assert all(isinstance(choice.message.parsed, Person) for choice in answer.choices)


def test_with_tools_and_a_format_the_answer_is_a_call_or_has_the_format(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": Person.model_json_schema()}}
    choice = ask(client, "What is the weather in Paris?", tools=[WEATHER], response_format=form).choices[0]
    assert called(choice) == [("get_weather", {"city": "Paris"})]
    kinds = set()
    answer = ask(client, "Tell me of Ann, who is 30.", tools=[WEATHER], response_format=form, temperature=1.5, n=8)
    for choice in answer.choices:
        assert choice.finish_reason in ("stop", "tool_calls")
        if choice.message.content is not None:
            Person.model_validate_json(choice.message.content)
        kinds.add("call" if called(choice) else "format")
    assert kinds == {"call", "format"}


@pytest.mark.parametrize("choice", ["required", "auto", "none"])
def test_a_format_that_cannot_be_served_is_refused_whatever_is_to_be_called(client: openai.OpenAI, choice: Any) -> None:
    schema = {"type": "string", "pattern": "(?<=a)b"}  # no grammar can look around
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(openai.BadRequestError, match="cannot be served") as caught:
        ask(client, "Hello!", tools=[WEATHER], tool_choice=choice, response_format=form)
    assert caught.value.param == "response_format.json_schema.schema"


def test_an_answer_has_nothing_but_the_tokens_that_are_allowed(client: openai.OpenAI) -> None:
    allowed = {"allowed_token_ids": [64, 65, 66], "return_token_ids": True}
    choice: Any = ask(client, "Hello!", max_tokens=12, temperature=1, extra_body=allowed).choices[0]
    assert set(choice.token_ids) <= {64, 65, 66}
    assert (len(choice.token_ids), choice.finish_reason) == (12, "length")  # its end is not among them
    with pytest.raises(openai.BadRequestError, match="allowed_token_ids"):
        ask(client, "Hello!", extra_body={"allowed_token_ids": [2**30]})


def test_completions_have_formats_too(client: openai.OpenAI) -> None:
    def complete(**extra: Any) -> str:
        answer = client.completions.create(model="demo", prompt="Ann:", max_tokens=100, seed=1, extra_body=extra)
        return answer.choices[0].text

    assert complete(structured_outputs={"regex": "[0-9]{3}"}).isdecimal()
    assert complete(structured_outputs={"choice": ["yes", "no"]}) in ("yes", "no")
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": Person.model_json_schema()}}
    Person.model_validate_json(complete(response_format=form))
