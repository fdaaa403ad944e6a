"""Bodies: where they are parsed, and what two parsers have in common."""

import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.exceptions import RequestValidationError
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo_server.config import ServerConfig
from octavo_server.errors import RequestError
from octavo_server.frontend import body as body_module
from octavo_server.frontend.app import create_app
from octavo_server.frontend.body import PARSE_HERE_BYTES, parse_body
from octavo_server.frontend.openai import CompletionRequest
from octavo_server.frontend.state import ServerState


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    state = ServerState(ServerConfig(model=tmp_path, served_model_name=("m",)))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(state)), base_url="http://x") as connected:
        yield connected
    state.close()


@pytest.mark.parametrize("large", [False, True])
async def test_large_bodies_are_parsed_and_checked_beside_the_event_loop(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    threads: list[str] = []

    def spied(*args: Any) -> Any:
        threads.append(threading.current_thread().name)
        return parse_body(*args)

    monkeypatch.setattr(body_module, "parse_body", spied)
    prompt = "x" * PARSE_HERE_BYTES if large else "x"
    answer = await client.post("/v1/completions", json={"model": "m", "prompt": prompt})
    assert answer.json()["error"]["code"] == "not_ready"  # it was understood
    refused = await client.post("/v1/completions", json={"model": "m", "prompt": prompt, "top_p": 2})
    assert refused.json()["error"]["param"] == "top_p"
    assert len(threads) == 2
    assert all(name.startswith("text") == large for name in threads)


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8", "application/a+json"])
def test_json_is_known_by_its_type(content_type: str) -> None:
    raw = b'{"model": "m", "prompt": "hello"}'
    assert parse_body(CompletionRequest, raw, content_type).prompt == "hello"
    with pytest.raises(RequestValidationError):
        parse_body(CompletionRequest, raw, "text/plain")


NUMBERS = st.integers() | st.floats() | st.integers(-(10**30), 10**30)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(VALUES)
def test_the_quick_parser_says_what_pythons_says(value: Any) -> None:
    """What it refuses goes to Python's, so all that matters is what it takes."""
    raw = json.dumps({"x": value}).encode()
    found, expected = body_module._parse(raw), json.loads(raw)
    assert json.dumps(found) == json.dumps(expected)  # types too, and NaN


@pytest.mark.parametrize("raw", [b"{", b"{} {}", b'{"a": 01}', b"\xff", b'{"a":' * 100_000, b"{'a': 1}"])
def test_what_is_no_json_is_refused_by_both(raw: bytes) -> None:
    with pytest.raises(RequestError, match="not valid JSON"):
        parse_body(CompletionRequest, raw, "application/json")
