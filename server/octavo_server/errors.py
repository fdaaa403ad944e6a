"""Errors of the server.

OctavoError
 ├── ModelError          the model cannot be loaded; the message names the remedy
 ├── ConfigError         flags that contradict each other or the model; the message names the flag
 ├── RequestError        a request that is refused; becomes an OpenAI error object (400 unless said)
 └── EngineError         the engine is not there, died or hangs (503), or could not finish a request:
                         out of memory (503), too late (504), invalid (400), its own failure (500)
"""

from typing import Literal


class OctavoError(Exception):
    """Base of all errors that are told to a person as one line."""


class ModelError(OctavoError):
    """The model directory cannot be served. Says what is missing and what to do."""


class ConfigError(OctavoError):
    """The configuration cannot work. Says which flag to change."""


class RequestError(OctavoError):
    """A request is refused.

    `param` is the path of the field as the client wrote it; `code` the OpenAI error code, where there is one;
    `retry_after` the seconds after which the same request may be taken.
    """

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        status: int = 400,
        type: str = "invalid_request_error",
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.status = status
        self.type = type
        self.retry_after = retry_after


EngineErrorKind = Literal["unavailable", "internal", "invalid", "out_of_memory", "timeout"]


class EngineError(OctavoError):
    """The engine cannot answer. `kind` is the engine's own word for it, or "unavailable": it is not there, or died."""

    def __init__(self, message: str, kind: EngineErrorKind = "unavailable") -> None:
        super().__init__(message)
        self.kind: EngineErrorKind = kind
