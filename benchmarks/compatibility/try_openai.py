"""The `openai` client, synchronous and asynchronous."""

import json
from typing import Any

import openai
from checks import CITY, QUESTION, WEATHER, Checks, a_city, arguments, need
from pydantic import BaseModel, Field

options = arguments()
check = Checks("openai")
client = openai.OpenAI(base_url=f"{options.url}/v1", api_key=options.key, max_retries=0)
model = options.model
messages: Any = [{"role": "user", "content": QUESTION}]
TOOL: Any = {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": WEATHER}}
SCHEMA: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}}


class City(BaseModel):
    name: str = Field(max_length=12)
    large: bool


def other() -> openai.AsyncOpenAI:
    """Of one event loop."""
    return openai.AsyncOpenAI(base_url=f"{options.url}/v1", api_key=options.key, max_retries=0)


async def asynchronous() -> str:
    answer = await other().chat.completions.create(model=model, messages=messages, temperature=0)
    return need(answer.choices[0].message.content)


async def asynchronous_stream() -> str:
    stream = await other().chat.completions.create(model=model, messages=messages, temperature=0, stream=True)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])


def streamed() -> str:
    stream = client.chat.completions.create(
        model=model, messages=messages, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    need(chunks[-1].usage is not None and chunks[-1].usage.completion_tokens > 0, chunks[-1])
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def helper_stream() -> str:
    with client.chat.completions.stream(model=model, messages=messages, temperature=0) as stream:
        for _ in stream:
            pass
        return need(stream.get_final_completion().choices[0].message.content)


def called(choice: Any) -> str:
    (call,) = choice.message.tool_calls
    need(call.function.name == "weather" and set(json.loads(call.function.arguments)) == {"city"}, call)
    return f"{choice.finish_reason}: {call.function.name}({call.function.arguments})"


def chat(**fields: Any) -> Any:
    return client.chat.completions.create(model=model, **{"messages": messages, "max_tokens": 200} | fields)


def streamed_tools() -> str:
    with client.chat.completions.stream(
        model=model, messages=messages, tools=[TOOL], tool_choice="required", max_tokens=200
    ) as stream:
        for _ in stream:
            pass
        return called(stream.get_final_completion().choices[0])


def tool_result() -> str:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    told = [*messages, {"role": "assistant", "content": None, "tool_calls": [call]}]
    told.append({"role": "tool", "tool_call_id": "call_1", "content": "sunny"})
    answer = client.chat.completions.create(model=model, messages=told, tools=[TOOL], tool_choice="none", max_tokens=20)
    return need(answer.choices[0].message.content)


def json_object() -> str:
    """Asked for in words, too, as OpenAI wants it: any object may go on for as long as there is room."""
    asked: Any = [{"role": "user", "content": "Write a JSON object about a page."}]
    answer = chat(messages=asked, temperature=0, response_format={"type": "json_object"})
    return str(need(isinstance(json.loads(answer.choices[0].message.content), dict), answer))


def parsed() -> str:
    answer = client.chat.completions.parse(model=model, messages=messages, response_format=City, max_tokens=200)
    return str(need(answer.choices[0].message.parsed))


def responses() -> str:
    first = client.responses.create(model=model, input=QUESTION, max_output_tokens=40)
    second = client.responses.create(
        model=model, input="And a block?", previous_response_id=first.id, max_output_tokens=40
    )
    return need(first.output_text and second.output_text)


def streamed_response() -> str:
    with client.responses.stream(model=model, input=QUESTION, max_output_tokens=40) as stream:
        kinds = [event.type for event in stream]
        need(kinds[0] == "response.created" and kinds[-1] in ("response.completed", "response.incomplete"), kinds)
        return stream.get_final_response().output_text


check("models", lambda: [entry.id for entry in client.models.list()])
check("chat", lambda: chat(temperature=0).choices[0].message.content)
check("chat, asynchronous", asynchronous)
check("chat, streamed", streamed)
check("chat, streamed, asynchronous", asynchronous_stream)
check("chat, streaming helper", helper_stream)
check("n, logprobs", lambda: need(len(chat(n=2, logprobs=True, top_logprobs=2, max_tokens=3).choices) == 2))
check("completion", lambda: client.completions.create(model=model, prompt="A page", max_tokens=8).choices[0].text)
check("tools, required", lambda: called(chat(tools=[TOOL], tool_choice="required").choices[0]))
check("tools, required, streamed", streamed_tools)
check("a tool's result", tool_result)
check("JSON object", json_object)
check("JSON schema", lambda: a_city(chat(response_format=SCHEMA).choices[0].message.content))
check("parse into a class", parsed)
check("responses", responses)
check("responses, streamed", streamed_response)
check("embeddings", lambda: len(client.embeddings.create(model=model, input=["a", "b"]).data[1].embedding))
check.refused("an unknown model", lambda: client.models.retrieve("nobody"), openai.NotFoundError, 404)
check.refused("a wrong value", lambda: chat(temperature=9), openai.BadRequestError, 400)
check.end()
