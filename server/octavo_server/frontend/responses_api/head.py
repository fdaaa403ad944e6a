"""What a response says besides its output: whose it is, and what was asked for."""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from msgspec import Raw
from pydantic import BaseModel

from octavo_server.frontend import responses
from octavo_server.frontend.chat_prompt import PreparedChat
from octavo_server.frontend.responses_api.conversation import Conversation
from octavo_server.frontend.responses_api.fields import ResponsesRequest
from octavo_server.frontend.responses_api.objects import (
    Asked,
    IncompleteDetails,
    InputTokensDetails,
    OutputItem,
    OutputTokensDetails,
    Response,
    Usage,
)
from octavo_server.frontend.state import ServerState
from octavo_server.frontend.text_threads import SHORT_TEXT


class Head:
    """Of one response."""

    def __init__(
        self, state: ServerState, request: ResponsesRequest, prepared: PreparedChat, conversation: Conversation
    ) -> None:
        """Its work grows with schemas and instructions: the event loop calls `prepare` instead."""
        self.request = request
        self.conversation = conversation
        self.id = f"resp_{(request.request_id or prepared.generation.id).removeprefix('resp_')}"
        self._state = state
        self._created_at = state.now()
        self._asked = _asked(request, prepared)

    @classmethod
    async def prepare(
        cls, state: ServerState, request: ResponsesRequest, prepared: PreparedChat, conversation: Conversation
    ) -> "Head":
        """Make one, beside the event loop if it is much work."""
        if not request.tools and request.text is None and len(request.instructions or "") <= SHORT_TEXT:
            return cls(state, request, prepared, conversation)
        return await state.in_thread(cls, state, request, prepared, conversation)

    def response(
        self, status: Literal["in_progress", "completed", "incomplete", "failed"], output: Sequence[OutputItem]
    ) -> Response:
        """The response as it is now."""
        return Response(
            **msgspec.structs.asdict(self._asked),
            id=self.id,
            created_at=self._created_at,
            model=self._state.names[0],
            status=status,
            output=list(output),
        )

    def ended(self, output: Sequence[OutputItem], usage: responses.Usage, thoughts: int, *, complete: bool) -> Response:
        """The response at its end. `thoughts`: tokens of them."""
        found = self.response("completed" if complete else "incomplete", output)
        found.usage = Usage(
            usage.prompt_tokens,
            InputTokensDetails(usage.prompt_tokens_details.cached_tokens),
            usage.completion_tokens,
            OutputTokensDetails(thoughts),
            usage.total_tokens,
        )
        if complete:
            found.completed_at = self._state.now()
        else:
            found.incomplete_details = IncompleteDetails("max_output_tokens")
        return found


def _asked(request: ResponsesRequest, prepared: PreparedChat) -> Asked:
    defaults = prepared.generation.model.defaults
    text = {} if request.text is None else _plain(request.text)
    reasoning = {} if request.reasoning is None else _plain(request.reasoning)
    return Asked(
        instructions=_raw(request.instructions),
        metadata=_raw(request.metadata or {}),
        reasoning=_raw({"effort": None, "summary": None} | reasoning),
        text=_raw({"format": {"type": "text"}} | text),
        tool_choice=_raw(request.tool_choice or "auto"),
        tools=_raw([{"parameters": None} | _plain(tool) for tool in request.tools or ()]),
        max_output_tokens=request.max_output_tokens,
        max_tool_calls=request.max_tool_calls,
        parallel_tool_calls=request.parallel_tool_calls is not False,
        previous_response_id=request.previous_response_id,
        prompt_cache_key=request.prompt_cache_key,
        safety_identifier=request.safety_identifier,
        store=request.is_stored,
        temperature=defaults.temperature if request.temperature is None else request.temperature,
        top_logprobs=request.top_logprobs or 0,
        top_p=defaults.top_p if request.top_p is None else request.top_p,
        user=request.user,
    )


def _plain(value: BaseModel) -> dict[str, Any]:
    return value.model_dump(exclude_none=True, by_alias=True)


def _raw(value: Any) -> Raw:
    return Raw(msgspec.json.encode(_plain(value) if isinstance(value, BaseModel) else value))
