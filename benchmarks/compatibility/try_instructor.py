"""`instructor`: answers as objects of a class, by tools and by JSON."""

import instructor
import openai
from checks import QUESTION, Checks, arguments, need
from pydantic import BaseModel, Field

options = arguments()
check = Checks("instructor")


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=12)
    large: bool


def ask(mode: instructor.Mode) -> str:
    client = instructor.from_openai(openai.OpenAI(base_url=f"{options.url}/v1", api_key=options.key), mode=mode)
    found = client.chat.completions.create(
        model=options.model,
        messages=[{"role": "user", "content": QUESTION}],
        response_model=City,
        max_retries=0,
        max_tokens=200,
    )
    return str(need(isinstance(found, City), found))


for mode in (instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT, instructor.Mode.JSON_SCHEMA):
    check(f"mode {mode.value}", lambda mode=mode: ask(mode))
check.end()
