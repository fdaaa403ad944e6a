"""From a chat's messages to what is asked of the engine: a prompt, and a grammar where one is needed."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from octavo_server.errors import RequestError
from octavo_server.frontend.answer_grammar import chat_grammar
from octavo_server.frontend.generation import Caller, Generation, Wanted
from octavo_server.frontend.json_bounds import check_bounds
from octavo_server.frontend.message_fields import AssistantMessage, Message, RefusalPart
from octavo_server.frontend.model import ServedModel
from octavo_server.frontend.openai import ChatCompletionRequest
from octavo_server.frontend.parsing import Parsing
from octavo_server.frontend.state import ServerState
from octavo_server.frontend.text.chat_template import ChatTemplate
from octavo_server.frontend.tool_use import ToolUse, tool_use
from octavo_server.frontend.truncation import prompt_ids

ENCODE_HERE: Final = 16 * 1024  # characters of a prompt that the thread which renders it tokenizes, too: milliseconds
_OF_ANSWERS = {"refusal", "annotations", "audio", "function_call", "parsed"}  # they say nothing to a model


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
    alone = bool(request.add_special_tokens)
    text, short = await _short_prompt(request, model, tools.shown, alone=alone)
    hidden = () if request.skip_special_tokens is False else model.hidden_markers
    parsing = Parsing(model.format, tools.callable, model.format.opens_reasoning(text), hidden, tools.required)
    needed = bool(tools.callable) or model.format.supports_reasoning
    grammar = await chat_grammar(state, request, parsing, tools, caller)
    ids = await prompt_ids(state, request, [text], "messages", alone=alone) if short is None else [short]
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
    request: ChatCompletionRequest, model: ServedModel, tools: Sequence[Mapping[str, Any]] | None = None
) -> str:
    """The prompt, beside the event loop; with these tools, as templates take them.

    Raises:
        RequestError: the model has no template, or its template refuses the messages.
    """
    return await _template(model).in_thread(_rendering(request, model, tools))


async def _short_prompt(
    request: ChatCompletionRequest, model: ServedModel, tools: Sequence[Mapping[str, Any]] | None, *, alone: bool
) -> tuple[str, list[int] | None]:
    """The prompt and, where it is short, its tokens: a turn of a thread costs as much as to make them.

    Raises:
        RequestError: as `chat_text` does.
    """
    render = _rendering(request, model, tools)

    def made() -> tuple[str, list[int] | None]:
        text = render()
        if len(text) > ENCODE_HERE or request.truncate_prompt_tokens is not None:
            return text, None
        return text, model.tokenizer.encode(text, add_special_tokens=alone)

    return await _template(model).in_thread(made)


def _rendering(
    request: ChatCompletionRequest, model: ServedModel, tools: Sequence[Mapping[str, Any]] | None
) -> Callable[[], str]:
    """What renders the prompt."""
    template = _template(model)
    variables = template_variables(request, template, thinks=model.format.supports_reasoning)
    return partial(_render, template, request, tools, variables)


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


def _render(
    template: ChatTemplate,
    request: ChatCompletionRequest,
    tools: Sequence[Mapping[str, Any]] | None,
    variables: Mapping[str, Any],
) -> str:
    continues = bool(request.continue_final_message)
    return template.render(
        messages_for(template, request.messages),
        tools=tools,
        variables=variables,
        add_generation_prompt=not continues and request.add_generation_prompt is not False,
        continue_final_message=continues,
    )


def messages_for(template: ChatTemplate, messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as templates expect them."""
    return [_for_template(message, template.knows_developer_role) for message in messages]


def _for_template(message: Message, knows_developer_role: bool) -> dict[str, Any]:
    """Tool arguments as objects, an earlier refusal as what was said, no fields that answers alone have."""
    plain = {name: value for name, value in message.model_dump(exclude_unset=True).items() if name not in _OF_ANSWERS}
    if message.role == "developer" and not knows_developer_role:
        plain["role"] = "system"
    if isinstance(message.content, list):
        plain["content"] = [
            {"type": "text", "text": part.refusal if isinstance(part, RefusalPart) else part.text}
            for part in message.content
        ]
    return _answer_for_template(message, plain) if isinstance(message, AssistantMessage) else plain


def _answer_for_template(message: AssistantMessage, plain: dict[str, Any]) -> dict[str, Any]:
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
            "function": {"name": call.function.name, "arguments": call_arguments(call.function.arguments)},
        }
        for call in message.tool_calls
    ]
    return plain


def call_arguments(text: str) -> dict[str, Any] | str:
    """The arguments of a call, as templates take them; the text itself where it is no JSON object.

    A model may write what is none, and its call must not end the conversation. Python's parser takes numbers that JSON
    does not have, and halves of surrogate pairs, which no prompt can hold: strictly, there are none.

    Raises:
        RequestError: they hold too many values.
    """
    if not text.strip():
        return {}
    check_bounds(text.encode("utf-8", "surrogatepass"), "messages")
    try:
        arguments = json.loads(text)
        json.dumps(arguments, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
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
