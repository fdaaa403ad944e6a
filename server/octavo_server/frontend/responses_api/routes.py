"""The routes of responses."""

from collections.abc import Callable
from typing import Annotated, Literal

from fastapi import FastAPI, Path, Query, Request
from starlette.responses import Response

from octavo_server.errors import RequestError
from octavo_server.frontend.described import answers
from octavo_server.frontend.generation import Caller
from octavo_server.frontend.responses import encode
from octavo_server.frontend.responses_api import objects
from octavo_server.frontend.responses_api.conversation import input_items
from octavo_server.frontend.responses_api.counting import InputTokens, InputTokensRequest, count_input
from octavo_server.frontend.responses_api.events import Event
from octavo_server.frontend.responses_api.fields import ResponsesRequest
from octavo_server.frontend.responses_api.respond import Responding
from octavo_server.frontend.responses_api.store import ResponseStore, Stored, Turn
from octavo_server.frontend.sse import stream, until_disconnect
from octavo_server.frontend.state import ServerState

ResponseId = Annotated[str, Path(min_length=1, max_length=256)]
MIB = 2**20


def add_responses_routes(app: FastAPI, state: ServerState, caller_of: Callable[[Request], Caller]) -> None:
    """Add them to an app. `caller_of`: whose request it is."""
    config = state.config
    store = ResponseStore(int(config.response_store_size * MIB), config.response_store_seconds)
    _add_asking(app, state, store, caller_of)
    _add_kept(app, state, store, caller_of)
    _add_refused(app, store, caller_of)


def _add_asking(app: FastAPI, state: ServerState, store: ResponseStore, caller_of: Callable[[Request], Caller]) -> None:
    """What the model is asked."""

    @app.post("/v1/responses", responses=answers(objects.Response, Event, last=""))
    async def create_response(body: ResponsesRequest, request: Request) -> Response:
        """Answer, in the form of responses."""
        job = Responding.prepare(state, store, body, caller_of(request))
        if body.stream:
            return await stream(request, job)

        async def answer() -> bytes:
            return await (await job).answer()

        return _json(await until_disconnect(request.receive, answer()))

    @app.post("/v1/responses/input_tokens", responses=answers(InputTokens))
    async def count_input_tokens(body: InputTokensRequest, request: Request) -> Response:
        """How many tokens a response's prompt would have."""
        return _json(await count_input(state, store, body, caller_of(request).salt))


def _add_kept(app: FastAPI, state: ServerState, store: ResponseStore, caller_of: Callable[[Request], Caller]) -> None:
    """What has been kept."""

    @app.get("/v1/responses/{response_id}", responses=answers(objects.Response))
    async def get_response(response_id: ResponseId, request: Request, stream: bool = False) -> Response:
        """A response that has been kept."""
        if stream:
            raise RequestError("stream: events are not kept; leave it out or give false", param="stream")
        return _json(_stored(store, caller_of(request), response_id).json)

    @app.delete("/v1/responses/{response_id}", responses=answers(objects.Deleted))
    async def delete_response(response_id: ResponseId, request: Request) -> Response:
        """Forget a response under its id. Those that went on with it hold its content in their conversation."""
        if not store.delete(caller_of(request).salt, response_id):
            raise _unknown(response_id)
        return _json(encode(objects.Deleted(response_id)))

    @app.get("/v1/responses/{response_id}/input_items", responses=answers(objects.InputItems))
    async def list_input_items(
        response_id: ResponseId,
        request: Request,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
        after: Annotated[str | None, Query(max_length=512)] = None,
    ) -> Response:
        """What the model was given for a response, in pages."""
        turn = _stored(store, caller_of(request), response_id).turn
        return _json(await state.in_thread(_page, turn, limit, order, after))


def _add_refused(app: FastAPI, store: ResponseStore, caller_of: Callable[[Request], Caller]) -> None:
    """What is not done here."""

    @app.post("/v1/responses/compact", status_code=400, response_description="It is refused")
    async def compact() -> Response:
        """Refused: nothing here sums up conversations."""
        raise RequestError(
            "conversations are not compacted here: what is left out of one is the client's choice",
            code="not_supported",
        )

    @app.post("/v1/responses/{response_id}/cancel", status_code=400, response_description="It is refused")
    async def cancel_response(response_id: ResponseId, request: Request) -> Response:
        """Refused: only what runs in the background can be cancelled."""
        _stored(store, caller_of(request), response_id)
        raise RequestError(
            "only a response that runs in the background can be cancelled: close the connection of one that is streamed"
        )


def _stored(store: ResponseStore, caller: Caller, response_id: str) -> Stored:
    found = store.get(caller.salt, response_id)
    if found is None:
        raise _unknown(response_id)
    return found


def _page(turn: Turn, limit: int, order: str, after: str | None) -> bytes:
    items = input_items(turn)
    ordered = items if order == "asc" else items[::-1]
    if after is not None:
        places = [at for at, item in enumerate(ordered) if item["id"] == after]
        if not places:
            raise RequestError(f"after: there is no item {after!r} in this list", param="after")
        ordered = ordered[places[0] + 1 :]
    page = ordered[:limit]
    ends = (page[0]["id"], page[-1]["id"]) if page else (None, None)
    return encode(objects.InputItems(page, len(ordered) > limit, *ends))


def _unknown(response_id: str) -> RequestError:
    return RequestError(
        f"there is no response {response_id!r}: it was never kept, has been deleted or is too old",
        param="response_id",
        code="response_not_found",
        status=404,
    )


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
