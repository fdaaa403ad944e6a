"""The short way to the routes that take a body: what the framework puts around every route, for parts that they do not
have (dependencies, forms, files), costs a request a fifth of its way. Plain ASGI.
"""

from collections.abc import Awaitable
from typing import cast

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from octavo_server.frontend.body import BodyRoute


class ShortWay:
    """Calls such a route itself; all else, and what it does not know, is passed on."""

    def __init__(self, app: ASGIApp, main: FastAPI) -> None:
        """main: the app whose routes and handlers of errors they are."""
        self._app = app
        self._handlers = {
            kind: handler for kind, handler in main.exception_handlers.items() if kind not in (500, Exception)
        }
        # By their whole path: one with parameters never comes before.
        self._routes = {
            route.path: (route, route.answer)
            for route in main.routes
            if isinstance(route, BodyRoute) and route.answer is not None and not route.param_convertors
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        found = self._routes.get(scope["path"]) if scope["type"] == "http" else None
        if found is None or scope["method"] != "POST" or scope.get("root_path"):
            await self._app(scope, receive, send)
            return
        route, answer = found
        scope.update(route=route, endpoint=route.endpoint, path_params={})
        request = Request(scope, receive, send)
        try:
            response = await answer(request)
        except Exception as error:
            handler = next((self._handlers[kind] for kind in type(error).__mro__ if kind in self._handlers), None)
            if handler is None:
                raise  # to where the framework answers what nobody has foreseen
            response = await cast("Awaitable[Response]", handler(request, error))
            error.__traceback__ = None  # it leads to the body
        await response(scope, receive, send)
