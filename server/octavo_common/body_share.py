"""The memory that the bodies of all requests have together."""

from http import HTTPStatus
from typing import Final

from octavo_common.errors import RequestError

SMALL_BODY_BYTES: Final = 64 * 1024  # as much as a connection may buffer anyway: such bodies are always taken


class Room:
    """What all bodies may hold together. Not by what they declare: who sends nothing takes no room."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.held = 0

    def share(self) -> "BodyShare":
        """Of one request; holds nothing yet."""
        return BodyShare(self)


class BodyShare:
    """What one request's body holds, until its answer is there: its fields are kept as long."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._held = 0

    def hold(self, received: int) -> None:
        """So many bytes have come.

        Raises:
            RequestError: there is no room for them now (503).
        """
        if received <= SMALL_BODY_BYTES:
            return
        if self._room.held - self._held + received > self._room.most:
            raise RequestError(
                f"the server holds {self._room.held} bytes of requests that are open, and "
                f"{self._room.most} are allowed: try again, or send a body of {SMALL_BODY_BYTES} bytes at most",
                code="too_many_bodies",
                status=HTTPStatus.SERVICE_UNAVAILABLE,
                type="server_error",
            )
        self._room.held += received - self._held
        self._held = received

    def release(self) -> None:
        """The request has ended."""
        self._room.held -= self._held
        self._held = 0
