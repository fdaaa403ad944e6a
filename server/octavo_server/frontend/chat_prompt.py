"""From a chat's messages to what is asked of the engine: a prompt, and a grammar where one is needed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import msgspec

from octavo_server.errors import RequestError
from octavo_server.frontend.answer_grammar import chat_grammar
from octavo_server.frontend.generation import Caller, Generation, Wanted
from octavo_server.frontend.json_bounds import JSONBounds, NumberTooLong
from octavo_server.frontend.message_fields import AssistantMessage, Message, RefusalPart
from octavo_server.frontend.model import ServedModel
from octavo_server.frontend.openai import ChatCompletionRequest
from octavo_server.frontend.parsing import Parsing
from octavo_server.frontend.state import ServerState
from octavo_server.frontend.structured_fields import has_format
from octavo_server.frontend.text.chat_template import ChatTemplate
from octavo_server.frontend.text.line_process import as_line
from octavo_server.frontend.text_threads import SHORT_TEXT
from octavo_server.frontend.tool_use import ToolUse, tool_use
from octavo_server.frontend.truncation import prompt_ids

_PER_MESSAGE: Final = 64  # characters that a message, or a part or call in it, counts besides its text
ASK_HERE: Final = 8 * 1024  # characters, and messages by their count, that the event loop sends: half a millisecond
_OF_ANSWERS: Final = frozenset(  # they say nothing to a model
    {"refusal", "annotations", "audio", "function_call", "parsed"}
    | {"images", "thinking_blocks", "provider_specific_fields"}
)


@dataclass(frozen=True, slots=True)
class PreparedChat:
    """A chat that can be sent. `parsing`: None where all of an answer's text is content. `echo`: what precedes it."""

    generation: Generation
    parsing: Parsing | None
    tools: ToolUse
    echo: str


async def prepare_chat(state: ServerState, request: ChatCompletionRequest, caller: Caller) -> PreparedChat:
    """Render and tokenize the messages, beside the event loop.

    Raises:
        RequestError: the messages cannot be rendered, the prompt does not fit, the model cannot do what is asked for, a
            schema or grammar is wrong; the server is full.
    """
    model, _ = state.serving(request.model)
    caller.place.take(request.num_choices)
    tools = tool_use(request, model)
    if request.truncate_prompt_tokens is None:  # else what is too long is cut
        await state.check_texts(model, shown_texts(request.messages), "messages")
    text = await chat_text(request, model, caller.salt, tools.shown)
    # In an answer that has a format no token is special: what spells a marker there is text.
    all_text = request.structured_outputs is not None or has_format(request.response_format)
    hidden = () if request.skip_special_tokens is False or all_text else model.hidden_markers
    parsing = Parsing(model.format, tools.callable, model.format.opens_reasoning(text), hidden, tools.required)
    needed = bool(tools.callable) or model.format.supports_reasoning
    grammar = await chat_grammar(state, request, parsing, tools, caller)
    ids = await prompt_ids(state, request, [text], "messages", alone=bool(request.add_special_tokens))
    wanted = Wanted(
        request.token_limit,
        default=None,
        param="messages",
        grammar=grammar,
        kept=model.kept_ids if needed else frozenset(),
    )
    generation = await Generation.prepare(state, request, ids, wanted, caller)
    return PreparedChat(generation, parsing if needed else None, tools, _echo(request))


