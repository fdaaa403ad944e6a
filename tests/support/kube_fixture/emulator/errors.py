"""What a request can be refused with, as the Status object that the API server answers."""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """An answer with an HTTP status that is not a success."""

    def __init__(self, code: int, reason: str, message: str, causes: list[dict[str, str]] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.causes = causes or []

    def status(self) -> dict[str, Any]:
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "details": {"causes": self.causes},
            "code": self.code,
        }


def bad_request(message: str) -> ApiError:
    return ApiError(400, "BadRequest", message)


def not_found(what: str, name: str) -> ApiError:
    return ApiError(404, "NotFound", f'{what} "{name}" not found')


def not_allowed() -> ApiError:
    return ApiError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")


def conflict(what: str, name: str, why: str) -> ApiError:
    return ApiError(409, "Conflict", f'Operation cannot be fulfilled on {what} "{name}": {why}')


def invalid(what: str, name: str, faults: list[tuple[str, str]]) -> ApiError:
    """`faults`: the path of each field that is wrong, and what is wrong with it."""
    causes = [{"reason": "FieldValueInvalid", "field": path, "message": message} for path, message in faults]
    listed = ", ".join(f"{path}: Invalid value: {message}" for path, message in faults)
    return ApiError(422, "Invalid", f'{what} "{name}" is invalid: {listed}', causes)
