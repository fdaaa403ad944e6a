"""What whole and streamed answers to a chat have in common: their heads, how a choice is read, and what it is told."""

from collections.abc import Sequence

from msgspec import UNSET, UnsetType

from octavo_server.frontend.answer import Delta
from octavo_server.frontend.chat_prompt import PreparedChat
from octavo_server.frontend.logprobs import chat_logprobs
from octavo_server.frontend.openai import ChatCompletionRequest
from octavo_server.frontend.parsing import ChoiceParser, Piece
from octavo_server.frontend.plain_answer import PlainAnswer
from octavo_server.frontend.responses import ChatLogprobs, CompletionTokensDetails, Usage
from octavo_server.frontend.state import ServerState
from octavo_server.ipc import TokenLogprobs


class ChatForm:
    """Of one request. `is_light`: what a step brings costs little to tell, as it needs no figures of tokens."""

    def __init__(self, state: ServerState, request: ChatCompletionRequest, prepared: PreparedChat) -> None:
        self.request = request
        self.generation = prepared.generation
        self.id = prepared.generation.response_id("chatcmpl")
        self.created = prepared.generation.created
        self.name = state.names[0]
        self.echo = prepared.echo
        self.service_tier: str | UnsetType = UNSET if request.service_tier is None else "default"
        self.shows_reasoning = request.include_reasoning is not False
        self._prepared = prepared
        self._parsers: dict[int, ChoiceParser] = {}
        self._plain: dict[int, PlainAnswer] = {}
        self.is_light = not (request.logprobs or request.return_token_ids or request.continuous_usage)

    @property
    def has_tools(self) -> bool:
        """Whether an answer may call one."""
        return bool(self._prepared.tools.callable)

    def parser(self, index: int) -> ChoiceParser | None:
        """What reads a choice; None where all of its text is content."""
        parsing, parser = self._prepared.parsing, self._parsers.get(index)
        if parser is None and parsing is not None:
            parser = self._parsers[index] = parsing.choice(with_logprobs=bool(self.request.logprobs))
        return parser

    def piece(self, index: int, delta: Delta) -> Piece:
        """What a delta adds to a choice's message."""
        parser = self.parser(index)
        if parser is not None:
            return parser.add(delta)
        if not self.request.logprobs:
            return Piece(delta.text)
        return self._plain.setdefault(index, PlainAnswer(self.generation.text_options)).add(delta)

    def waiting(self, index: int) -> int:
        """How many of a choice's last tokens said nothing yet, their log-probabilities neither."""
        if not self.request.logprobs:
            return 0
        reads = self.parser(index) or self._plain.get(index)
        return 0 if reads is None else reads.num_waiting

    def finish_reason(self, delta: Delta, parser: ChoiceParser | None) -> str | None:
        """OpenAI's: "tool_calls" where the answer called one, unless that one was demanded by its name.

        A stop string may have cut the call short, and then it is none to act on.
        """
        if delta.finish_reason != "stop" or parser is None or not parser.called or self._prepared.tools.named:
            return delta.finish_reason
        return "tool_calls" if delta.stop_reason is None or parser.call_is_whole() else "stop"

    def call_id(self) -> str:
        """A new id for a call."""
        return self.generation.model.format.call_id()

    def logprobs(self, entries: Sequence[TokenLogprobs]) -> ChatLogprobs | None:
        """Those of a message or a part of it, where they are wanted."""
        if not self.request.logprobs:
            return None
        as_ids = bool(self.request.return_tokens_as_token_ids)
        return chat_logprobs(self.generation.model.tokenizer, entries, as_ids=as_ids)

    def usage(self) -> Usage:
        """Tokens so far."""
        usage = self.generation.usage()
        if self.generation.model.format.supports_reasoning:
            thoughts = sum(parser.reasoning_tokens for parser in self._parsers.values())
            usage.completion_tokens_details = CompletionTokensDetails(thoughts)
        return usage
