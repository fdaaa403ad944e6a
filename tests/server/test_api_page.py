"""The page that tells of every field, and the fields."""

import re
from pathlib import Path
from typing import Any, Final, get_type_hints

import pytest
from openai.types import chat, completion_create_params, shared_params

from octavo_server.frontend.fields import Body, Only
from octavo_server.frontend.generation_fields import GenerationRequest, StreamOptions
from octavo_server.frontend.message_fields import (
    AssistantMessage,
    RefusalPart,
    SystemMessage,
    TextPart,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from octavo_server.frontend.openai import ChatCompletionRequest, CompletionRequest, Prediction
from octavo_server.frontend.responses_api.fields import ResponsesRequest
from octavo_server.frontend.tool_fields import FunctionDefinition, FunctionTool, NamedTool

DOCS: Final = Path(__file__).resolve().parents[2] / "docs"
PAGE: Final = (DOCS / "api.md").read_text(encoding="utf-8")
BOTH: Final = set(GenerationRequest.model_fields)


def rows(section: str) -> dict[str, str]:
    """What a section's table says of each field."""
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    found = re.findall(r"^\| `(\w+)` \| (.+) \|$", text, re.MULTILINE)
    assert len(found) == len(dict(found)), "a field stands twice"
    return dict(found)


@pytest.mark.parametrize(
    ("section", "model", "others"),
    [
        ("Both", GenerationRequest, set()),
        ("Chats", ChatCompletionRequest, BOTH),
        ("Completions", CompletionRequest, BOTH),
    ],
)
def test_every_field_is_told_of_and_no_other(section: str, model: type[GenerationRequest], others: set[str]) -> None:
    assert set(rows(section)) == set(model.model_fields) - others


@pytest.mark.parametrize(("section", "model"), [("Chats", ChatCompletionRequest), ("Completions", CompletionRequest)])
def test_what_is_refused_is_told_to_be(section: str, model: type[GenerationRequest]) -> None:
    told = {name for name, what in (rows("Both") | rows(section)).items() if what.startswith("refused")}
    fields = model.model_fields.items()
    refused = {name for name, field in fields if any(isinstance(mark, Only) for mark in field.metadata)}
    assert told == refused - {"service_tier"}


PARAMETERS: Final = [
    (chat.completion_create_params.CompletionCreateParamsBase, ChatCompletionRequest),
    (completion_create_params.CompletionCreateParamsBase, CompletionRequest),
    (chat.ChatCompletionStreamOptionsParam, StreamOptions),
    (chat.ChatCompletionSystemMessageParam, SystemMessage),
    (chat.ChatCompletionDeveloperMessageParam, SystemMessage),
    (chat.ChatCompletionUserMessageParam, UserMessage),
    (chat.ChatCompletionAssistantMessageParam, AssistantMessage),
    (chat.ChatCompletionToolMessageParam, ToolMessage),
    (chat.ChatCompletionContentPartTextParam, TextPart),
    (chat.ChatCompletionContentPartRefusalParam, RefusalPart),
    (chat.ChatCompletionMessageFunctionToolCallParam, ToolCall),
    (chat.ChatCompletionFunctionToolParam, FunctionTool),
    (chat.ChatCompletionNamedToolChoiceParam, NamedTool),
    (chat.ChatCompletionPredictionContentParam, Prediction),
    (shared_params.FunctionDefinition, FunctionDefinition),
]


@pytest.mark.parametrize(("theirs", "ours"), PARAMETERS, ids=lambda value: value.__name__)
def test_whatever_the_openai_client_can_send_is_known_by_name(theirs: Any, ours: type[Body]) -> None:
    assert set(get_type_hints(theirs)) <= set(ours.model_fields)


def test_the_page_of_responses_tells_of_every_field() -> None:
    page = re.sub(
        "^```.*?^```", "", (DOCS / "responses.md").read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    told = {name for code in re.findall(r"`([^`]+)`", page) for name in re.findall(r"\w+", code)}
    assert set(ResponsesRequest.model_fields) <= told
