"""What is known of one HTTP request: the line of the log and the span that tell of it are made from this at its end."""

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

from octavo_server.frontend.answer import Answer
from octavo_server.frontend.fields import Body
from octavo_server.frontend.generation_fields import GenerationRequest
from octavo_server.frontend.ids import new_id
from octavo_server.frontend.responses import Usage

REQUEST_ID: Final = "x-request-id"
_SANE: Final = re.compile(r"[!-~]{1,128}")  # printable, and short enough for every line
_TRACE_HEADERS: Final = frozenset({b"traceparent", b"tracestate"})


@dataclass(slots=True)
class RequestRecord:
    """One request, from its arrival on. Times are seconds of CLOCK_MONOTONIC, but for `began`: ns since 1970.

    `seconds`: from its arrival to its end. `trace`: W3C's headers as they came. `model` and what follows it: of a
    request that came as far as the engine, which knows it by names that begin with `engine_id`; `request`: of one that
    is answered with tokens. `phases`: seconds of each, of the choice that had its first token first.
    """

    request_id: str
    method: str
    arrival: float
    began: int
    trace: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    status: int = 0
    error: str | None = None
    param: str | None = None
    model: str | None = None
    engine_id: str = ""
    request: GenerationRequest | None = None
    response_id: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    phases: dict[str, float] = field(default_factory=dict)
    finish_reasons: list[str] = field(default_factory=list)

    def refused(self, error: str, param: str | None) -> None:
        """It is answered with an error object. What it quotes may be a client's text: only a field of ours is kept."""
        self.error = error
        name = re.split(r"[.\[]", param or "", maxsplit=1)[0]
        self.param = name if name in _known_fields() else None

    def embedded(self, answers: Sequence[Answer], prompt_tokens: int, error: str | None) -> None:
        """The engine has done with its inputs, or has failed with one of them. error: its kind, if it did."""
        self.prompt_tokens = prompt_tokens
        self.cached_tokens = sum(answer.num_cached_tokens for answer in answers)
        queued = [phases["queue"] for answer in answers if "queue" in (phases := answer.metrics.phases())]
        self.phases = {"queue": min(queued)} if queued else {}
        self.error = self.error or error

    def generated(self, answers: Sequence[Answer], usage: Usage, error: str | None) -> None:
        """The engine has done with it. error: its kind, if it failed."""
        self.prompt_tokens, self.completion_tokens = usage.prompt_tokens, usage.completion_tokens
        self.cached_tokens = usage.prompt_tokens_details.cached_tokens
        self.finish_reasons = [answer.metrics.reason for answer in answers if answer.metrics.reason is not None]
        begun = [answer.metrics.phases() for answer in answers]
        self.phases = min(begun, key=lambda phases: phases.get("first_token", float("inf")), default={})
        self.error = self.error or error


@cache
def _known_fields() -> frozenset[str]:
    """Names of all fields of all bodies, and of what stands in them."""
    kinds = [Body]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return frozenset(name for kind in kinds for name in kind.model_fields)


def begin(method: str, headers: Iterable[tuple[bytes, bytes]]) -> RequestRecord:
    """A request has arrived. It keeps the id that it came with, if that can be shown in a line."""
    given, trace = None, {}
    for name, value in headers:
        if name == b"x-request-id":
            given = value.decode("latin-1")
        elif name in _TRACE_HEADERS and len(value) <= 512:
            trace[name.decode()] = value.decode("latin-1")
    return RequestRecord(sane_id(given) or new_id(), method, time.monotonic(), time.time_ns(), trace)


def sane_id(given: str | None) -> str | None:
    """An id that a client gives, if it is 1 to 128 printable ASCII characters without a space."""
    return given if given is not None and _SANE.fullmatch(given) else None


def access_fields(record: RequestRecord, route: str, key: str | None) -> dict[str, Any]:
    """What the log says of a request that has ended; nothing of what it said or was answered."""
    reasons = record.finish_reasons
    told: dict[str, Any] = {
        "key": key,
        "method": record.method,
        "route": route,
        "status": record.status,
        "error": record.error,
        "param": record.param,
        "seconds": _rounded(record.seconds),
    }
    if record.model is not None:
        response_id = record.response_id or ""
        told |= {
            "model": record.model,
            "response_id": record.response_id,
            "engine_id": None if record.engine_id in response_id else record.engine_id,
            "prompt_tokens": record.prompt_tokens,
            "cached_tokens": record.cached_tokens,
            "queue_seconds": _rounded(record.phases.get("queue")),
        }
    if record.request is not None:
        told |= {
            "stream": bool(record.request.stream),
            "ttft_seconds": _rounded(record.phases.get("first_token")),
            "completion_tokens": record.completion_tokens,
            "finish_reason": reasons[0] if len(set(reasons)) == 1 else reasons or None,
        }
    return told


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
