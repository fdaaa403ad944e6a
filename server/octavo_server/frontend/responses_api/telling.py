"""A response while its answer comes, and the events of its stream."""

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec import Struct

from octavo_server.errors import EngineError
from octavo_server.frontend.answer import Answer, Delta
from octavo_server.frontend.chat_prompt import PreparedChat
from octavo_server.frontend.logprobs import chat_logprobs
from octavo_server.frontend.plain_answer import TextAnswer
from octavo_server.frontend.refusal import engine_error
from octavo_server.frontend.responses import TokenLogprob, encode
from octavo_server.frontend.responses_api import events
from octavo_server.frontend.responses_api.head import Head
from octavo_server.frontend.responses_api.objects import Response, ResponseError
from octavo_server.frontend.responses_api.output import Output
from octavo_server.frontend.responses_api.store import Turn
from octavo_server.ipc import TokenLogprobs


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a response: its last events but one, itself, its JSON, and its turn if it is to be kept."""

    events: list[Struct]
    response: Response
    json: bytes
    turn: Turn | None


class Telling:
    """One response. `only_text`: its answer is told by nothing but a text and how it ended."""

    def __init__(self, head: Head, prepared: PreparedChat) -> None:
        self.head = head
        self._generation = prepared.generation
        self._with_logprobs = head.request.num_logprobs is not None
        self._parser = None if prepared.parsing is None else prepared.parsing.choice(with_logprobs=self._with_logprobs)
        self._plain = TextAnswer()
        self._finish_reason: str | None = None
        self._taken = 0
        self.output = Output(head.id, self._generation.model.format.call_id, self._spell)
        self.only_text = self._parser is None and not self._with_logprobs

    @property
    def is_complete(self) -> bool:
        """Whether the answer ended by itself."""
        return self._finish_reason == "stop"

    def take(self, delta: Delta) -> list[Struct]:
        """The events of what a delta adds."""
        self._finish_reason = delta.finish_reason or self._finish_reason
        self._taken += delta.weight
        return self.output.add(self._plain.add(delta) if self._parser is None else self._parser.add(delta))

    @property
    def weight(self) -> int:
        """Of its end, which repeats the whole answer: as `ServerState.render` takes it."""
        return self._taken + sum(answer.num_tokens for answer in self._generation.answers) // 4

    def end(self) -> "Ended":
        """The end, which is work that grows with the answer."""
        found = self.output.end(complete=self.is_complete)
        thoughts = 0 if self._parser is None else self._parser.reasoning_tokens
        response = self.head.ended(self.output.items, self._generation.usage(), thoughts, complete=self.is_complete)
        turn = self.head.conversation.turn(response.output) if self.head.request.is_stored else None
        return Ended(found, response, encode(response), turn)

    def _spell(self, entries: Sequence[TokenLogprobs]) -> list[TokenLogprob]:
        return chat_logprobs(self._generation.model.tokenizer, entries).content if self._with_logprobs else []


class ResponseEvents:
    """Makes the events of one stream."""

    def __init__(self, telling: Telling) -> None:
        self._telling = telling

    def frames(self, changes: Sequence[tuple[Answer, Delta]], begun: set[int]) -> bytes:
        """The events for what steps brought. `begun`: empty before the first ones."""
        telling, found = self._telling, list[Struct]()
        if not begun:
            begun.add(0)
            number, response = telling.output.numbers, telling.head.response("in_progress", [])
            found += [events.Created(number(), response), events.InProgress(number(), response)]
        for _, delta in changes:
            found += telling.take(delta)
        return b"".join(map(events.frame, found))

    def ending(self, answer: Answer, delta: Delta) -> bytes:
        """Nothing: how the only choice ended is told with the end of the response."""
        return b""

    def closing(self) -> bytes:
        """Nothing yet: the end repeats the whole answer, which may be much work."""
        return b""

    def end(self, ended: Ended) -> bytes:
        """The end."""
        telling = self._telling
        kind = events.Completed if telling.is_complete else events.Incomplete
        return b"".join(map(events.frame, [*ended.events, kind(telling.output.numbers(), ended.response)]))

    def failed(self, error: EngineError) -> bytes:
        """What follows when the engine could not finish it."""
        telling = self._telling
        found = telling.output.end(complete=False)
        response = telling.head.response("failed", telling.output.items)
        response.error = ResponseError(code="server_error", message=engine_error(error).message)
        return b"".join(map(events.frame, [*found, events.Failed(telling.output.numbers(), response)]))
