"""`openai-agents`, by the Responses API (its default) and by chats."""

import asyncio

import openai
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from checks import QUESTION, Checks, arguments, need

options = arguments()
check = Checks("openai-agents")
set_tracing_disabled(True)
settings = ModelSettings(max_tokens=200, temperature=0)


@function_tool
def weather(city: str) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


def agent(kind: type, *tools: object) -> Agent:
    client = openai.AsyncOpenAI(base_url=f"{options.url}/v1", api_key=options.key)  # of one event loop
    model = kind(model=options.model, openai_client=client)
    return Agent("helper", instructions="Be short.", model=model, model_settings=settings, tools=list(tools))


async def run(kind: type, *tools: object) -> str:
    return need((await Runner.run(agent(kind, *tools), QUESTION)).final_output)


async def streamed(kind: type) -> str:
    result = Runner.run_streamed(agent(kind), QUESTION)
    async for _ in result.stream_events():
        pass
    return need(result.final_output)


for kind in (OpenAIChatCompletionsModel, OpenAIResponsesModel):
    name = kind.__name__
    check(f"{name}: text", lambda kind=kind: asyncio.run(run(kind)))
    check(f"{name}: streamed", lambda kind=kind: asyncio.run(streamed(kind)))
    check(f"{name}: a tool at hand", lambda kind=kind: asyncio.run(run(kind, weather)))
check.end()
