"""Items and events of responses, by an engine that answers with the prompt's own tokens: a test says what is written.

And API keys, failures of the engine and long conversations, which need no model either.
"""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response

import serving
import tiny_tokenizers
from octavo_server.frontend.answer import Delta
from octavo_server.frontend.parsing import Piece
from octavo_server.frontend.plain_answer import PlainAnswer, TextAnswer
from octavo_server.frontend.responses_api import events
from octavo_server.frontend.responses_api.output import Output
from octavo_server.frontend.text.output_parsers import CallDelta
from octavo_server.frontend.text.text_options import TextOptions
from octavo_server.ipc import TokenLogprobs

# Names of variables and markers are what the server knows a model by.
TEMPLATE = (
    "{% if false %}{{ tools }}<tool_call></tool_call><think></think>{{ enable_thinking }}{% endif %}"
    "{% for m in messages %}{{ m.reasoning_content }}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"
)
TOOL: Any = {"type": "function", "name": "find", "parameters": {"type": "object", "properties": {}}}
CALL = '<tool_call>\n{"name": "find", "arguments": {"what": "é"}}\n</tool_call>'
THOUGHT = "<think>\nhm, 🙂\n</think>\n\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = serving.text_model(tmp_path_factory.mktemp("output") / "model")
    tokenizer = tiny_tokenizers.byte_level_bpe()
    tokenizer.add_special_tokens(["<think>", "</think>"])
    return tiny_tokenizers.save(tokenizer, directory, chat_template=TEMPLATE)


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[serving.ServerProcess]:
    first = tiny_tokenizers.byte_level_bpe().encode("Ü").ids[0]
    env = {"FAKE_ERROR_TOKEN": str(first)}
    with serving.serve(model, env=env, api_key=["one", "two"]) as process:
        process.wait_until_ready()
        yield process


@pytest.fixture(scope="module")
def client(server: serving.ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="one", max_retries=0) as made:
        yield made


def say(client: openai.OpenAI, text: Any, **fields: Any) -> Response:
    """The response, whose model writes this text."""
    answer: Response = client.responses.create(model="tiny", input=text, **fields)
    return answer


def say_streamed(client: openai.OpenAI, text: str, **fields: Any) -> list[Any]:
    with client.responses.create(model="tiny", input=text, stream=True, **fields) as stream:
        return list(stream)


def shown(response: Response) -> list[tuple[str, str]]:
    """Kind and text of each item."""
    found = []
    for item in response.output:
        match item.type:
            case "function_call":
                found.append((item.name, item.arguments))
            case "message" | "reasoning":
                found.append((item.type, "".join(part.text for part in item.content or ())))  # type: ignore[union-attr]
    return found


NO_JSON = '{"what": é}'


def test_a_call_whose_arguments_are_no_json_is_sent_back_as_it_came(client: openai.OpenAI) -> None:
    written = CALL.replace('"é"', "é")
    shown_again = f'find{{"INVALID_ARGUMENTS": {json.dumps(NO_JSON, ensure_ascii=False)}}}next'
    first = say(client, written, tools=[TOOL])
    assert [(item.name, item.arguments, item.status) for item in first.output] == [("find", NO_JSON, "completed")]  # type: ignore[union-attr]
    assert say(client, "next", previous_response_id=first.id).output_text.endswith(shown_again)
    assert say(client, [*first.output, {"role": "user", "content": "next"}]).output_text == shown_again

    asked: list[Any] = [{"role": "user", "content": written}]
    tools: Any = [{"type": "function", "function": {"name": "find"}}]
    message = client.chat.completions.create(model="tiny", messages=asked, tools=tools).choices[0].message
    again: list[Any] = [message, {"role": "user", "content": "next"}]
    assert (message.tool_calls or [])[0].function.arguments == NO_JSON  # type: ignore[union-attr]
    answer = client.chat.completions.create(model="tiny", messages=again)
    assert (answer.choices[0].message.content or "").endswith(shown_again)


@pytest.mark.parametrize(
    "text", ['{"a": 1e400}', '{"a": NaN}', '{"a": -Infinity}', '{"a": "\\ud800"}', "[1]", '"a"', "null", "{'a': 1}"]
)
def test_arguments_that_strictly_are_no_json_object_are_shown_as_text(client: openai.OpenAI, text: str) -> None:
    items: list[Any] = [
        {"type": "function_call", "call_id": "a", "name": "find", "arguments": text},
        {"role": "user", "content": "next"},
    ]
    found = say(client, items).output_text.removeprefix("find").removesuffix("next")
    assert json.loads(found) == {"INVALID_ARGUMENTS": text}


