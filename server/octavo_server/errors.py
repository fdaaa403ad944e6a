"""Errors of the server.

OctavoError
 ├── ModelError          the model cannot be loaded; the message names the remedy
 ├── ConfigError         flags that contradict each other or the model; the message names the flag
 ├── RequestError        a request that is refused; becomes an OpenAI error object (400 unless said)
 └── EngineError         the engine is not there, died or hangs (503), or could not finish a request:
                         out of memory (503), too late (504), invalid (400), its own failure (500)
"""

from typing import Literal

from octavo_common.errors import ConfigError, OctavoError, RequestError

__all__ = ["ConfigError", "EngineError", "EngineErrorKind", "ModelError", "OctavoError", "RequestError"]


class ModelError(OctavoError):
    """The model directory cannot be served. Says what is missing and what to do."""


EngineErrorKind = Literal["unavailable", "internal", "invalid", "out_of_memory", "timeout"]


class EngineError(OctavoError):
    """The engine cannot answer. `kind` is the engine's own word for it, or "unavailable": it is not there, or died."""

    def __init__(self, message: str, kind: EngineErrorKind = "unavailable") -> None:
        super().__init__(message)
        self.kind: EngineErrorKind = kind
