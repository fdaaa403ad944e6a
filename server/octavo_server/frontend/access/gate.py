"""What a request meets first: is this route here, has the client a key, and is it within the key's limits? Plain ASGI.

Routes find in the request's `state`: `key`, the name of the API key, the `salt` that keeps cached pages of tenants
apart, the `ticket` that counts tokens, and `is_gateway`, whether the key is our own gateway's. Until a request has
passed, nothing of it is read but its head.
"""

from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo_common.access.keys import ApiKey, KeyRing
from octavo_common.access.rates import KeyUse, Limits, Rates
from octavo_server.errors import RequestError
from octavo_server.frontend.access.doors import door_of
from octavo_server.frontend.refusal import ErrorObject, of_request_error, refuse

_NONE: Final = Limits()
_NO_KEY: Final = "an API key is needed: send Authorization: Bearer KEY"


class Gate:
    """Refuses with 401 who brings no key, and with 429 who asks for more than a key allows."""

    def __init__(self, app: ASGIApp, keys: KeyRing, rates: Rates | None = None) -> None:
        self._app = app
        self._ring = keys
        self._rates = rates or Rates()
        self._counted: tuple[ApiKey, ...] = ()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401, 404 or 429, or pass on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        door, path = door_of(scope), scope["path"]
        key: ApiKey | None = None
        if self._ring.closed and not door.is_open(path):
            found = self._key(Headers(scope=scope).getlist("authorization"))
            if isinstance(found, str):
                answer = refuse(401, ErrorObject(found, code="invalid_api_key"), {"WWW-Authenticate": "Bearer"})
                await answer(scope, receive, send)
                return
            key = found
        elif not self._ring.closed and self._ring.keys:
            self._note_gateway(scope)
        if not door.leads_to(path):
            message = f"there is no {scope['method']} {path[:200]} at this port"
            await refuse(404, ErrorObject(message, code="unknown_url"))(scope, receive, send)
        elif key is None:
            await self._app(scope, receive, send)
        else:
            await self._within_limits(key, scope, receive, send)

    def _key(self, given: list[str]) -> ApiKey | str:
        """The key, or what is wrong with what was given."""
        if not given:
            return _NO_KEY
        scheme, _, value = given[0].partition(" ")
        key = self._ring.find(value.strip().encode("latin-1", "replace"))
        # Of several, one that stands before us may have looked at another.
        return key if key is not None and scheme.lower() == "bearer" and len(given) == 1 else "the API key is not valid"

    def _note_gateway(self, scope: Scope) -> None:
        """Where nobody needs a key, the gateway still shows by its own who it is."""
        key = self._key(Headers(scope=scope).getlist("authorization"))
        scope.setdefault("state", {})["is_gateway"] = not isinstance(key, str) and key.gateway

    async def _within_limits(self, key: ApiKey, scope: Scope, receive: Receive, send: Send) -> None:
        state = scope.setdefault("state", {})
        state.update(key=key.name, salt=key.salt, is_gateway=key.gateway)
        if key.limits == _NONE:
            await self._app(scope, receive, send)
            return
        use = self._use(key)
        state.setdefault("send", send)  # for what comes behind the head of an answer
        told = _telling(use, send)
        try:
            ticket = use.enter()
        except RequestError as error:
            await of_request_error(error)(scope, receive, told)
            return
        state["ticket"] = ticket
        try:
            await self._app(scope, receive, told)
        finally:
            ticket.leave()

    def _use(self, key: ApiKey) -> KeyUse:
        if self._counted is not self._ring.keys:  # others than before: forget those that are gone
            self._counted = self._ring.keys
            self._rates.keep(frozenset(known.name for known in self._counted))
        return self._rates.of(key.name, key.limits)


def _telling(use: KeyUse, send: Send) -> Send:
    """`send`, which adds what is left of the limits to the head of an answer."""

    async def told(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *use.headers()]
        await send(message)

    return told
