"""Errors that server and gateway share.

OctavoError
 ├── ConfigError         flags that contradict each other or a file; the message names the flag
 └── RequestError        a request that is refused; becomes an OpenAI error object (400 unless said)
"""


class OctavoError(Exception):
    """Base of all errors that are told to a person as one line."""


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
