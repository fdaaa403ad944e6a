"""Errors of the server.

OctavoError
 ├── ModelError          the model cannot be loaded; the message names the remedy
 ├── ConfigError         flags that contradict each other or the model; the message names the flag
 ├── RequestError        a request that is refused; becomes an OpenAI error object (400 unless said)
 └── EngineError         the engine process died, hangs or ran out of memory (503)
"""


class OctavoError(Exception):
    """Base of all errors that are told to a person as one line."""


class ModelError(OctavoError):
    """The model directory cannot be served. Says what is missing and what to do."""


class ConfigError(OctavoError):
    """The configuration cannot work. Says which flag to change."""


class RequestError(OctavoError):
    """A request is refused.

    `param` is the path of the field as the client wrote it; `code` the OpenAI error code, where there is one.
    """

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        status: int = 400,
        type: str = "invalid_request_error",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.status = status
        self.type = type


class EngineError(OctavoError):
    """The engine cannot answer: it died, hangs, or ran out of memory."""
