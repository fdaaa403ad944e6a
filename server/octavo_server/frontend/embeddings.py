"""POST /v1/embeddings: texts, lists of token ids or a chat, each of which becomes a vector."""

import contextlib
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Final, Self

import msgspec
from starlette.responses import Response, StreamingResponse

from octavo_server import ipc
from octavo_server.errors import EngineError
from octavo_server.frontend.answer import Answer, Delta
from octavo_server.frontend.embedding_fields import EmbeddingRequest
from octavo_server.frontend.embedding_inputs import tokenized
from octavo_server.frontend.generation import PREPARE_TOKENS, Caller
from octavo_server.frontend.model import ServedModel
from octavo_server.frontend.output_stream import Choice
from octavo_server.frontend.state import ServerState
from octavo_server.frontend.text.text_options import TextOptions
from octavo_server.frontend.vectors import Embedding, Form, dimensions, spell
from octavo_server.metrics import RequestMetrics
from octavo_server.page_hash import hash_pages

AT_ONCE: Final = 256  # inputs of one request that the engine has at a time at most; the others wait here
SPELL_HERE: Final = 4096  # numbers: half a millisecond
SPELL_AT_ONCE: Final = 16_384
WHOLE: Final = 65_536  # numbers of an answer that is sent as one piece; in JSON 1.5 MB


class Usage(msgspec.Struct):
    """Tokens of all inputs."""

    prompt_tokens: int
    total_tokens: int


class Opening(msgspec.Struct):
    """What stands in the answer before its `data`."""

    id: str
    created: int
    model: str
    object: str = "list"


class EmbeddingList(Opening, kw_only=True):
    """The whole answer. It is sent in pieces; this only describes it."""

    data: list[Embedding]
    usage: Usage


class PooledAnswer(Answer):
    """One input's vector. `embedding` is float32 little-endian, once it is there."""

    embedding = b""

    def take(self, output: ipc.RequestOutput, delta: Delta) -> None:
        """A result of the engine: the only one."""
        self.embedding = output.embedding
        super().take(output, delta)


