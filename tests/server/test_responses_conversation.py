"""What was kept of a conversation is gone on with, whatever the model wrote; or is refused, never a failure."""

import msgspec
import pytest

from octavo_server.errors import RequestError
from octavo_server.frontend.message_fields import AssistantMessage
from octavo_server.frontend.responses_api.conversation import Conversation
from octavo_server.frontend.responses_api.fields import ResponsesRequest
from octavo_server.frontend.responses_api.objects import FunctionCall
from octavo_server.frontend.responses_api.store import Turn
from octavo_server.frontend.responses_api.to_chat import chat_request

REQUEST = ResponsesRequest(model="m", input="Go on.", previous_response_id="resp_1")


@pytest.mark.parametrize("name", ["functions.f", "bad name!", "größe", "", "x" * 10_000])
def test_a_call_is_gone_on_with_whatever_name_the_model_wrote(name: str) -> None:
    first = Conversation.of(ResponsesRequest(model="m", input="Hi"), None)
    turn = first.turn([FunctionCall("fc_1", "call_1", name, "completed", "no JSON")])
    conversation = Conversation.of(REQUEST, turn)
    _, answer, _ = chat_request(REQUEST, conversation.items).messages
    assert isinstance(answer, AssistantMessage)
    assert answer.tool_calls is not None
    assert [(call.function.name, call.function.arguments) for call in answer.tool_calls] == [(name, "no JSON")]


def test_what_cannot_be_gone_on_with_is_refused_by_its_field() -> None:
    for output in (msgspec.json.encode([FunctionCall("x" * 999, "c", "f", "completed")]), b'[{"type": "other"}]', b"["):
        with pytest.raises(RequestError, match="previous_response_id: what was kept") as caught:
            Conversation.of(REQUEST, Turn(None, b"[]", output))
        assert caught.value.param == "previous_response_id"
