"""Which tools a chat's model is shown, which of them it may call, and whether it must."""

from dataclasses import dataclass
from typing import Any

from octavo_server.errors import RequestError
from octavo_server.frontend.model import ServedModel
from octavo_server.frontend.openai import ChatCompletionRequest
from octavo_server.frontend.text.output_parsers import Tool
from octavo_server.frontend.tool_fields import AllowedToolsChoice, FunctionDefinition, FunctionTool, NamedTool

_NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class ToolUse:
    """`shown`: the tools as templates take them, None without any. `named`: one tool was asked for by its name."""

    shown: list[dict[str, Any]] | None = None
    callable: tuple[Tool, ...] = ()
    required: bool = False
    named: bool = False
    parallel: bool = True


def tool_use(request: ChatCompletionRequest, model: ServedModel) -> ToolUse:
    """What a request says of tools. With `tool_choice: "none"` the model sees none, and so calls none.

    Raises:
        RequestError: the model cannot use tools, or cannot be made to.
    """
    tools, choice = request.tools or [], request.tool_choice
    if not tools or choice == "none":
        return ToolUse()
    _check(model, required=_is_required(request))
    names = set(request.chosen_names)
    allowed = [(index, tool) for index, tool in enumerate(tools) if not names or tool.function.name in names]
    # A tool that is only not allowed now is not shown; where one is named, the others say what it is one of.
    shown = [tool for _, tool in allowed] if isinstance(choice, AllowedToolsChoice) else tools
    return ToolUse(
        shown=[_for_template(tool) for tool in shown],
        callable=tuple(_tool(tool.function, index) for index, tool in allowed),
        required=_is_required(request),
        named=isinstance(choice, NamedTool),
        parallel=request.parallel_tool_calls is not False and not isinstance(choice, NamedTool),
    )


def shown_tools(tools: list[FunctionTool], model: ServedModel) -> list[dict[str, Any]] | None:
    """Tools as the template takes them, of which nobody asks whether they are called; None without any.

    Raises:
        RequestError: the template has no place for them.
    """
    if tools:
        _check_template(model)
    return [_for_template(tool) for tool in tools] or None


def _is_required(request: ChatCompletionRequest) -> bool:
    match request.tool_choice:
        case "required" | NamedTool():
            return True
        case AllowedToolsChoice() as some:
            return some.allowed_tools.mode == "required"
    return False


def _check(model: ServedModel, *, required: bool) -> None:
    _check_template(model)
    if not model.format.supports_tools:
        raise RequestError(
            "tools: how this model writes its calls is not known from its chat template; "
            "the server's owner can say it by --tool-call-parser",
            param="tools",
        )
    if required and not model.format.supports_required:
        raise RequestError(
            'tool_choice: calls in this model\'s format cannot be forced; "auto" and "none" are possible',
            param="tool_choice",
        )


def _check_template(model: ServedModel) -> None:
    if model.chat_template is not None and not model.chat_template.knows_tools:
        raise RequestError("tools: this model's chat template has no place for tools", param="tools")


def _for_template(tool: FunctionTool) -> dict[str, Any]:
    """As models saw tools in training; `strict` is about decoding."""
    function = tool.function.model_dump(include={"name", "description", "parameters"}, exclude_none=True)
    function.setdefault("parameters", {"type": "object", "properties": {}})
    return {"type": "function", "function": function}


def _tool(function: FunctionDefinition, index: int) -> Tool:
    parameters = _NO_ARGUMENTS if function.parameters is None else function.parameters
    return Tool(function.name, parameters, bool(function.strict), index)
