"""A response's request as the chat that it is: fields get their names in chats."""

import re
from collections.abc import Sequence
from typing import Any, Final

from pydantic import ValidationError

from octavo_server.errors import RequestError
from octavo_server.frontend.message_fields import Message
from octavo_server.frontend.openai import ChatCompletionRequest
from octavo_server.frontend.refusal import validation_error
from octavo_server.frontend.responses_api.fields import ResponsesRequest, SchemaFormat
from octavo_server.frontend.responses_api.item_fields import Item
from octavo_server.frontend.responses_api.item_messages import messages
from octavo_server.frontend.responses_api.tool_fields import AllowedTools, NamedFunction
from octavo_server.frontend.structured_fields import JsonSchemaFormat, NamedSchema
from octavo_server.frontend.tool_fields import FunctionDefinition, FunctionTool

# Fields that mean the same in both.
_SAME: Final = (
    "model",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "min_tokens",
    "skip_special_tokens",
    "include_stop_str_in_output",
    "structured_outputs",
    "chat_template_kwargs",
    "priority",
    "cache_salt",
    "timeout",
    "stream",
    "parallel_tool_calls",
    "request_id",
)
# How errors of chats name a field, and how it is called here.
_NAMES: Final = (
    (r"^messages(\[.*)?$", "input"),
    (r"^(max_completion_tokens|max_tokens)$", "max_output_tokens"),
    (r"^response_format\.json_schema\.schema", "text.format.schema"),
    (r"^response_format", "text.format"),
    (r"^reasoning_effort$", "reasoning.effort"),
    (r"^verbosity$", "text.verbosity"),
    (r"^(tools\[\d+\])\.function", r"\1"),
)


def chat_request(request: ResponsesRequest, items: Sequence[Item]) -> ChatCompletionRequest:
    """The chat. `items`: the whole conversation, the request's own at its end.

    Raises:
        RequestError: they are no chat.
    """
    text, reasoning = request.text, request.reasoning
    fields = {name: value for name in _SAME if (value := getattr(request, name)) is not None}
    fields |= {
        "messages": _checked_messages(request.instructions, items),
        "max_completion_tokens": request.max_output_tokens,
        "logprobs": request.num_logprobs is not None or None,
        "top_logprobs": request.num_logprobs,
        "tools": tools(request),
        "tool_choice": _tool_choice(request),
        "response_format": _format(request),
        "reasoning_effort": None if reasoning is None else reasoning.effort,
        "verbosity": None if text is None else text.verbosity,
    }
    try:
        return ChatCompletionRequest(**{name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        found = validation_error(error.errors(include_url=False), fields)
        raise renamed(RequestError(found.message, param=found.param)) from error


def renamed(error: RequestError) -> RequestError:
    """An error of a chat's, in the words of responses."""
    param, message = error.param, error.message
    for pattern, name in _NAMES:
        if param is not None and (found := re.sub(pattern, name, param, count=1)) != param:
            message = message.replace(param, found, 1)
            param = found
            break
    return RequestError(
        message.replace("lower max_tokens", "lower max_output_tokens"),
        param=param,
        code=error.code,
        status=error.status,
        type=error.type,
        retry_after=error.retry_after,
    )


def _checked_messages(instructions: str | None, items: Sequence[Item]) -> list[Message]:
    """Items that are within their bounds may make a message together that is not."""
    try:
        return messages(instructions, items)
    except ValidationError as error:
        found = validation_error(error.errors(include_url=False), {})
        raise RequestError(f"input: {found.message}", param="input") from error


def tools(request: ResponsesRequest) -> list[FunctionTool] | None:
    """The chat's. They have been checked: schemas are too large to be checked twice."""
    return [
        FunctionTool.model_construct(
            type="function",
            function=FunctionDefinition.model_construct(
                name=tool.name, description=tool.description, parameters=tool.parameters, strict=tool.strict
            ),
        )
        for tool in request.tools or ()
    ] or None


def _tool_choice(request: ResponsesRequest) -> Any:
    match request.tool_choice:
        case "none" | "auto" if not request.tools:  # which OpenAI's chats refuse, and responses do not
            return None
        case NamedFunction() as named:
            return {"type": "function", "function": {"name": named.name}}
        case AllowedTools() as some:
            tools = [{"type": "function", "function": {"name": tool.name}} for tool in some.tools]
            return {"type": "allowed_tools", "allowed_tools": {"mode": some.mode, "tools": tools}}
    return request.tool_choice


def _format(request: ResponsesRequest) -> Any:
    given = None if request.text is None else request.text.format
    if not isinstance(given, SchemaFormat):
        return given
    fields: dict[str, Any] = {"name": given.name, "schema": given.schema_}
    return JsonSchemaFormat(type="json_schema", json_schema=NamedSchema.model_construct(**fields))
