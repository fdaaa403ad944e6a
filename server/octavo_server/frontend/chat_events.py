"""The chunks of a streamed chat."""

from collections.abc import Iterator, Sequence

from msgspec import UNSET, UnsetType

from octavo_server.frontend.answer import Answer, Delta
from octavo_server.frontend.chat_form import ChatForm
from octavo_server.frontend.parsing import Piece
from octavo_server.frontend.responses import ChatChunk, ChatChunkChoice, FunctionDelta, ToolCallDelta, Usage
from octavo_server.frontend.responses import Delta as ChunkDelta
from octavo_server.frontend.sse import DONE, TextFrames, frame
from octavo_server.frontend.text.output_parsers import CallDelta


class ChatEvents:
    """Makes the events of one stream."""

    def __init__(self, form: ChatForm) -> None:
        self._form = form
        self._with_ids = bool(form.request.return_token_ids)
        self._text_frames: dict[int, TextFrames] = {}
        self._thought_frames: dict[int, TextFrames] = {}
        self._held: dict[int, tuple[Piece, list[int]]] = {}

    def frames(self, changes: Sequence[tuple[Answer, Delta]], begun: set[int]) -> bytes:
        """The events for what steps brought. `begun`: choices that have had an event, to which it adds."""
        frames: list[bytes] = []
        for answer, delta in changes:
            if answer.index not in begun:
                frames += map(frame, self._opening(answer, first=not begun))
                begun.add(answer.index)
            if self._form.is_light and delta.finish_reason is None:
                frames.append(self._light(answer.index, delta))
            else:
                frames += map(frame, self._chunks(answer, delta))
        return b"".join(frames)

    def ending(self, answer: Answer, delta: Delta) -> bytes:
        """The event with the finish reason of a choice, of which all else has been sent."""
        return frame(self._ending(answer, delta))

    def closing(self) -> bytes:
        """What follows the last choice's end."""
        if not self._form.request.include_usage:
            return DONE
        chunk = self._chunk([])
        chunk.usage = self._form.usage()
        return frame(chunk) + DONE

    def _light(self, index: int, delta: Delta) -> bytes:
        """The events of a choice that only goes on, where nobody asked for figures of its tokens: mostly a text."""
        parser = self._form.parser(index)
        if parser is None:
            return self._text_frame(index, delta.text)
        piece = parser.add(delta)
        if piece.calls or (piece.reasoning and piece.content):
            return b"".join(frame(self._chunk([ChatChunkChoice(index, part)])) for part in self._parts(piece))
        if piece.reasoning:
            return self._thought_frame(index, piece.reasoning) if self._form.shows_reasoning else b""
        return self._text_frame(index, piece.content)

    def _text_frame(self, index: int, text: str) -> bytes:
        """The event of a choice that only goes on; the same bytes as by the long way."""
        if not text:
            return b""
        if (frames := self._text_frames.get(index)) is None:
            frames = TextFrames(lambda text: self._chunk([ChatChunkChoice(index, ChunkDelta(content=text))]))
            self._text_frames[index] = frames
        return frames(text)

    def _thought_frame(self, index: int, text: str) -> bytes:
        """As `_text_frame`, of a choice that thinks."""
        if (frames := self._thought_frames.get(index)) is None:
            frames = TextFrames(lambda text: self._chunk([ChatChunkChoice(index, _thought(text))]))
            self._thought_frames[index] = frames
        return frames(text)

    def _opening(self, answer: Answer, *, first: bool) -> Iterator[ChatChunk]:
        """The role. Content that never comes is null in the end, as in a whole answer: an empty one would stay."""
        content = None if self._form.has_tools else ""
        chunk = self._chunk([ChatChunkChoice(answer.index, ChunkDelta(role="assistant", content=content))])
        if first and self._with_ids:
            chunk.prompt_token_ids = answer.prompt_token_ids
        yield chunk
        if self._form.echo:
            yield self._chunk([ChatChunkChoice(answer.index, ChunkDelta(content=self._form.echo))])

    def _chunks(self, answer: Answer, delta: Delta) -> Iterator[ChatChunk]:
        piece, ids = self._form.piece(answer.index, delta), delta.token_ids
        if self._with_ids:
            before, ids_before = self._held.pop(answer.index, (Piece(), []))
            piece, ids = before.then(piece), ids_before + ids
            if self._waits(answer.index, delta):
                self._held[answer.index] = piece, ids
                return
        parts = list(self._parts(piece))
        # Tokens that say nothing (an end, a part of a marker) matter to whoever asked for them.
        if not parts and ((self._with_ids and ids) or piece.logprobs):
            parts = [ChunkDelta(content="")]
        for part in parts:
            logprobs = self._form.logprobs(piece.logprobs) if part.content is not UNSET else None
            choice = ChatChunkChoice(answer.index, part, logprobs=logprobs)
            if self._with_ids:
                choice.token_ids = ids
            yield self._chunk([choice])
        if delta.finish_reason is not None:
            yield self._ending(answer, delta)

    def _waits(self, index: int, delta: Delta) -> bool:
        """Whether tokens, and all that was said since the last event, are to be told later.

        Who goes on behind a token (the gateway does) must have got its log-probability, which waits for what the token
        says; and what earlier ones said may be known by this one alone. Tokens that are replayed have none.
        """
        return bool(delta.logprobs) and delta.finish_reason is None and self._form.waiting(index) > 0

    def _ending(self, answer: Answer, delta: Delta) -> ChatChunk:
        reason = self._form.finish_reason(delta, self._form.parser(answer.index))
        return self._chunk([ChatChunkChoice(answer.index, ChunkDelta(), reason, stop_reason=delta.stop_reason)])

    def _parts(self, piece: Piece) -> Iterator[ChunkDelta]:
        """Clients may expect no more than one kind of thing, and one call, in a chunk.

        Whoever asks for token ids goes on from them (the gateway does): what they say is then not torn apart.
        """
        if self._with_ids:
            if piece.content or piece.reasoning or piece.calls:
                yield self._all_of(piece)
            return
        if piece.reasoning and self._form.shows_reasoning:
            yield _thought(piece.reasoning)
        if piece.content:
            yield ChunkDelta(content=piece.content)
        for call in piece.calls:
            yield ChunkDelta(tool_calls=[self._call(call)])

    def _all_of(self, piece: Piece) -> ChunkDelta:
        part = ChunkDelta(content=piece.content or UNSET)
        if piece.reasoning and self._form.shows_reasoning:
            part.reasoning = part.reasoning_content = piece.reasoning
        if piece.calls:
            part.tool_calls = [self._call(call) for call in piece.calls]
        return part

    def _call(self, call: CallDelta) -> ToolCallDelta:
        if call.name is None:
            return ToolCallDelta(call.index, FunctionDelta(call.arguments))
        function = FunctionDelta(call.arguments, call.name)
        return ToolCallDelta(call.index, function, self._form.call_id(), "function")

    def _chunk(self, choices: list[ChatChunkChoice]) -> ChatChunk:
        form = self._form
        usage: Usage | UnsetType | None = UNSET
        if form.request.continuous_usage:
            usage = form.usage()
        elif form.request.include_usage:
            usage = None
        return ChatChunk(form.id, form.created, form.name, choices, usage=usage, service_tier=form.service_tier)


def _thought(text: str) -> ChunkDelta:
    """Under both of its names."""
    return ChunkDelta(reasoning=text, reasoning_content=text)