async def chat_text(
    request: ChatCompletionRequest,
    model: ServedModel,
    caller: bytes,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> str:
    """The prompt, beside the event loop; with these tools, as templates take them. caller: who takes turns with others.

    Raises:
        RequestError: the model has no template, or its template refuses the messages.
    """
    template = _template(model)
    variables = template_variables(request, template, thinks=model.format.supports_reasoning)
    length = sum(map(_length, request.messages))
    if length <= SHORT_TEXT and request.tools:
        length += sum(tool.length for tool in request.tools)
    asked = partial(_question, template, request, tools, variables)
    here = (lambda: as_line(asked())) if length <= ASK_HERE else None
    return await template.in_turn(caller, length, lambda: template.asked(asked()), here)


def _length(message: Message) -> int:
    """Characters that it takes to render it, about."""
    parts = message.content if isinstance(message.content, list) else ()
    length = _PER_MESSAGE + sum(
        _PER_MESSAGE + len(part.refusal if isinstance(part, RefusalPart) else part.text) for part in parts
    )
    if isinstance(message.content, str):
        length += len(message.content)
    if isinstance(message, AssistantMessage):
        length += len(message.reasoning_content or message.reasoning or "") + len(message.refusal or "")
        length += sum(
            _PER_MESSAGE + len(call.function.name) + len(call.function.arguments) for call in message.tool_calls or ()
        )
    return length


def template_variables(request: ChatCompletionRequest, template: ChatTemplate, *, thinks: bool) -> dict[str, Any]:
    """What the template is given besides messages and tools. `chat_template_kwargs` count first.

    Raises:
        RequestError: something is asked for that the template does not know.
    """
    found: dict[str, Any] = {}
    knows = template.variables
    if request.reasoning_effort is not None:
        found |= _effort(request.reasoning_effort, knows, thinks=thinks)
    if request.verbosity is not None and "verbosity" in knows:
        found["verbosity"] = request.verbosity
    elif request.verbosity not in (None, "medium"):
        raise RequestError("verbosity: this model knows one way to talk; leave it out", param="verbosity")
    if request.documents is not None:
        if "documents" not in knows:
            raise RequestError("documents: this model's chat template has no place for them", param="documents")
        found["documents"] = request.documents
    return found | (request.chat_template_kwargs or {})


def _effort(effort: str, knows: frozenset[str], *, thinks: bool) -> Mapping[str, Any]:
    """Templates have a variable for how much to think, or a switch, or neither."""
    found: dict[str, Any] = {name: effort != "none" for name in ("enable_thinking", "thinking") if name in knows}
    if "reasoning_effort" in knows:
        found["reasoning_effort"] = effort
    if not found and (thinks or effort != "none"):
        how = "always thinks as much as it likes" if thinks else "does not think before it answers"
        raise RequestError(f"reasoning_effort: this model {how}; leave it out", param="reasoning_effort")
    return found


def _template(model: ServedModel) -> ChatTemplate:
    template = model.chat_template
    if template is None:
        raise RequestError(
            "this model has no chat template: use /v1/completions, or add a chat_template.jinja to its directory",
            param="messages",
            code="no_chat_template",
        )
    return template


def _question(
    template: ChatTemplate,
    request: ChatCompletionRequest,
    tools: Sequence[Mapping[str, Any]] | None,
    variables: Mapping[str, Any],
) -> dict[str, Any]:
    continues = bool(request.continue_final_message)
    return template.question(
        messages_for(template, request.messages),
        tools=tools,
        variables=variables,
        add_generation_prompt=not continues and request.add_generation_prompt is not False,
        continue_final_message=continues,
    )


def shown_texts(messages: Sequence[Message]) -> list[str]:
    """What a template shows of messages in any case: of earlier answers it may leave out the thoughts."""
    found: list[str] = []
    for message in messages:
        if isinstance(message.content, str):
            found.append(message.content)
        elif not isinstance(message, AssistantMessage):
            found += (part.text for part in message.content)
    return found


def messages_for(template: ChatTemplate, messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as templates expect them.

    Raises:
        RequestError: the arguments of their calls hold too many values.
    """
    bounds = JSONBounds("messages")
    return [_for_template(message, template.knows_developer_role, bounds) for message in messages]


def _for_template(message: Message, knows_developer_role: bool, bounds: JSONBounds) -> dict[str, Any]:
    """Tool arguments as objects, an earlier refusal as what was said, no fields that answers alone have."""
    plain = {name: value for name, value in message.model_dump(exclude_unset=True).items() if name not in _OF_ANSWERS}
    if message.role == "developer" and not knows_developer_role:
        plain["role"] = "system"
    if isinstance(message.content, list):
        plain["content"] = [
            {"type": "text", "text": part.refusal if isinstance(part, RefusalPart) else part.text}
            for part in message.content
        ]
    return _answer_for_template(message, plain, bounds) if isinstance(message, AssistantMessage) else plain


def _answer_for_template(message: AssistantMessage, plain: dict[str, Any], bounds: JSONBounds) -> dict[str, Any]:
    if message.content is None:
        plain["content"] = message.refusal or (None if message.tool_calls else "")
    thoughts = message.reasoning_content or message.reasoning
    if thoughts:
        plain |= {"reasoning": thoughts, "reasoning_content": thoughts}
    if not message.tool_calls:
        plain.pop("tool_calls", None)
        return plain
    plain["tool_calls"] = [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.function.name, "arguments": call_arguments(call.function.arguments, bounds)},
        }
        for call in message.tool_calls
    ]
    return plain


def call_arguments(text: str, bounds: JSONBounds | None = None) -> dict[str, Any] | str:
    """The arguments of a call, as templates take them; the text itself where it is no JSON object.

    A model may write what is none, and its call must not end the conversation. Numbers that JSON does not have or
    that are too long, and halves of surrogate pairs, which no prompt can hold, are none. bounds: for all calls of a
    request together.

    Raises:
        RequestError: they hold too many values.
    """
    if not text.strip():
        return {}
    try:
        (bounds or JSONBounds("messages")).add(text.encode("utf-8", "surrogatepass"))
    except NumberTooLong:
        return text
    try:
        arguments = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return text
    return arguments if isinstance(arguments, dict) else text


def _echo(request: ChatCompletionRequest) -> str:
    """The text that an answer goes on with, where it is to be repeated."""
    last = request.messages[-1]
    begins_anew = not request.continue_final_message and request.add_generation_prompt is not False
    if not request.echo or begins_anew or not isinstance(last, AssistantMessage) or last.content is None:
        return ""
    if isinstance(last.content, str):
        return last.content
    return "\n".join(part.refusal if isinstance(part, RefusalPart) else part.text for part in last.content)
