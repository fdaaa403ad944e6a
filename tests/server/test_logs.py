"""The form of the logs, what never stands in them, and that nobody waits for whoever reads them."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import serving
from octavo_common import logs
from octavo_server.errors import EngineError
from tiny_models import config_json, write_checkpoint

MARK = "zanzibar7"
KEY = "sk-unguessable"
# Breaks the steps of the real engine, in its own process.
BREAK = """
from octavo_server.engine.core import EngineCore
launch = EngineCore._launch
def broken(core, *arguments):
    core.runner.launch = fail
    launch(core, *arguments)
class fail:
    progress = 0
    def __init__(self, *_):
        pass
    def wait(self, timeout):
        raise RuntimeError("broken on purpose")
EngineCore._launch = broken
"""


def record(message: str, *args: object, error: Exception | None = None, **fields: Any) -> logging.LogRecord:
    info = None if error is None else (type(error), error, error.__traceback__)
    made = logging.LogRecord("octavo.x", logging.WARNING, "", 0, message, args, info)
    made.fields = fields
    return made


def raised(error: Exception) -> Exception:
    try:
        try:
            raise KeyError(MARK)
        except KeyError as cause:
            raise error from cause
    except Exception as found:
        return found


@pytest.fixture
def in_a_request() -> Iterator[None]:
    token = logs.request_id.set("r-1")
    yield
    logs.request_id.reset(token)


def test_a_line_of_json_holds_all_and_a_line_of_text_quotes_what_is_no_word(in_a_request: None) -> None:
    made = record("two\nlines of %s", "it", key="a b", n=3, reasons=["stop", "length"], path='x="y"\n')
    told = json.loads(logs.JsonLines().format(made))
    assert {"level": "warning", "logger": "octavo.x", "message": "two\nlines of it"}.items() <= told.items()
    assert {"request_id": "r-1", "key": "a b", "n": 3, "reasons": ["stop", "length"]}.items() <= told.items()
    assert "\n" not in logs.JsonLines().format(made)
    text = logs.TextLines().format(record("m", key="a b", n=3, was=True, reasons=["stop", "length"], path='x="y"\n'))
    assert text.splitlines() == [text]
    assert text.endswith(
        r' WARNING octavo.x: m request_id=r-1 key="a b" n=3 was=true reasons=stop,length path="x=\"y\"\n"'
    )


def test_no_text_looks_like_a_line_of_its_own_or_steers_a_terminal(in_a_request: None) -> None:
    error = raised(EngineError("gone\n2026-01-01T00:00:00.000Z INFO octavo.access: GET / 200 key=admin"))
    text = logs.TextLines().format(record("first\n2026 INFO x\r\x1b[2J \u202e\u2028 ü", key="a", error=error))
    first, second, *others = text.split("\n")
    assert first.endswith(" WARNING octavo.x: first request_id=r-1 key=a")
    assert second == r"  2026 INFO x\r\x1b[2J \u202e\u2028 ü"
    assert all(line.startswith("  ") and line.isprintable() for line in others)
    assert len(text.splitlines()) == len(others) + 2


def test_a_librarys_warning_is_a_line_like_others_and_quotes_no_request() -> None:
    program = """
import threading, warnings
from octavo_common import logs
logs.configure("info", "json")
warnings.warn("an old flag")
thread = threading.Thread(target=warnings.warn, args=("a text",))
thread.start()
thread.join()
logs.request_id.set("r-1")
warnings.warn("a prompt")
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stderr
    first, *others = [json.loads(line) for line in said.splitlines()]
    assert first["message"] == "UserWarning in <string>, line 5: an old flag"
    assert [line.get("request_id") for line in others] == [None, "r-1"]
    assert "a text" not in said and "a prompt" not in said


@pytest.mark.parametrize("form", [logs.JsonLines(), logs.TextLines()])
def test_an_exception_in_a_request_is_told_without_what_it_quotes(form: logging.Formatter, in_a_request: None) -> None:
    line = form.format(record("it failed", error=raised(ValueError(f"cannot read {MARK}"))))
    assert MARK not in line
    assert "ValueError" in line and "KeyError" in line and "in raised" in line
    assert "the engine died" in form.format(record("it failed", error=raised(EngineError("the engine died"))))


