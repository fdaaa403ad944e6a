"""POST /v1/chat/completions: messages to a prompt, and the answer as one object or a stream of chunks."""

from collections.abc import AsyncGenerator, Sequence

from msgspec import UNSET

from octavo_server.frontend.answer import Delta
from octavo_server.frontend.chat_events import ChatEvents
from octavo_server.frontend.chat_form import ChatForm
from octavo_server.frontend.chat_prompt import prepare_chat
from octavo_server.frontend.generation import Caller
from octavo_server.frontend.logprobs import described_prompt
from octavo_server.frontend.openai import ChatCompletionRequest
from octavo_server.frontend.parsing import ChoiceParser, Piece
from octavo_server.frontend.responses import CalledFunction, ChatChoice, ChatCompletion, Message, ToolCall, encode
from octavo_server.frontend.state import ServerState


class Chat:
    """One chat request that has been checked and tokenized."""

    def __init__(self, state: ServerState, form: ChatForm) -> None:
        self._state = state
        self._form = form
        self._generation = form.generation

    @classmethod
    async def prepare(cls, state: ServerState, request: ChatCompletionRequest, caller: Caller) -> "Chat":
        """Make the prompt, beside the event loop.

        Raises:
            RequestError: as `prepare_chat` does.
        """
        return cls(state, ChatForm(state, request, await prepare_chat(state, request, caller)))

    async def answer(self) -> bytes:
        """The whole answer, as JSON.

        Raises:
            EngineError: the engine could not finish it.
        """
        wholes = await self._generation.whole()
        weight = sum(whole.weight for whole in wholes)
        return await self._state.render(weight, lambda: encode(self._completion(wholes)))

    def events(self) -> AsyncGenerator[bytes, None]:
        """The stream.

        Of each choice: an event for the role, one or more a token, one with the finish reason; at the end maybe one
        with the usage. What steps bring is given out together. The first event comes with the first token, so that what
        goes wrong before it has a status of its own.

        Raises:
            EngineError: the engine could not finish it.
        """
        return self._generation.events(ChatEvents(self._form), only_text=self._form.is_light)

    def _completion(self, wholes: Sequence[Delta]) -> ChatCompletion:
        form, request = self._form, self._form.request
        choices = [self._choice(index, whole) for index, whole in enumerate(wholes)]
        return ChatCompletion(
            id=form.id,
            created=form.created,
            model=form.name,
            choices=choices,
            usage=form.usage(),
            service_tier=form.service_tier,
            prompt_token_ids=self._generation.answers[0].prompt_token_ids if request.return_token_ids else UNSET,
            prompt_logprobs=described_prompt(
                self._generation.model.tokenizer, wholes[0].prompt_logprobs, request.prompt_logprobs
            ),
        )

    def _choice(self, index: int, whole: Delta) -> ChatChoice:
        form = self._form
        parser = form.parser(index)
        piece = form.piece(index, whole)
        return ChatChoice(
            index=index,
            message=self._message(piece, parser),
            finish_reason=form.finish_reason(whole, parser) or "abort",
            logprobs=form.logprobs(piece.logprobs),
            stop_reason=whole.stop_reason,
            token_ids=whole.token_ids if form.request.return_token_ids else UNSET,
        )

    def _message(self, piece: Piece, parser: ChoiceParser | None) -> Message:
        form = self._form
        content = form.echo + piece.content
        message = Message(content or (None if form.has_tools else ""))
        if parser is not None and piece.reasoning and form.shows_reasoning:
            message.reasoning = message.reasoning_content = piece.reasoning
        if piece.calls:
            message.tool_calls = [
                ToolCall(form.call_id(), CalledFunction(call.name or "", call.arguments)) for call in piece.calls
            ]
        return message
