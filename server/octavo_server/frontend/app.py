"""The routes, and what stands before and behind them."""

from collections.abc import Awaitable

import msgspec
from fastapi import FastAPI, Request
from starlette.responses import PlainTextResponse, Response

from octavo_common.access.rates import UNLIMITED
from octavo_common.version import __version__
from octavo_server.frontend import refusal
from octavo_server.frontend.access.cors import allow_origins
from octavo_server.frontend.access.gate import Gate
from octavo_server.frontend.body import body_route
from octavo_server.frontend.chat import Chat
from octavo_server.frontend.completions import Completions
from octavo_server.frontend.described import FIGURES, answers
from octavo_server.frontend.embedding_fields import EmbeddingRequest
from octavo_server.frontend.embeddings import EmbeddingList, Embeddings
from octavo_server.frontend.generation import Caller
from octavo_server.frontend.limits import BodyLimit, OpenRequests
from octavo_server.frontend.openai import ChatCompletionRequest, CompletionRequest
from octavo_server.frontend.responses import (
    ChatChunk,
    ChatCompletion,
    Completion,
    Health,
    Model,
    ModelList,
    Version,
    encode,
)
from octavo_server.frontend.responses_api.routes import add_responses_routes
from octavo_server.frontend.sse import ClientGone, stream, until_disconnect
from octavo_server.frontend.state import ServerState
from octavo_server.frontend.tokenization import (
    Detokenized,
    DetokenizeRequest,
    Tokenized,
    TokenizeRequest,
    detokenize,
    tokenize,
)


def create_app(state: ServerState) -> FastAPI:
    """The app of one server."""
    app = FastAPI(
        title="Octavo",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=refusal.DESCRIBED,
    )
    app.router.route_class = body_route(state)
    refusal.install(app)
    app.add_exception_handler(ClientGone, _nobody_there)
    _add_openai_routes(app, state)
    add_responses_routes(app, state, _caller)
    _add_operations_routes(app, state)
    # The last one added is the first that a request meets.
    app.add_middleware(OpenRequests, state=state)
    app.add_middleware(BodyLimit)
    app.add_middleware(Gate, keys=state.keys)
    allow_origins(app, state.config)
    return app


def _add_openai_routes(app: FastAPI, state: ServerState) -> None:
    @app.get("/v1/models", responses=answers(ModelList))
    async def list_models() -> Response:
        """The names that clients may ask for."""
        return _json(ModelList([_model(state, name) for name in state.names]))

    @app.get("/v1/models/{name:path}", responses=answers(Model))
    async def get_model(name: str) -> Response:
        """One of the names."""
        state.check_name(name)
        return _json(_model(state, name))

    @app.post("/v1/chat/completions", responses=answers(ChatCompletion, ChatChunk))
    async def chat_completions(body: ChatCompletionRequest, request: Request) -> Response:
        """Answer a chat."""
        chat = Chat.prepare(state, body, _caller(request))
        return await stream(request, chat) if body.stream else await _whole(request, chat)

    @app.post("/v1/completions", responses=answers(Completion, Completion))
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continue one or several texts."""
        job = Completions.prepare(state, body, _caller(request))
        return await stream(request, job) if body.stream else await _whole(request, job)

    @app.post("/v1/embeddings", responses=answers(EmbeddingList))
    async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
        """Make vectors of texts."""

        async def computed() -> Embeddings:
            return await (await Embeddings.prepare(state, body, _caller(request))).compute()

        return await (await until_disconnect(request.receive, computed())).response()

    @app.post("/tokenize", responses=answers(Tokenized))
    async def tokens_of(body: TokenizeRequest, request: Request) -> Response:
        """Count and list the tokens of a text or a chat."""
        return _encoded(await tokenize(state, body, request.scope["state"].get("salt", b"")))

    @app.post("/detokenize", responses=answers(Detokenized))
    async def text_of(body: DetokenizeRequest, request: Request) -> Response:
        """Put tokens together to a text."""
        return _encoded(await detokenize(state, body))


def _add_operations_routes(app: FastAPI, state: ServerState) -> None:
    @app.get("/health", responses=answers(Health, statuses=(200, 503)))
    async def health() -> Response:
        """Whether the process and its engine are alive: a start that takes long is no reason to kill it."""
        if state.client.hangs:
            return _status(503, Health("not responding"))
        return _status(200, Health("alive"))

    @app.get("/ready", responses=answers(Health, statuses=(200, 503)))
    async def ready() -> Response:
        """Whether new requests are taken."""
        readiness = state.readiness()
        return _status(200 if readiness.ready else 503, Health(readiness.status, readiness.phase))

    @app.get("/version", responses=answers(Version))
    async def version() -> Response:
        """The server's version."""
        return _status(200, Version(__version__))

    @app.get("/metrics", response_class=PlainTextResponse, responses=FIGURES)
    async def metrics(request: Request) -> Response:
        """Figures for Prometheus."""
        body, content_type = state.metrics.exposition(request.headers.get("accept", ""))
        return Response(body, headers={"Content-Type": content_type})


async def _whole(request: Request, job: Awaitable[Chat | Completions]) -> Response:
    """The whole answer, unless the client leaves before it is there."""

    async def answer() -> bytes:
        return await (await job).answer()

    return _encoded(await until_disconnect(request.receive, answer()))


async def _nobody_there(request: Request, error: Exception) -> Response:
    """Nobody will read it; 499 is what logs of other servers call it."""
    return Response(status_code=499)


def _model(state: ServerState, name: str) -> Model:
    model = Model(id=name, created=state.started_at, root=state.names[0])
    if state.client.ready is not None:
        model.max_model_len = state.client.ready.max_model_len
    if state.model is not None:
        model.tasks = state.model.tasks
    return model


def _caller(request: Request) -> Caller:
    """What `access` and `limits` found out."""
    found = request.scope["state"]
    return Caller(
        found["arrival"],
        found.get("salt", b""),
        found["place"],
        key=found.get("key"),
        ticket=found.get("ticket", UNLIMITED),
        outlet=found.get("outlet"),
        is_gateway=found.get("is_gateway", False),
        record=found.get("record"),
    )


def _json(answer: msgspec.Struct) -> Response:
    return _encoded(encode(answer))


def _encoded(answer: bytes) -> Response:
    return Response(answer, media_type="application/json")


def _status(code: int, answer: msgspec.Struct) -> Response:
    return Response(encode(answer), status_code=code, media_type="application/json")
