"""The grammar of a request's answers: their format, tools that are to be called, or the tokens that they may have."""

from collections.abc import Sequence
from functools import partial
from http import HTTPStatus

from octavo_server.errors import RequestError
from octavo_server.frontend.generation import Caller
from octavo_server.frontend.generation_fields import GenerationRequest
from octavo_server.frontend.parsing import Parsing
from octavo_server.frontend.state import ServerState
from octavo_server.frontend.structured import GrammarSource, Reasoning, grammar_source
from octavo_server.frontend.structured_fields import ResponseFormat, TextFormat
from octavo_server.frontend.tool_schemas import Compile, held_tools
from octavo_server.frontend.tool_use import ToolUse


async def completion_grammar(state: ServerState, request: GenerationRequest, caller: Caller) -> str:
    """Of a request without tools, for `SamplingParams.grammar`; empty where answers are free.

    Raises:
        RequestError: a schema or grammar is wrong; two fields say what the answer must look like.
    """
    source = grammar_source(request.response_format, request.structured_outputs)
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
        return await _compiled(state, request, grammar_source(form, outputs, None, thoughts), caller)
    if outputs is not None or request.allowed_token_ids is not None:
        field = "allowed_token_ids" if outputs is None else "structured_outputs"
        raise RequestError(
            f"{field}: is not allowed together with tools; response_format is, or tool_choice: none", param=field
        )
    if tools.required:
        await _compiled(state, request, grammar_source(form, None, None, thoughts), caller)
    try:
        return await _compiled(state, request, _of_tools(form, parsing, tools, thoughts), caller)
    except RequestError as error:
        if error.status != HTTPStatus.BAD_REQUEST:
            raise
        held = await held_tools(_compiler(state, request, caller), parsing, tools)
        if held == tools:
            raise
    return await _compiled(state, request, _of_tools(form, parsing, held, thoughts), caller)


def _of_tools(
    form: ResponseFormat | None, parsing: Parsing, tools: ToolUse, thoughts: Reasoning | None
) -> GrammarSource | None:
    text = None if tools.required or isinstance(form, TextFormat) else grammar_source(form, None, None, thoughts)
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
    either = f"start: calls | answer\ncalls: %lark {{\n{calls}\n}}\nanswer: %json {text.text}\n"
    return GrammarSource("lark", either, text.param, thoughts)


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


def _compiler(state: ServerState, request: GenerationRequest, caller: Caller) -> Compile:
    """By the caller's turn, and as long as the request has time."""
    deadline = caller.deadline(request.timeout, state.config.request_timeout)
    return partial(state.grammars.compile, caller=caller.salt, deadline=deadline)


def allowed_tokens(ids: Sequence[int]) -> GrammarSource:
    """Answers of nothing but these tokens."""
    listed = ",".join(map(str, sorted(set(ids))))
    return GrammarSource("lark", f"start: (<[{listed}]>)*", "allowed_token_ids")
