"""Tools whose schemas no grammar can hold: found out one by one, where the grammar of all of them cannot be served."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import Any, Final

from octavo_server.errors import RequestError
from octavo_server.frontend.text.output_parsers import Tool
from octavo_server.frontend.tool_use import ToolUse

OneCall = Callable[[Tool, str], Awaitable[None]]  # raises RequestError, if no grammar holds its schema, of this field
_PATIENCE_SECONDS: Final = 3.0  # each schema may take as long to compile as all together should


async def held_tools(compile_one: OneCall, tools: ToolUse) -> ToolUse:
    """The tools with what can be held of their schemas: of one that is not strict, the names of its arguments at least.

    Those that could not be looked at in time stay as they are.

    Raises:
        RequestError: a strict one's cannot be held, `param` says which; or what `compile_one` raises but for that.
    """
    until, found = asyncio.get_running_loop().time() + _PATIENCE_SECONDS, list(tools.callable)
    for position, tool in enumerate(found):
        if asyncio.get_running_loop().time() > until:
            break
        refusal = await _refusal(compile_one, tool)
        if refusal is not None and tool.strict:
            raise refusal
        if refusal is not None:
            found[position] = replace(tool, parameters=_loose(tool.parameters))
    return replace(tools, callable=tuple(found))


async def _refusal(compile_one: OneCall, tool: Tool) -> RequestError | None:
    param = f"tools[{tool.index}].function.parameters"
    try:
        await compile_one(tool, param)
    except RequestError as error:
        if error.status != HTTPStatus.BAD_REQUEST:
            raise
        return RequestError(f"{param}: {error.message.partition(': ')[2]}", param=param)
    return None


def _loose(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A schema of the same names, whose values may be anything; of any, where not `properties` alone names them."""
    named, required = parameters.get("properties"), parameters.get("required")
    if not isinstance(named, Mapping) or {"$ref", "allOf", "anyOf", "oneOf"} & parameters.keys():
        return {"type": "object", "additionalProperties": True}
    needed = [name for name in required if name in named] if isinstance(required, list) else []
    return {"type": "object", "properties": {key: {} for key in named}, "required": needed}
