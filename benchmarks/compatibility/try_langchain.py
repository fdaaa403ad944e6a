"""`langchain-openai`: chat, tools, structured output, embeddings."""

import asyncio
from typing import Any

import openai
from checks import QUESTION, Checks, arguments, need
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field

options = arguments()
check = Checks("langchain-openai")
place: Any = {"base_url": f"{options.url}/v1", "api_key": options.key, "max_retries": 0}
model = ChatOpenAI(model=options.model, temperature=0, max_tokens=200, **place)


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=12)
    large: bool


@tool
def weather(city: str) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


def streamed() -> str:
    whole = None
    for chunk in model.stream(QUESTION, stream_usage=True):
        whole = chunk if whole is None else whole + chunk
    return need(whole is not None and whole.usage_metadata and whole.content)


def calls(message: Any) -> str:
    (call,) = message.tool_calls
    return need(call["name"] == "weather" and set(call["args"]) == {"city"}, str(call))


def streamed_calls() -> str:
    whole = None
    for chunk in model.bind_tools([weather], tool_choice="required").stream(QUESTION):
        whole = chunk if whole is None else whole + chunk
    return calls(whole)


def tool_result() -> str:
    call = {"name": "weather", "args": {"city": "Paris"}, "id": "call_1", "type": "tool_call"}
    told = [HumanMessage(QUESTION), AIMessage("", tool_calls=[call]), ToolMessage("sunny", tool_call_id="call_1")]
    return need(model.bind_tools([weather], tool_choice="none").invoke(told).content)


def structured(method: str) -> str:
    return str(need(model.with_structured_output(City, method=method).invoke(QUESTION)))


embeddings = OpenAIEmbeddings(model=options.model, check_embedding_ctx_length=False, **place)
check("chat", lambda: model.invoke(QUESTION).content)
check("chat, asynchronous", lambda: asyncio.run(model.ainvoke(QUESTION)).content)
check("chat, in a batch", lambda: need(len(model.batch([QUESTION, "Hello"])) == 2))
check("chat, streamed", streamed)
check("tools, required", lambda: calls(model.bind_tools([weather], tool_choice="required").invoke(QUESTION)))
check("tools, by name", lambda: calls(model.bind_tools([weather], tool_choice="weather").invoke(QUESTION)))
check("tools, required, streamed", streamed_calls)
check("a tool's result", tool_result)
check("structured output, json_schema", lambda: structured("json_schema"))
check("structured output, function_calling", lambda: structured("function_calling"))
check("completion", lambda: OpenAI(model=options.model, max_tokens=8, **place).invoke("A page"))
check("embeddings", lambda: len(embeddings.embed_documents(["a", "b"])[1]))
check(
    "responses",
    lambda: need(ChatOpenAI(model=options.model, use_responses_api=True, max_tokens=60, **place).invoke(QUESTION).text),
)
check.refused(
    "a wrong value",
    lambda: ChatOpenAI(model=options.model, temperature=9, **place).invoke(QUESTION),
    openai.BadRequestError,
    400,
)
check.end()
