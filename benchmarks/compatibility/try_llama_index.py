"""`llama-index`, by OpenAILike: chat, completion, streams, tools, embeddings."""

from checks import QUESTION, Checks, arguments, need
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel, Field

options = arguments()
check = Checks("llama-index-llms-openai-like")
place = {"api_base": f"{options.url}/v1", "api_key": options.key}


def made(**fields: object) -> OpenAILike:
    return OpenAILike(model=options.model, max_tokens=100, temperature=0, max_retries=0, **place, **fields)


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=12)
    large: bool


def weather(city: str) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


def call() -> str:
    llm = made(is_chat_model=True, is_function_calling_model=True)
    tool = FunctionTool.from_defaults(weather)
    answer = llm.chat_with_tools([tool], QUESTION, tool_required=True)
    (found,) = llm.get_tool_calls_from_response(answer)
    return str(need(found.tool_name == "weather", found))


chat = made(is_chat_model=True)
messages = [ChatMessage(role="user", content=QUESTION)]
check("chat", lambda: chat.chat(messages).message.content)
check("chat, streamed", lambda: "".join(piece.delta or "" for piece in chat.stream_chat(messages)))
check("completion", lambda: made(is_chat_model=False).complete("A page").text)
check("completion, streamed", lambda: "".join(piece.delta for piece in made(is_chat_model=False).stream_complete("A")))
check("tools, required", call)
check(
    "an object",
    lambda: str(
        made(is_chat_model=True, is_function_calling_model=True, should_use_structured_outputs=True)
        .as_structured_llm(City)
        .chat(messages)
        .raw
    ),
)
check(
    "embeddings",
    lambda: len(OpenAILikeEmbedding(model_name=options.model, **place).get_text_embedding_batch(["a", "b"])[1]),
)
check.end()
