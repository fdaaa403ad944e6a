"""docs/observability.md tells every field of the log and every attribute of a span, and none that there is not."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from octavo_common import logs
from octavo_server.frontend.openai import CompletionRequest
from octavo_server.frontend.request_record import RequestRecord, access_fields
from octavo_server.frontend.tracing import attributes

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "observability.md").read_text()


@pytest.fixture
def full() -> RequestRecord:
    """Of a request of which all is known."""
    fields: dict[str, Any] = dict.fromkeys(("seed", "top_k", "n", "max_tokens"), 1)
    fields |= dict.fromkeys(("temperature", "top_p", "frequency_penalty", "presence_penalty"), 0.5)
    phases = dict.fromkeys(("queue", "first_token", "prefill", "decode"), 0.1)
    return RequestRecord(
        "r",
        "POST",
        0.0,
        0,
        error="internal",
        param="seed",
        model="m",
        engine_id="e",
        request=CompletionRequest.model_validate({"model": "m", "prompt": "x", **fields}),
        response_id="cmpl-x",
        phases=phases,
        finish_reasons=["stop"],
    )


def rows_of(heading: str) -> list[str]:
    section = PAGE.split(f"\n{heading}\n")[1].split("\n#")[0]
    return re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)


def test_every_field_of_a_line_is_described(full: RequestRecord) -> None:
    token = logs.request_id.set("r")
    try:
        error = ValueError()
        made = logging.LogRecord("octavo.x", logging.INFO, "", 0, "m", (), (ValueError, error, None))
        made.__dict__.update(logs.fields(**access_fields(full, "/v1/completions", "team-a")))
        told = json.loads(logs.JsonLines().format(made))
    finally:
        logs.request_id.reset(token)
    assert rows_of("### The access line") == [*told]


def test_every_attribute_of_a_span_is_described(full: RequestRecord) -> None:
    assert sorted(rows_of("## Traces")) == sorted(attributes(full, "text_completion", "m"))
