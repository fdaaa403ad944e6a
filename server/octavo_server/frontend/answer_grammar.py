"""The grammar of a request's answers: their format, tools that are to be called, or the tokens that they may have."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from http import HTTPStatus
from typing import Final, TypeVar

import msgspec

from octavo_server.errors import RequestError
from octavo_server.frontend.generation import Caller
from octavo_server.frontend.generation_fields import GenerationRequest
from octavo_server.frontend.parsing import Parsing
from octavo_server.frontend.state import ServerState
from octavo_server.frontend.structured import GrammarSource, Reasoning, grammar_source
from octavo_server.frontend.structured_fields import (
    MAX_SCHEMA_BYTES,
    JsonSchemaFormat,
    ResponseFormat,
    StructuredOutputs,
    has_format,
)
from octavo_server.frontend.text.output_parsers import Tool
from octavo_server.frontend.text.output_parsers.lark import MOST_SAID
from octavo_server.frontend.tool_schemas import held_tools
from octavo_server.frontend.tool_use import ToolUse

T = TypeVar("T")
_READ_HERE: Final = 16 * 1024  # bytes of schemas that the event loop reads itself: a few milliseconds
_COPIED: Final = 64  # bytes of an argument that refers to others, and of such a reference, multiplied; at the least
MAX_TOOLS_BYTES: Final = 4 * MAX_SCHEMA_BYTES  # of the schemas of all tools that a grammar holds


async def completion_grammar(state: ServerState, request: GenerationRequest, caller: Caller) -> str:
    """Of a request without tools, for `SamplingParams.grammar`; empty where answers are free.

    Raises:
        RequestError: a schema or grammar is wrong; two fields say what the answer must look like.
    """
    form, outputs = request.response_format, request.structured_outputs
    source = await _read(state, _length(form, outputs), partial(grammar_source, form, outputs))
    return await _compiled(state, request, source, caller)


async def chat_grammar(
    state: ServerState, request: GenerationRequest, parsing: Parsing, tools: ToolUse, caller: Caller
) -> str:
    """Of a chat, whose model may think first.

    Where tools may be called and the answer has a format, it is a call or has the format, as OpenAI has it; where they
    must be called there is no text for the format, which is looked at all the same. A schema that no grammar can hold
    is not held, unless its tool is strict.

    Raises:
        RequestError: as for completions; tools are given together with a grammar that is no JSON schema.
    """
    markers = parsing.format.reasoning_markers
    thoughts = None if markers is None else Reasoning(*markers, is_open=parsing.reasoning_open)
    form, outputs = request.response_format, request.structured_outputs
    if not tools.callable:
        source = await _read(state, _length(form, outputs), partial(grammar_source, form, outputs, None, thoughts))
        return await _compiled(state, request, source, caller)
    if outputs is not None or request.allowed_token_ids is not None:
        field = "allowed_token_ids" if outputs is None else "structured_outputs"
        raise RequestError(
            f"{field}: is not allowed together with tools; response_format is, or tool_choice: none", param=field
        )
    if tools.required:
        source = await _read(state, _length(form, None), partial(grammar_source, form, None, None, thoughts))
        await _compiled(state, request, source, caller)
    required = tools.required or has_format(form)
    if not parsing.format.forces_calls(tools.callable, required=required, parallel=tools.parallel):
        return await _compiled(state, request, None, caller)
    length = _length(form, None, tools.callable)
    if length > MAX_TOOLS_BYTES:
        raise RequestError(f"tools: their schemas have {length} bytes, {MAX_TOOLS_BYTES} at most", param="tools")
    weight = _weight(parsing, length)
    try:
        source = await _read(state, weight, partial(_of_tools, form, parsing, tools, thoughts))
        return await _compiled(state, request, source, caller)
    except RequestError as error:
        if error.status != HTTPStatus.BAD_REQUEST:
            raise
        held = await held_tools(partial(_one_call, state, request, parsing, caller), tools)
        if held == tools:
            raise
    source = await _read(state, weight, partial(_of_tools, form, parsing, held, thoughts))
    return await _compiled(state, request, source, caller)


async def _one_call(
    state: ServerState, request: GenerationRequest, parsing: Parsing, caller: Caller, tool: Tool, param: str
) -> None:
    """Compiles what forces calls of this tool. Raises RequestError, `param` is the field of its schema."""
    make = partial(parsing.format.call_grammar, [tool], required=True, parallel=False)
    if (call := await _read(state, _weight(parsing, _length(None, None, [tool])), make)) is not None:
        await _compiler(state, request, caller)(GrammarSource("lark", call, param))


def _of_tools(
    form: ResponseFormat | None, parsing: Parsing, tools: ToolUse, thoughts: Reasoning | None
) -> GrammarSource | None:
    text = grammar_source(form, None, None, thoughts) if has_format(form) and not tools.required else None
    required = tools.required or text is not None
    calls = parsing.format.call_grammar(tools.callable, required=required, parallel=tools.parallel)
    if text is None:
        return grammar_source(None, None, calls, thoughts)
    if calls is None:
        raise RequestError(
            "response_format: the calls of this model cannot be told from an answer in a format; leave out tools, or "
            "the format",
            param="response_format",
        )
    return GrammarSource("lark", parsing.format.call_or_json(calls, text.text), text.param, thoughts)


def _length(form: ResponseFormat | None, outputs: StructuredOutputs | None, tools: Sequence[Tool] = ()) -> int:
    """Bytes of the schemas and texts that a grammar is made of."""
    schema = form.json_schema.schema_ if isinstance(form, JsonSchemaFormat) else None
    texts = None if outputs is None else (outputs.json_, outputs.choice)
    return len(msgspec.json.encode((schema, texts, [tool.parameters for tool in tools])))


def _weight(parsing: Parsing, length: int) -> int:
    """Of schemas of tools, in bytes as `_read` counts them: formats that are no JSON copy what arguments refer to.

    The more arguments there are, and the more they refer to: a square.
    """
    return length if parsing.format.supports_strict else length + min(length**2 // _COPIED, MOST_SAID)


async def _read(state: ServerState, length: int, make: Callable[[], T]) -> T:
    """What is made of schemas of this length, beside the event loop if it is long."""
    return make() if length <= _READ_HERE else await state.text_threads.run_on_text(length, make)


async def _compiled(
    state: ServerState, request: GenerationRequest, source: GrammarSource | None, caller: Caller
) -> str:
    if request.allowed_token_ids is not None:
        if source is not None:
            raise RequestError(
                "allowed_token_ids: is not allowed together with what else says how the answer must look",
                param="allowed_token_ids",
            )
        source = allowed_tokens(request.allowed_token_ids)
    if source is None:
        return ""
    return await _compiler(state, request, caller)(source)


def _compiler(
    state: ServerState, request: GenerationRequest, caller: Caller
) -> Callable[[GrammarSource], Awaitable[str]]:
    """By the caller's turn, and as long as the request has time."""
    deadline = caller.deadline(request.timeout, state.config.request_timeout)
    return partial(state.grammars.compile, caller=caller.salt, deadline=deadline)


def allowed_tokens(ids: Sequence[int]) -> GrammarSource:
    """Answers of nothing but these tokens."""
    listed = ",".join(map(str, sorted(set(ids))))
    return GrammarSource("lark", f"start: (<[{listed}]>)*", "allowed_token_ids")