def test_elsewhere_an_exception_says_what_it_has_to_say() -> None:
    told = json.loads(logs.JsonLines().format(record("it failed", error=raised(ValueError("bad page")))))
    assert "ValueError: bad page" in told["exception"] and "in raised" in told["exception"]


def test_a_reader_that_stands_still_stops_nobody_and_is_told_what_it_missed() -> None:
    reader, writer = os.pipe()
    handler = logs.LineHandler(writer)
    handler.setFormatter(logs.JsonLines())
    for index in range(3000):  # 64 KiB are there for some hundreds
        handler.emit(record("line %d " + "x" * 100, index))
    os.set_blocking(reader, False)
    seen = os.read(reader, 1 << 20)
    handler.emit(record("the last"))
    lines = [json.loads(line)["message"] for line in (seen + os.read(reader, 1 << 20)).splitlines()]
    kept = len(lines) - 2
    assert 100 < kept < 3000
    assert [line.split(" x")[0] for line in lines] == [
        *(f"line {index}" for index in range(kept)),
        f"{3000 - kept} lines were dropped",
        "the last",
    ]
    os.close(reader)
    os.close(writer)


def test_a_line_that_is_longer_than_the_room_is_cut_and_the_next_one_is_whole() -> None:
    reader, writer = os.pipe()
    handler = logs.LineHandler(writer)
    handler.setFormatter(logs.JsonLines())
    handler.emit(record("x" * (1 << 20)))
    os.set_blocking(reader, False)
    seen = os.read(reader, 1 << 20)
    handler.emit(record("whole"))
    lines = (seen + os.read(reader, 1 << 20)).splitlines()
    assert len(lines) == 3
    assert [json.loads(line)["message"] for line in lines[1:]] == ["1 lines were dropped", "whole"]
    os.close(reader)
    os.close(writer)


def tool(function: Any) -> Any:
    return {"type": "function", "function": function}


def of_all_kinds(talk: list[Any]) -> list[tuple[str, Any]]:
    """Requests that quote the mark wherever a text of clients may stand, by route."""
    chat = {"model": "tiny", "messages": talk, "max_tokens": 5}
    function = {"name": MARK, "description": MARK, "parameters": {"type": "object", "properties": {MARK: {}}}}
    call = {"id": MARK, "type": "function", "function": {"name": MARK, "arguments": f'{{"{MARK}": "{MARK}"}}'}}
    result = {"role": "tool", "tool_call_id": MARK, "content": MARK}
    called = [*talk, {"role": "assistant", "tool_calls": [call]}, result]
    schemas = [{"const": MARK}, {"$ref": f"#/{MARK}"}, {"type": "string", "pattern": f"(?={MARK})"}]
    formats = [{"type": "json_schema", "json_schema": {"name": MARK, "schema": schema}} for schema in schemas]
    resume = {"output_token_ids": [5], "response_id": MARK, "created": 1}
    bodies: list[tuple[str, Any]] = [("chat/completions", chat | {"response_format": form}) for form in formats]
    bodies += [
        ("chat/completions", chat | {"tools": [tool(function)]}),
        ("chat/completions", chat | {"tools": [tool(function | {"parameters": schemas[1]})]}),
        ("chat/completions", chat | {"messages": called}),
        ("chat/completions", chat | {"structured_outputs": {"regex": f"{MARK}[a"}}),
        ("chat/completions", chat | {"structured_outputs": {"grammar": f'start: "{MARK}" x'}}),
        ("chat/completions", chat | {"structured_outputs": {"choice": [MARK]}, "cache_salt": MARK}),
        ("chat/completions", chat | {"chat_template": MARK}),
        ("chat/completions", chat | {"chat_template_kwargs": {MARK: MARK}}),
        ("chat/completions", chat | {"stream": True, "octavo_resume": resume}),
        ("embeddings", {"model": "tiny", "input": [MARK, MARK]}),
        ("embeddings", {"model": "tiny", "input": {MARK: MARK}}),
        ("responses", {"model": "tiny", "input": MARK, "instructions": MARK, "metadata": {MARK: MARK}}),
        ("responses", {"model": "tiny", "input": MARK, "stream": True, "tools": [{"type": "function", **function}]}),
        ("responses", {"model": "tiny", "input": MARK, "previous_response_id": MARK}),
        ("responses", {"model": "tiny", "input": [{"type": MARK}]}),
    ]
    return bodies


