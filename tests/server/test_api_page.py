"""The page that tells of every field, and the fields."""

import re
from pathlib import Path
from typing import Final

import pytest

from octavo_server.frontend.fields import Only
from octavo_server.frontend.generation_fields import GenerationRequest
from octavo_server.frontend.openai import ChatCompletionRequest, CompletionRequest
from octavo_server.frontend.responses_api.fields import ResponsesRequest

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


def test_the_page_of_responses_tells_of_every_field() -> None:
    page = (DOCS / "responses.md").read_text(encoding="utf-8")
    told = {name for code in re.findall(r"`([^`]+)`", page) for name in re.findall(r"\w+", code)}
    assert set(ResponsesRequest.model_fields) <= told
