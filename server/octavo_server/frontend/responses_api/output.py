"""The items of a response's output, made from what an answer says while it comes, with the events that tell them.

The whole answer is one piece, so that it takes the same way.
"""

from collections.abc import Callable, Sequence
from typing import Final

from msgspec import Struct

from octavo_server.frontend.parsing import Piece
from octavo_server.frontend.responses import TokenLogprob
from octavo_server.frontend.responses_api import events
from octavo_server.frontend.responses_api.objects import (
    FunctionCall,
    Message,
    OutputItem,
    OutputText,
    Reasoning,
    ReasoningText,
    Status,
)
from octavo_server.ipc import TokenLogprobs

Spell = Callable[[Sequence[TokenLogprobs]], list[TokenLogprob]]
_TEXT: Final = 0  # index of an item's only part


class Output:
    """The output of one response. `items`: those that have ended; all of them, once it has."""

    def __init__(self, response_id: str, call_id: Callable[[], str], spell: Spell) -> None:
        """call_id: makes the id by which a result is given back. spell: log-probabilities as clients get them."""
        self.items: list[OutputItem] = []
        self.numbers = events.Numbers()
        self._id = response_id.removeprefix("resp_")
        self._call_id = call_id
        self._spell = spell
        self._open: _Open | None = None
        self._blank = Piece()  # white space that belongs to a text if one follows

    def add(self, piece: Piece) -> list[Struct]:
        """What a piece of the answer adds."""
        found: list[Struct] = []
        if piece.reasoning:
            if not isinstance(self._open, _OpenReasoning):
                found += self._begin(_OpenReasoning(self._new_id("rs"), self))
            found += self._goes_on(piece.reasoning)
        if piece.content:
            found += self._says(piece)
        for call in piece.calls:
            if call.name is not None:
                self._blank = Piece()
                found += self._begin(_OpenCall(self._new_id("fc"), self, self._call_id(), call.name))
            found += self._goes_on(call.arguments)
        return found

    def end(self, *, complete: bool) -> list[Struct]:
        """The end of the last item, which is incomplete where the answer is; without any, an empty text."""
        found: list[Struct] = []
        if not self.items and self._open is None:
            found += self._begin_text()
        return found + self._end_open("completed" if complete else "incomplete")

    def _says(self, piece: Piece) -> list[Struct]:
        if isinstance(self._open, _OpenText):
            return self._goes_on(piece.content, piece.logprobs)
        text, logprobs = self._blank.content + piece.content, self._blank.logprobs + piece.logprobs
        self._blank = Piece(content=text, logprobs=logprobs)
        return [] if text.isspace() else self._begin_text()

    def _begin_text(self) -> list[Struct]:
        piece, self._blank = self._blank, Piece()
        found = self._begin(_OpenText(self._new_id("msg"), self))
        return found + self._goes_on(piece.content, piece.logprobs)

    def _begin(self, item: "_Open") -> list[Struct]:
        found = self._end_open("completed")
        self._open = item
        return found + item.begins(len(self.items))

    def _goes_on(self, text: str, logprobs: Sequence[TokenLogprobs] = ()) -> list[Struct]:
        if self._open is None or not text:
            return []
        return self._open.goes_on(text, self._spell(logprobs) if logprobs else [])

    def _end_open(self, status: Status) -> list[Struct]:
        if self._open is None:
            return []
        found, item = self._open.ends(status)
        self.items.append(item)
        self._open = None
        return found

    def _new_id(self, kind: str) -> str:
        return f"{kind}_{self._id}_{len(self.items) + (self._open is not None)}"


class _Open:
    """An item that has not ended. It grows at a cost that does not depend on its length."""

    def __init__(self, item_id: str, output: Output) -> None:
        self.id = item_id
        self.number = output.numbers
        self.at = 0
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self._pieces)

    def begins(self, at: int) -> list[Struct]:
        """The events of its beginning, as the item of this number."""
        self.at = at
        return []

    def goes_on(self, text: str, logprobs: list[TokenLogprob]) -> list[Struct]:
        """The events of what is added."""
        self._pieces.append(text)
        return []

    def ends(self, status: Status) -> tuple[list[Struct], OutputItem]:
        """The events of its end, and the item."""
        raise NotImplementedError


class _OpenText(_Open):
    def __init__(self, item_id: str, output: Output) -> None:
        super().__init__(item_id, output)
        self._logprobs: list[TokenLogprob] = []

    def begins(self, at: int) -> list[Struct]:
        super().begins(at)
        return [
            events.ItemAdded(self.number(), at, Message(self.id, "in_progress", [])),
            events.PartAdded(self.number(), self.id, at, _TEXT, OutputText()),
        ]

    def goes_on(self, text: str, logprobs: list[TokenLogprob]) -> list[Struct]:
        super().goes_on(text, logprobs)
        self._logprobs += logprobs
        return [events.TextDelta(self.number(), self.id, self.at, _TEXT, text, logprobs)]

    def ends(self, status: Status) -> tuple[list[Struct], OutputItem]:
        part = OutputText(self.text, logprobs=self._logprobs)
        item = Message(self.id, status, [part])
        return [
            events.TextDone(self.number(), self.id, self.at, _TEXT, part.text, part.logprobs),
            events.PartDone(self.number(), self.id, self.at, _TEXT, part),
            events.ItemDone(self.number(), self.at, item),
        ], item


class _OpenReasoning(_Open):
    def begins(self, at: int) -> list[Struct]:
        super().begins(at)
        return [
            events.ItemAdded(self.number(), at, Reasoning(self.id, "in_progress", [])),
            events.PartAdded(self.number(), self.id, at, _TEXT, ReasoningText()),
        ]

    def goes_on(self, text: str, logprobs: list[TokenLogprob]) -> list[Struct]:
        super().goes_on(text, logprobs)
        return [events.ReasoningDelta(self.number(), self.id, self.at, _TEXT, text)]

    def ends(self, status: Status) -> tuple[list[Struct], OutputItem]:
        part = ReasoningText(self.text)
        item = Reasoning(self.id, status, [part])
        return [
            events.ReasoningDone(self.number(), self.id, self.at, _TEXT, part.text),
            events.PartDone(self.number(), self.id, self.at, _TEXT, part),
            events.ItemDone(self.number(), self.at, item),
        ], item


class _OpenCall(_Open):
    def __init__(self, item_id: str, output: Output, call_id: str, name: str) -> None:
        super().__init__(item_id, output)
        self._call_id, self._name = call_id, name

    def begins(self, at: int) -> list[Struct]:
        super().begins(at)
        return [events.ItemAdded(self.number(), at, FunctionCall(self.id, self._call_id, self._name, "in_progress"))]

    def goes_on(self, text: str, logprobs: list[TokenLogprob]) -> list[Struct]:
        super().goes_on(text, logprobs)
        return [events.ArgumentsDelta(self.number(), self.id, self.at, text)]

    def ends(self, status: Status) -> tuple[list[Struct], OutputItem]:
        item = FunctionCall(self.id, self._call_id, self._name, status, self.text)
        return [
            events.ArgumentsDone(self.number(), self.id, self.at, self._name, item.arguments),
            events.ItemDone(self.number(), self.at, item),
        ], item