def test_neither_prompts_nor_answers_nor_keys_are_logged_whatever_goes_wrong(tmp_path: Path) -> None:
    model = serving.text_model(tmp_path / "model")
    crashing = 7  # a token that no text of this test has
    with serving.serve(
        model,
        env={"FAKE_CRASH_TOKEN": str(crashing)},
        log_level="debug",
        log_format="json",
        api_key=[KEY, f"{KEY}-2"],
        crash_report_dir=str(tmp_path / "reports"),
    ) as server:
        server.wait_until_ready()
        url, headers = f"{server.url}/v1", {"authorization": f"Bearer {KEY}"}
        talk = [{"role": "user", "content": MARK}]
        text: dict[str, Any] = {"model": "tiny", "prompt": f"{MARK} and {MARK}", "max_tokens": 30}
        said = httpx.post(f"{url}/completions", json=text, headers=headers)
        assert MARK in said.json()["choices"][0]["text"]
        bodies: list[tuple[str, Any]] = [
            ("chat/completions", {"model": "tiny", "messages": talk, "stream": True}),
            ("chat/completions", {"model": "tiny", "messages": talk, MARK: 1}),
            ("chat/completions", {"model": MARK, "messages": talk}),
            ("chat/completions", {"model": "tiny", "messages": [{"role": MARK, "content": MARK}]}),
            ("completions", text | {"temperature": MARK}),
            ("completions", text | {"stop": MARK * 1000}),
            ("completions", text | {"logit_bias": {MARK: 1}}),
            ("completions", text | {"metadata": {MARK: MARK}}),
            ("completions", text | {"prompt": [MARK, 1]}),
            (f"{MARK}", {}),
            (f"models?api_key={KEY}", {}),
            *of_all_kinds(talk),
            ("completions", {"model": "tiny", "prompt": [crashing, crashing], "user": MARK}),
        ]
        statuses = [httpx.post(f"{url}/{path}", json=body, headers=headers).status_code for path, body in bodies]
        assert {200, 400, 404} <= set(statuses)
        assert '"param":"temperature"' in server.log
        httpx.post(f"{url}/completions", content=f'{{"{MARK}', headers=headers | {"content-type": "application/json"})
        httpx.post(f"{url}/completions", json=text, headers={"authorization": f"Bearer {KEY}-wrong"})
        for path, body in (("tokenize", {"prompt": MARK}), ("tokenize", {"messages": MARK}), ("detokenize", {MARK: 1})):
            httpx.post(f"{server.url}/{path}", json=body, headers=headers)
        workers = [pid for pid, command in server.children().items() if "_worker" in command]
        # They quote a request in what they break down with, if they can.
        assert [str(Path(f"/proc/{pid}/fd/2").readlink()) for pid in workers] == [os.devnull] * 2
        serving.until(lambda: "crash report" in server.log)
        log = server.log
    lines = [json.loads(line) for line in log.splitlines()]
    told = [line for line in lines if line["logger"] == "octavo.access" and "/v1/" in line["route"]]
    assert len(told) == len(bodies) + 3
    (report,) = (tmp_path / "reports").iterdir()
    for secret in (MARK, KEY, MARK.encode().hex()):
        assert secret not in log.replace(f"/v1/{MARK}", "").replace(f"{KEY} in", "")
        assert secret not in report.read_text()


def test_both_processes_write_the_same_form(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, config_json("LlamaForCausalLM", vocab_size=512))
    serving.text_model(tmp_path / "text")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tmp_path / "text" / name).read_bytes())
    with serving.serve(tmp_path, fake=False, prelude=BREAK, log_format="json") as server:
        server.wait_until_ready()
        answer = httpx.post(f"{server.url}/v1/completions", json={"model": "tiny", "prompt": "hello"})
        assert answer.status_code == 500
        serving.until(lambda: "octavo.access" in server.log)
        lines = [json.loads(line) for line in server.log.splitlines()]
    (failed,) = [line for line in lines if line["message"].startswith("step 1 failed")]
    (told,) = [line for line in lines if line["logger"] == "octavo.access"]
    assert failed["logger"] == "octavo_server.engine.core" and "broken on purpose" in failed["exception"]
    assert (told["status"], told["error"], told["level"]) == (500, "internal", "warning")
    assert f"in it: {told['response_id'].removeprefix('cmpl-')}-0" in failed["message"]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