@pytest.mark.parametrize(
    ("text", "expected"), [("", {}), (" ", {}), ('{"a": 1e30, "b": [null]}', {"a": 1e30, "b": [None]})]
)
def test_arguments_that_are_an_object_or_nothing_are_shown_as_one(
    client: openai.OpenAI, text: str, expected: Any
) -> None:
    items: list[Any] = [
        {"type": "function_call", "call_id": "a", "name": "find", "arguments": text},
        {"role": "user", "content": "next"},
    ]
    assert json.loads(say(client, items).output_text.removeprefix("find").removesuffix("next")) == expected


ANSWERS = {
    "a text": ("Grüße\n\nund mehr", [("message", "Grüße\n\nund mehr")]),
    "thoughts and a text": (THOUGHT + "So: 4.", [("reasoning", "hm, 🙂"), ("message", "So: 4.")]),
    "thoughts and a call": (THOUGHT + CALL, [("reasoning", "hm, 🙂"), ("find", '{"what": "é"}')]),
    "a text and two calls": (
        "Let me see.\n" + CALL + "\n" + CALL,
        [("message", "Let me see."), ("find", '{"what": "é"}'), ("find", '{"what": "é"}')],
    ),
    "white space alone": ("\n\n", [("message", "\n\n")]),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_becomes_its_items_streamed_and_not(client: openai.OpenAI, name: str) -> None:
    text, expected = ANSWERS[name]
    whole = say(client, text, tools=[TOOL])
    assert [(kind, said.strip()) for kind, said in shown(whole)] == [(kind, said.strip()) for kind, said in expected]
    assert {item.status for item in whole.output} == {"completed"}  # type: ignore[union-attr]
    found = say_streamed(client, text, tools=[TOOL])
    assert found[-1].type == "response.completed"
    assert shown(found[-1].response) == shown(whole)
    assert [event.sequence_number for event in found] == list(range(len(found)))
    check_events(found)


def check_events(found: list[Any]) -> None:
    """Each item begins, grows and ends before the next one, and what is added up is what it is in the end."""
    final = found[-1].response.output
    for at, item in enumerate(final):
        mine = [event for event in found if getattr(event, "output_index", None) == at]
        assert mine[0].type == "response.output_item.added"
        assert mine[0].item.status == "in_progress"
        assert mine[-1].type == "response.output_item.done"
        assert mine[-1].item == item
        assert {event.item_id for event in mine[1:-1]} == {item.id}
        deltas = "".join(event.delta for event in mine if event.type.endswith(".delta"))
        (done,) = [event for event in mine if event.type.endswith(("_text.done", "arguments.done"))]
        if item.type == "function_call":
            assert deltas == done.arguments == item.arguments
        else:
            assert deltas == done.text == item.content[0].text
    order = [event.output_index for event in found if hasattr(event, "output_index")]
    assert order == sorted(order)


def test_tokens_of_thoughts_are_counted(client: openai.OpenAI) -> None:
    usage = say(client, THOUGHT + "So: 4.").usage
    assert usage is not None
    assert 0 < usage.output_tokens_details.reasoning_tokens < usage.output_tokens


def test_thoughts_that_are_cut_off_are_an_incomplete_item(client: openai.OpenAI) -> None:
    found = say(client, THOUGHT + "So: 4.", max_output_tokens=3)
    assert found.status == "incomplete"
    assert [(item.type, item.status) for item in found.output] == [("reasoning", "incomplete")]  # type: ignore[union-attr]


def test_thoughts_go_back_to_the_model_with_the_answer_that_they_led_to(client: openai.OpenAI) -> None:
    first = say(client, THOUGHT + CALL, tools=[TOOL])
    by_id = say(client, "?", previous_response_id=first.id)
    by_items = say(
        client, [{"role": "user", "content": THOUGHT + CALL}, *first.output, {"role": "user", "content": "?"}]
    )
    assert shown(by_id) == shown(by_items)
    assert shown(by_id)[1][1].endswith('hm, 🙂find{"what": "é"}?')  # what the template makes of them


@settings(max_examples=200, deadline=None)
@given(
    pieces=st.lists(
        st.one_of(
            st.builds(lambda text: ("reasoning", text), st.text("ab \n", min_size=1, max_size=4)),
            st.builds(lambda text: ("content", text), st.text("ab \n", min_size=1, max_size=4)),
            st.just(("call", "")),
            st.builds(lambda text: ("arguments", text), st.text("{}", min_size=1, max_size=4)),
        ),
        max_size=12,
    ),
    complete=st.booleans(),
)
def test_events_and_items_are_well_formed_whatever_comes(pieces: list[tuple[str, str]], complete: bool) -> None:
    numbers = itertools.count()
    output = Output("resp_x", lambda: f"call_{next(numbers)}", lambda entries: [])
    found: list[Any] = []
    calls, given = -1, list[tuple[str, str]]()
    for kind, text in pieces:
        if kind == "arguments" and (not given or given[-1][0] not in ("call", "arguments")):
            continue  # they are of the call before them
        given.append((kind, text))
        calls += kind == "call"
        match kind:
            case "reasoning":
                piece = Piece(reasoning=text)
            case "content":
                piece = Piece(content=text)
            case _:
                piece = Piece(calls=(CallDelta(calls, f"f{calls}" if kind == "call" else None, text),))
        found += output.add(piece)
    found += output.end(complete=complete)
    assert [event.sequence_number for event in found] == list(range(len(found)))
    assert output.items
    done = [event.item for event in found if isinstance(event, events.ItemDone)]
    assert done == output.items
    assert len({item.id for item in done}) == len(done)
    statuses = [item.status for item in done]
    assert statuses[:-1] == ["completed"] * (len(done) - 1)
    assert statuses[-1] == ("completed" if complete else "incomplete")
    taken = {"reasoning": events.ReasoningDelta, "arguments": events.ArgumentsDelta}
    for kind, delta in taken.items():
        sent = "".join(event.delta for event in found if isinstance(event, delta))
        assert sent == "".join(text for one, text in given if one == kind)
    content = "".join(event.delta for event in found if isinstance(event, events.TextDelta))
    assert "".join(content.split()) == "".join("".join(text.split()) for kind, text in given if kind == "content")


def test_what_is_sent_is_what_is_described(server: serving.ServerProcess) -> None:
    with httpx.Client(base_url=server.url, headers={"Authorization": "Bearer one"}) as http:
        described = http.get("/openapi.json").json()["paths"]
        schemas = described["/v1/responses"]["post"]["responses"]["200"]["content"]
        include = ["message.output_text.logprobs"]
        body = {"model": "tiny", "input": THOUGHT + "So.\n" + CALL, "tools": [TOOL], "include": include}
        whole = http.post("/v1/responses", json=body).json()
        jsonschema.validate(whole, schemas["application/json"]["schema"])
        assert len(whole["output"]) == 3
        stream = http.post("/v1/responses", json=body | {"stream": True}).text
        told = [json.loads(line.removeprefix("data: ")) for line in stream.splitlines() if line.startswith("data: ")]
        validator = serving.event_validator(schemas["text/event-stream"])
        for event in told:
            validator.validate(event)
        assert len({event["type"] for event in told}) == 13  # all but those of responses that fail or are cut off
        path = f"/v1/responses/{whole['id']}/input_items"
        listed = described["/v1/responses/{response_id}/input_items"]["get"]["responses"]["200"]["content"]
        jsonschema.validate(http.get(path).json(), listed["application/json"]["schema"])


@given(
    tokens=st.lists(st.sampled_from(["a", "bc", ""]), max_size=12),
    end=st.booleans(),
    cuts=st.sets(st.integers(1, 12)),
)
def test_log_probabilities_are_those_of_the_text_however_it_is_cut(
    tokens: list[str], end: bool, cuts: set[int]
) -> None:
    """An empty token begins a character that the next one ends, or is behind the text."""
    pieces = [*tokens, *([""] if end else [])]
    offsets = [len("".join(pieces[:at])) for at in range(len(pieces))]
    parts, found, text = TextAnswer(), list[int](), ""
    borders = sorted({0, len(pieces), *(cut for cut in cuts if cut < len(pieces))})
    for begin, behind in itertools.pairwise(borders):
        delta = Delta()
        for at in range(begin, behind):
            delta.add_token(at, offsets[at])
            delta.add_text(pieces[at])
            delta.logprobs.append(TokenLogprobs([at], [-0.5], [1]))
        piece = parts.add(delta)
        text += piece.content
        assert not piece.logprobs or piece.content
        found += [entry.token_ids[0] for entry in piece.logprobs]
    assert text == "".join(pieces)
    assert found == [at for at, offset in enumerate(offsets) if offset < len(text)]


@given(
    tokens=st.lists(st.sampled_from(["a", "bc", ""]), max_size=12),
    end=st.sampled_from(["eos", "stop string", "shown", "length"]),
    cuts=st.sets(st.integers(1, 12)),
)
def test_a_chats_log_probabilities_are_of_all_tokens_but_what_ended_it_however_it_is_cut(
    tokens: list[str], end: str, cuts: set[int]
) -> None:
    """A stop string's text is held back, and never comes."""
    behind = {"eos": [""], "stop string": ["st", "op"], "shown": ["<end>"], "length": []}[end]
    pieces = [*tokens, *behind]
    offsets = [len("".join(pieces[:at])) for at in range(len(pieces))]
    options = TextOptions(("stop",) if end == "stop string" else (), include_stop=end == "shown")
    parts, found = PlainAnswer(options), list[int]()
    borders = sorted({0, len(pieces), *(cut for cut in cuts if cut < len(pieces))})
    for begin, until in itertools.pairwise(borders):
        delta = Delta()
        for at in range(begin, until):
            delta.add_token(at, offsets[at])
            delta.add_text("" if end == "stop string" and at >= len(tokens) else pieces[at])
            delta.logprobs.append(TokenLogprobs([at], [-0.5], [1]))
        if until == len(pieces):
            delta.finish_reason = "length" if end == "length" else "stop"
            delta.stop_reason = "stop" if end == "stop string" else None
        found += [entry.token_ids[0] for entry in parts.add(delta).logprobs]
    told = len(tokens) + (end == "shown")
    if end == "stop string":  # those without a text in front of it begin where it does
        told = next((at for at in range(len(tokens)) if offsets[at] >= len("".join(tokens))), told)
    assert found == list(range(told))


# --- failures


def test_an_engine_that_fails_in_a_stream_is_told_by_its_last_event(client: openai.OpenAI) -> None:
    found = say_streamed(client, "Übung macht den Meister")
    assert found[-1].type == "response.failed"
    failed = found[-1].response
    assert failed.status == "failed"
    assert failed.error.code == "server_error"
    assert failed.error.message
    assert [event.sequence_number for event in found] == list(range(len(found)))
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(failed.id)


def test_an_engine_that_fails_gives_a_status_where_nothing_was_streamed(client: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError):
        say(client, "Übung macht den Meister")


# --- keys


def test_a_key_reads_follows_and_deletes_its_own_responses_alone(
    client: openai.OpenAI, server: serving.ServerProcess
) -> None:
    mine = say(client, "a secret", extra_body={"request_id": "resp_mine"})
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="two", max_retries=0) as other:
        for attempt in (other.responses.retrieve, other.responses.delete, other.responses.cancel):
            with pytest.raises(openai.NotFoundError):
                attempt(mine.id)
        with pytest.raises(openai.NotFoundError):
            other.responses.input_items.list(mine.id)
        with pytest.raises(openai.BadRequestError) as caught:
            say(other, "?", previous_response_id=mine.id)
        assert caught.value.code == "previous_response_not_found"
        say(other, "another secret", extra_body={"request_id": "resp_mine"})
    assert client.responses.retrieve("resp_mine") == mine
    assert httpx.get(f"{server.url}/v1/responses/resp_mine").status_code == 401