class Embeddings:
    """One embeddings request that has been checked and tokenized."""

    def __init__(
        self,
        state: ServerState,
        request: EmbeddingRequest,
        served: tuple[ServedModel, ipc.Ready],
        inputs: Sequence[list[int]],
        caller: Caller,
    ) -> None:
        """Raises RequestError where the form that is asked for is none of this model's."""
        self._state = state
        self._request = request
        self._model, self._ready = served
        self._inputs = inputs
        self._caller = caller
        self._epoch = state.client.epoch
        self._id = secrets.token_hex(16)
        self._response_id = f"embd-{request.request_id or self._id}"
        if caller.record is not None:
            caller.record.model, caller.record.engine_id = request.model, self._id
            caller.record.response_id = self._response_id
        self._pooling = state.config.pooling or self._model.embedding.pooling
        self._form = form_of(state, request, self._model)
        self._answers: list[PooledAnswer] = []
        self._num_tokens = sum(map(len, inputs))

    @classmethod
    async def prepare(cls, state: ServerState, request: EmbeddingRequest, caller: Caller) -> Self:
        """Tokenize the inputs, where they are text, beside the event loop.

        Raises:
            RequestError: an input is empty or does not fit, the form is none of this model's; the server is full.
        """
        served = state.serving(request.model, text=False)
        form_of(state, request, served[0])
        caller.place.take(1)
        inputs = await tokenized(state, request, *served, caller.salt)
        caller.ticket.reserve(sum(map(len, inputs)), 0, len(inputs))
        return cls(state, request, served, inputs, caller)

    async def compute(self) -> Self:
        """Let the engine make the vectors, as many at a time as there is room for.

        Raises:
            EngineError: the engine is not there, died, or could not finish one of them.
        """
        reason, failure, num_inputs, place = "abort", None, len(self._inputs), self._caller.place
        try:
            while (begin := len(self._answers)) < num_inputs:
                end = begin + place.take_up_to(min(num_inputs - begin, AT_ONCE))
                choices = await self._choices(begin, end)
                with self._state.client.submit(choices, whole=True) as stream:
                    if end < num_inputs:
                        place.keep_one()
                    else:
                        place.leave()
                    async with contextlib.aclosing(stream.deltas()) as changes:
                        async for _ in changes:
                            pass
        except EngineError as error:
            reason, failure = "error", error.kind
            raise
        finally:
            for answer in self._answers:
                answer.metrics.end(reason)  # those that have ended otherwise do not count again
            if self._caller.record is not None:
                self._caller.record.embedded(self._answers, self._num_tokens, failure)
            self._caller.ticket.used(self._num_tokens, iter(()))
        return self

    async def response(self) -> Response:
        """The whole answer, in several pieces if it is long."""
        if len(self._answers) * self._form.dimensions > WHOLE:
            return StreamingResponse(self._pieces(), media_type="application/json")
        return Response(b"".join([piece async for piece in self._pieces()]), media_type="application/json")

    async def _choices(self, begin: int, end: int) -> list[Choice]:
        """Of the inputs from `begin` to `end`; beside the event loop if it is much work."""

        def make() -> list[Choice]:
            return [self._choice(index) for index in range(begin, end)]

        here = sum(map(len, self._inputs[begin:end])) <= PREPARE_TOKENS
        choices = make() if here else await self._state.in_thread(make)
        self._answers += [choice.answer for choice in choices if isinstance(choice.answer, PooledAnswer)]
        return choices

    def _choice(self, index: int) -> Choice:
        request, caller, ids = self._request, self._caller, self._inputs[index]
        salt = caller.cache_salt(request.cache_salt)
        asked = ipc.AddRequest(
            epoch=self._epoch,
            request_id=f"{self._id}-{index}",
            prompt_token_ids=ids,
            sampling=ipc.SamplingParams(max_tokens=0),
            arrival=caller.arrival,
            page_hashes=hash_pages(ids, self._ready.block_size, salt) if self._ready.prefix_caching else b"",
            salt=salt,
            priority=request.priority or 0,
            deadline=caller.deadline(request.timeout, self._state.config.request_timeout),
            pooling=self._pooling,
        )
        metrics = RequestMetrics(self._state.metrics, caller.arrival, len(ids), generates=False)
        answer = PooledAnswer(index, ids, self._model.tokenizer, TextOptions(), metrics)
        return Choice(asked.request_id, self._epoch, ipc.encoder.encode(asked), answer)

    async def _pieces(self) -> AsyncIterator[bytes]:
        """The answer's JSON."""
        opening = msgspec.json.encode(Opening(self._response_id, self._state.now(), self._state.names[0]))
        yield opening[:-1] + b',"data":['
        step = max(1, SPELL_AT_ONCE // self._form.dimensions)
        for begin in range(0, len(self._answers), step):
            vectors = [answer.embedding for answer in self._answers[begin : begin + step]]
            if len(vectors) * self._form.dimensions <= SPELL_HERE:
                piece = spell(begin, vectors, self._form)
            else:
                piece = await self._state.in_thread(spell, begin, vectors, self._form)
            yield piece if begin == 0 else b"," + piece
        yield b'],"usage":' + msgspec.json.encode(Usage(self._num_tokens, self._num_tokens)) + b"}"


def form_of(state: ServerState, request: EmbeddingRequest, model: ServedModel) -> Form:
    """By the request, the server's flags and the model's files, in this order.

    Raises:
        RequestError: the model's embeddings cannot have the length that is asked for.
    """
    config, published = state.config, model.embedding
    allowed = published.dimensions
    if config.matryoshka is not None:
        allowed = None if config.matryoshka else ()
    normalize = request.use_activation if request.normalize is None else request.normalize
    if normalize is None:
        normalize = published.normalize if config.pooling_normalize is None else config.pooling_normalize
    return Form(
        dimensions(request.dimensions, published.hidden_size, allowed), normalize, request.encoding_format == "base64"
    )
