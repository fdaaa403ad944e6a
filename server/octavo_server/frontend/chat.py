"""POST /v1/chat/completions: messages to a prompt, and the answer as one object or a stream of chunks."""

import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from msgspec import UNSET

from octavo_server.errors import RequestError
from octavo_server.frontend.answer import Answer, Delta
from octavo_server.frontend.generation import Caller, Generation, Lengths
from octavo_server.frontend.logprobs import chat_logprobs, described_prompt
from octavo_server.frontend.message_fields import AssistantMessage, Message
from octavo_server.frontend.model import ServedModel
from octavo_server.frontend.openai import ChatCompletionRequest
from octavo_server.frontend.responses import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
    encode,
)
from octavo_server.frontend.responses import Delta as ChunkDelta
from octavo_server.frontend.responses import Message as AnswerMessage
from octavo_server.frontend.sse import DONE, TextFrames, frame
from octavo_server.frontend.state import ServerState
from octavo_server.frontend.text.chat_template import ChatTemplate
from octavo_server.ipc import TokenLogprobs

_ANSWER_ONLY = {"refusal", "annotations", "audio", "function_call"}


class Chat:
    """One chat request that has been checked and tokenized."""

    def __init__(self, state: ServerState, request: ChatCompletionRequest, generation: Generation) -> None:
        self._state = state
        self._request = request
        self._generation = generation
        self._id = generation.response_id("chatcmpl")
        self._created = generation.created
        self._name = state.names[0]
        self._text_frames: dict[int, TextFrames] = {}
        self._only_text = not request.logprobs and not request.return_token_ids

    @classmethod
    async def prepare(cls, state: ServerState, request: ChatCompletionRequest, caller: Caller) -> "Chat":
        """Render and tokenize the messages, beside the event loop.

        Raises:
            RequestError: the messages cannot be rendered, or the prompt does not fit; the server is full.
        """
        model, _ = state.serving(request.model)
        caller.place.take(request.num_choices)
        template = _template(model)
        text = await template.in_thread(_render, template, request.messages)
        prompts = await state.tokenize(model, [text], "messages", alone=False)
        lengths = Lengths(request.token_limit, default=None, param="messages")
        return cls(state, request, await Generation.prepare(state, request, prompts, lengths, caller))

    async def answer(self) -> bytes:
        """The whole answer, as JSON.

        Raises:
            EngineError: the engine could not finish it.
        """
        wholes = await self._generation.whole()
        weight = sum(whole.num_logprobs for whole in wholes)
        return await self._state.render(weight, lambda: encode(self._completion(wholes)))

    def events(self) -> AsyncGenerator[bytes, None]:
        """The stream.

        Of each choice: an event for the role, one or more a token, one with the finish reason; at the end maybe one
        with the usage. What steps bring is given out together. The first event comes with the first token, so that what
        goes wrong before it has a status of its own.

        Raises:
            EngineError: the engine could not finish it.
        """
        return self._generation.events(self, only_text=self._only_text)

    def _completion(self, wholes: Sequence[Delta]) -> ChatCompletion:
        with_ids = bool(self._request.return_token_ids)
        choices = [
            ChatChoice(
                index=index,
                message=AnswerMessage(whole.text),
                finish_reason=whole.finish_reason or "abort",
                logprobs=self._logprobs(whole.logprobs),
                stop_reason=whole.stop_reason,
                token_ids=whole.token_ids if with_ids else UNSET,
            )
            for index, whole in enumerate(wholes)
        ]
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._name,
            choices=choices,
            usage=self._generation.usage(),
            prompt_token_ids=self._generation.answers[0].prompt_token_ids if with_ids else UNSET,
            prompt_logprobs=described_prompt(
                self._generation.model.tokenizer, wholes[0].prompt_logprobs, self._request.prompt_logprobs
            ),
        )

    def frames(self, changes: Sequence[tuple[Answer, Delta]], begun: set[int]) -> bytes:
        """The events for what steps brought. `begun`: choices that have had an event, to which it adds."""
        frames = []
        for answer, delta in changes:
            if answer.index not in begun:
                frames.append(frame(self._opening(answer, first=not begun)))
                begun.add(answer.index)
            if self._only_text and delta.finish_reason is None:
                frames.append(self._text_frame(answer.index, delta.text))
            else:
                frames += map(frame, self._chunks(answer, delta))
        return b"".join(frames)

    def ending(self, answer: Answer, delta: Delta) -> bytes:
        """The event with the finish reason of a choice, of which all else has been sent."""
        return frame(self._end_chunk(answer, delta))

    def closing(self) -> bytes:
        """What follows the last choice's end."""
        if not self._request.include_usage:
            return DONE
        return frame(ChatChunk(self._id, self._created, self._name, [], usage=self._generation.usage())) + DONE

    def _text_frame(self, index: int, text: str) -> bytes:
        """The event of a choice that only goes on; the same bytes as by the long way."""
        if not text:
            return b""
        if (frames := self._text_frames.get(index)) is None:
            frames = TextFrames(lambda text: self._chunk(ChatChunkChoice(index, ChunkDelta(content=text))))
            self._text_frames[index] = frames
        return frames(text)

    def _opening(self, answer: Answer, *, first: bool) -> ChatChunk:
        chunk = self._chunk(ChatChunkChoice(answer.index, ChunkDelta(role="assistant", content="")))
        if first and self._request.return_token_ids:
            chunk.prompt_token_ids = answer.prompt_token_ids
        return chunk

    def _chunks(self, answer: Answer, delta: Delta) -> list[ChatChunk]:
        chunks = []
        with_ids = bool(self._request.return_token_ids)
        text = delta.text
        # Tokens without text yet (a part of a character, the end of the sequence) matter to whoever asked for them.
        if text or (delta.token_ids and (with_ids or delta.logprobs)):
            choice = ChatChunkChoice(answer.index, ChunkDelta(content=text), logprobs=self._logprobs(delta.logprobs))
            if with_ids:
                choice.token_ids = delta.token_ids
            chunks.append(self._chunk(choice))
        if delta.finish_reason is not None:
            chunks.append(self._end_chunk(answer, delta))
        return chunks

    def _end_chunk(self, answer: Answer, delta: Delta) -> ChatChunk:
        choice = ChatChunkChoice(answer.index, ChunkDelta(), delta.finish_reason, stop_reason=delta.stop_reason)
        return self._chunk(choice)

    def _chunk(self, choice: ChatChunkChoice) -> ChatChunk:
        usage = None if self._request.include_usage else UNSET
        return ChatChunk(self._id, self._created, self._name, [choice], usage=usage)

    def _logprobs(self, entries: Sequence[TokenLogprobs]) -> ChatLogprobs | None:
        if not self._request.logprobs:
            return None
        return chat_logprobs(self._generation.model.tokenizer, entries)