# --- bounds


def test_a_conversation_ends_where_it_does_not_fit_the_model(client: openai.OpenAI) -> None:
    last = say(client, "word " * 20)
    with pytest.raises(openai.BadRequestError) as caught:
        for _ in range(10):
            last = say(client, "word " * 20, previous_response_id=last.id, max_output_tokens=50)
    assert caught.value.param == "input"


def test_what_is_kept_is_bounded_by_the_flags(model: Path) -> None:
    with serving.serve(model, response_store_size=0.01) as process:  # ten thousand bytes
        process.wait_until_ready()
        with openai.OpenAI(base_url=f"{process.url}/v1", api_key="none", max_retries=0) as made:
            ids = [say(made, f"number {at}").id for at in range(8)]
            kept = []
            for one in ids:
                try:
                    kept.append(made.responses.retrieve(one).id)
                except openai.NotFoundError:
                    continue
    assert kept == ids[-len(kept) :]
    assert 1 <= len(kept) < 8


@pytest.mark.parametrize(
    ("query", "param"),
    [({"limit": 0}, "limit"), ({"limit": 101}, "limit"), ({"order": "up"}, "order"), ({"after": "msg_no"}, "after")],
    ids=str,
)
def test_pages_of_items_are_bounded(
    client: openai.OpenAI, server: serving.ServerProcess, query: dict[str, Any], param: str
) -> None:
    found = say(client, "a")
    url = f"{server.url}/v1/responses/{found.id}/input_items"
    answer = httpx.get(url, params=query, headers={"Authorization": "Bearer one"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert answer.json()["error"]["message"].startswith(f"{param}: ")


def test_events_are_not_kept(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="events are not kept"):
        client.responses.retrieve(say(client, "a").id, stream=True)
