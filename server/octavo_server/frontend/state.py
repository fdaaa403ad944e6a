"""What the routes share: configuration, model, engine, and whether new requests are taken."""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, ParamSpec, TypeVar

from octavo_common.access.keys import KeyRing
from octavo_server.config import ServerConfig
from octavo_server.errors import RequestError
from octavo_server.frontend.admission import Admission
from octavo_server.frontend.client import EngineClient
from octavo_server.frontend.grammars import Grammars
from octavo_server.frontend.model import ServedModel
from octavo_server.frontend.sampling import check_texts
from octavo_server.frontend.text_threads import SHORT_TEXT, TextThreads
from octavo_server.ipc import Ready
from octavo_server.metrics import ServerMetrics

P = ParamSpec("P")
R = TypeVar("R")
RENDER_HERE: Final = 1024  # log-probabilities; a millisecond or two


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether new requests are taken, and if not, why."""

    ready: bool
    status: str
    phase: str


class ServerState:
    """One server. Its parts are filled in while it starts; HTTP answers from the beginning."""

    def __init__(self, config: ServerConfig) -> None:
        """Raises ConfigError if the keys of clients cannot be read."""
        self.config = config
        self.keys = KeyRing(config, config.gateway_api_key_file)
        self.names = config.served_model_name or (config.model.resolve().name,)
        self.metrics = ServerMetrics(self.names[0], config)
        self.client = EngineClient(self.metrics.engine_stats, self._engine_ready, lambda: self.admission.ended())
        limit = (config.max_num_seqs or 0) + config.max_queued_requests
        self.admission = Admission(limit, lambda: self.client.num_open)
        self.model: ServedModel | None = None
        self.draining = False
        self.started_at = int(time.time())
        self._requests = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._seeds = random.Random(config.seed)
        self.text_threads = TextThreads()
        self.grammars = Grammars(config.model)

    def _engine_ready(self, ready: Ready) -> None:
        """Without a flag only the engine knows how many requests it runs at once."""
        self.metrics.engine_ready(ready)
        self.admission.limit = (self.config.max_num_seqs or ready.max_num_seqs) + self.config.max_queued_requests

    def readiness(self) -> Readiness:
        """As `/ready` tells it."""
        if self.draining:
            return Readiness(False, "draining", "shutting down")
        if self.client.hangs:
            return Readiness(False, "not responding", "the engine is silent")
        if self.client.ready is None:
            return Readiness(False, "starting", self.client.phase)
        if self.model is None:
            return Readiness(False, "starting", "load tokenizer")
        return Readiness(True, "ready", "ready")

    def serving(self, name: str, *, text: bool = True) -> tuple[ServedModel, Ready]:
        """(model, what its engine said of itself) for a request that asks for `name`, and for an answer of `text`.

        Raises:
            RequestError: 404 if it is not served, 503 while no requests are taken, 400 if it makes no text.
        """
        self.check_name(name)
        readiness, ready, model = self.readiness(), self.client.ready, self.model
        if not readiness.ready or ready is None or model is None:
            raise RequestError(
                f"the server takes no requests now: {readiness.status} ({readiness.phase})",
                code="not_ready",
                status=HTTPStatus.SERVICE_UNAVAILABLE,
                type="server_error",
            )
        if text and not model.generates:
            raise RequestError(
                f"the model {name!r} makes embeddings and no text: use /v1/embeddings",
                param="model",
                code="model_does_not_generate",
            )
        return model, ready

    def check_name(self, name: str) -> None:
        """Raises RequestError (404) if no model of this name is served."""
        if name not in self.names:
            known = ", ".join(self.names)
            raise RequestError(
                f"the model {name!r} does not exist; served here: {known}",
                param="model",
                code="model_not_found",
                status=HTTPStatus.NOT_FOUND,
            )

    def now(self) -> int:
        """Seconds since 1970, for `created`."""
        return int(time.time())

    def draw_seed(self) -> int:
        """A seed for a request that brings none."""
        return self._seeds.getrandbits(63)

    async def in_thread(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run work on text beside the event loop."""
        return await self.text_threads.run(function, *args, **kwargs)

    async def tokenize(
        self, model: ServedModel, texts: Sequence[str], param: str, *, alone: bool, may_be_cut: bool = False
    ) -> list[list[int]]:
        """Token ids of texts, made beside the event loop; `alone`: with the tokens that surround a text.

        may_be_cut: they need not fit.

        Raises:
            RequestError: one is too long, however few tokens it may have; `param` is the field that it is of.
        """
        if not may_be_cut:
            for text in texts:
                await self.check_texts(model, [text], param)

        def encode() -> list[list[int]]:
            return [model.tokenizer.encode(text, add_special_tokens=alone) for text in texts]

        return await self.text_threads.run_on_text(sum(map(len, texts)), encode)

    async def check_texts(self, model: ServedModel, texts: Sequence[str], param: str) -> None:
        """Of one prompt, beside the event loop if they are long.

        Raises:
            RequestError: they do not fit, however few tokens they may have; `param` is the field that they are of.
        """
        ready = self.client.ready
        if ready is not None and sum(map(len, texts)) > SHORT_TEXT:
            limit = ready.max_model_len
            await self.in_thread(check_texts, texts, model.tokenizer, max_model_len=limit, param=param)

    async def render(self, weight: int, function: Callable[[], R]) -> R:
        """Make an answer's bytes: beside the event loop if it is much work. `weight`: log-probabilities in it."""
        return function() if weight <= RENDER_HERE else await self.in_thread(function)

    def request_begins(self) -> None:
        """Counts requests that a shutdown waits for."""
        self._requests += 1
        self._idle.clear()

    def request_ends(self) -> None:
        """The counterpart of `request_begins`."""
        self._requests -= 1
        if self._requests == 0:
            self._idle.set()

    async def wait_until_idle(self) -> None:
        """Until no request is open."""
        await self._idle.wait()

    def close(self) -> None:
        """Give threads and sockets back."""
        self.text_threads.close()
        self.grammars.close()
        if self.model is not None and self.model.chat_template is not None:
            self.model.chat_template.close()
        self.client.terminate()