def _template(model: ServedModel) -> ChatTemplate:
    template = model.chat_template
    if template is None:
        raise RequestError(
            "this model has no chat template: use /v1/completions, or add a chat_template.jinja to its directory",
            param="messages",
            code="no_chat_template",
        )
    return template


def _render(template: ChatTemplate, messages: Sequence[Message]) -> str:
    plain = [_for_template(message, index, template.knows_developer_role) for index, message in enumerate(messages)]
    return template.render(plain)


def _for_template(message: Message, index: int, knows_developer_role: bool) -> dict[str, Any]:
    """A message as templates expect it: text content, tool arguments as objects, no fields that answers alone have."""
    plain = {name: value for name, value in message.model_dump(exclude_unset=True).items() if name not in _ANSWER_ONLY}
    if message.role == "developer" and not knows_developer_role:
        plain["role"] = "system"
    content = message.content
    if isinstance(content, list):
        plain["content"] = "\n".join(part.text for part in content)
    tool_calls = message.tool_calls if isinstance(message, AssistantMessage) else None
    if content is None:
        plain["content"] = None if tool_calls else ""
    if not tool_calls:
        plain.pop("tool_calls", None)
        return plain
    for number, call in enumerate(plain["tool_calls"]):
        where = f"messages[{index}].tool_calls[{number}].function.arguments"
        call["function"]["arguments"] = _arguments(call["function"]["arguments"], where)
        call.setdefault("type", "function")
    return plain


def _arguments(text: str, where: str) -> dict[str, Any]:
    try:
        arguments = json.loads(text or "{}")
        json.dumps(arguments, ensure_ascii=False).encode()  # fails for halves of surrogate pairs
    except UnicodeEncodeError as error:
        raise RequestError(f"{where}: holds half of a surrogate pair, which is no character", param=where) from error
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{where}: must be JSON in a string", param=where) from error
    if not isinstance(arguments, dict):
        raise RequestError(f"{where}: must be a JSON object in a string", param=where)
    return arguments
