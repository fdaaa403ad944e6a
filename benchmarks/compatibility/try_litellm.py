"""`litellm`, by its provider for OpenAI-compatible servers."""

import json
from typing import Any

import litellm
from checks import CITY, QUESTION, WEATHER, Checks, a_city, arguments, need

options = arguments()
check = Checks("litellm")
litellm.suppress_debug_info = True
messages = [{"role": "user", "content": QUESTION}]
TOOL = {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": WEATHER}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}}


def ask(provider: str = "openai", **fields: Any) -> Any:
    return litellm.completion(
        model=f"{provider}/{options.model}",
        api_base=f"{options.url}/v1",
        api_key=options.key,
        **{"max_tokens": 200, "messages": messages} | fields,
    )


def streamed(provider: str = "openai") -> str:
    chunks = list(ask(provider, stream=True, stream_options={"include_usage": True}))
    whole = litellm.stream_chunk_builder(chunks)
    return need(whole.usage.completion_tokens and whole.choices[0].message.content)


def second_turn(provider: str) -> str:
    """The answers go back as litellm's own objects, a call and its result too."""
    called_one = ask(provider, tools=[TOOL], tool_choice="required").choices[0].message
    (call,) = called_one.tool_calls
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    said = ask(provider, tools=[TOOL], messages=[*messages, called_one, result]).choices[0].message
    again = [*messages, called_one, result, said, {"role": "user", "content": "And tomorrow?"}]
    return need(ask(provider, messages=again).choices[0].message.content)


async def asynchronous() -> str:
    answer = await litellm.acompletion(
        model=f"openai/{options.model}", messages=messages, api_base=f"{options.url}/v1", api_key=options.key
    )
    return need(answer.choices[0].message.content)


def called(answer: Any) -> str:
    (call,) = answer.choices[0].message.tool_calls
    need(call.function.name == "weather" and set(json.loads(call.function.arguments)) == {"city"}, call)
    return call.function.arguments


def streamed_tools() -> str:
    chunks = list(ask(tools=[TOOL], tool_choice="required", stream=True))
    return called(litellm.stream_chunk_builder(chunks))


def embed() -> int:
    answer = litellm.embedding(
        model=f"openai/{options.model}", input=["a", "b"], api_base=f"{options.url}/v1", api_key=options.key
    )
    return len(answer.data[1]["embedding"])


def respond() -> str:
    answer = litellm.responses(
        model=f"openai/{options.model}", input=QUESTION, api_base=f"{options.url}/v1", api_key=options.key
    )
    return need(answer.output[-1].content[0].text)


check("chat", lambda: ask().choices[0].message.content)
check("chat, as hosted_vllm", lambda: ask("hosted_vllm").choices[0].message.content)
check("chat, asynchronous", asynchronous)
check("chat, streamed", streamed)
check("chat, streamed, as hosted_vllm", lambda: streamed("hosted_vllm"))
check("tools, required", lambda: called(ask(tools=[TOOL], tool_choice="required")))
check("tools, required, streamed", streamed_tools)
check("a second turn, with a call", lambda: second_turn("openai"))
check("a second turn, as hosted_vllm", lambda: second_turn("hosted_vllm"))
check("JSON schema", lambda: a_city(ask(response_format=SCHEMA).choices[0].message.content))
check(
    "text completion",
    lambda: (
        litellm.text_completion(
            model=f"text-completion-openai/{options.model}",
            prompt="A page",
            max_tokens=8,
            api_base=f"{options.url}/v1",
            api_key=options.key,
        )
        .choices[0]
        .text
    ),
)
check("embeddings", embed)
check("responses", respond)
check.refused("a wrong value", lambda: ask(temperature=9, max_retries=0), litellm.BadRequestError, 400)
check.end()
