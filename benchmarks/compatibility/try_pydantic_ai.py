"""`pydantic-ai`: an agent that answers with text, with an object, and with tools at hand."""

import asyncio

from checks import QUESTION, Checks, arguments, need
from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

options = arguments()
check = Checks("pydantic-ai-slim")
provider = OpenAIProvider(base_url=f"{options.url}/v1", api_key=options.key)
model = OpenAIChatModel(options.model, provider=provider)
settings = {"max_tokens": 200, "temperature": 0.0}


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=12)
    large: bool


def text() -> str:
    return need(Agent(model, model_settings=settings).run_sync(QUESTION).output)


async def streamed() -> str:
    async with Agent(model, model_settings=settings).run_stream(QUESTION) as run:
        return "".join([piece async for piece in run.stream_text(delta=True)])


def typed(output: object) -> str:
    return str(need(Agent(model, output_type=output, model_settings=settings).run_sync(QUESTION).output))


def with_a_tool() -> str:
    agent = Agent(model, model_settings=settings)

    @agent.tool_plain
    def weather(city: str) -> str:
        """The weather of a city."""
        return f"sunny in {city}"

    return need(agent.run_sync(QUESTION).output)


def respond() -> str:
    return need(Agent(OpenAIResponsesModel(options.model, provider=provider)).run_sync(QUESTION).output)


check("text", text)
check("text, streamed", lambda: asyncio.run(streamed()))
check("an object by a tool", lambda: typed(ToolOutput(City)))
check("an object by a JSON schema", lambda: typed(NativeOutput(City)))
check("a tool at hand", with_a_tool)
check("text, by the Responses API", respond)
check.end()
