"""OpenTelemetry traces: a span for each request that came as far as the engine, sent to a collector by OTLP over HTTP.

The span is made when the request has ended, and is only queued then: a thread of the SDK's sends batches. Its queue is
bounded, and what does not fit is dropped: a collector that is slow or gone costs nobody anything. Attributes are those
of the GenAI semantic conventions, and vLLM's for what these have no name for. No text of anybody's is in a span.

The packages are an extra, `octavo[tracing]`, and are imported only here.
"""

import asyncio
import logging
import threading
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from octavo_common.version import __version__
from octavo_server.errors import ConfigError
from octavo_server.frontend.request_record import RequestRecord

log = logging.getLogger(__name__)

FLUSH_SECONDS: Final = 5.0  # at most for the last spans, at the end
_OPERATIONS: Final = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/responses": "chat",
    "/v1/embeddings": "embeddings",
}
_PARAMETERS: Final = {
    "gen_ai.request.temperature": "temperature",
    "gen_ai.request.top_p": "top_p",
    "gen_ai.request.top_k": "top_k",
    "gen_ai.request.seed": "seed",
    "gen_ai.request.frequency_penalty": "frequency_penalty",
    "gen_ai.request.presence_penalty": "presence_penalty",
    "gen_ai.request.max_tokens": "token_limit",
    "gen_ai.request.choice.count": "n",
    "gen_ai.request.n": "n",  # vLLM's
}
_LATENCIES: Final = {  # vLLM's, in seconds
    "gen_ai.latency.time_in_queue": "queue",
    "gen_ai.latency.time_to_first_token": "first_token",
    "gen_ai.latency.time_in_model_prefill": "prefill",
    "gen_ai.latency.time_in_model_decode": "decode",
}


class OtlpTracing:
    """Spans on their way to a collector. Of the event loop alone, but for `close`."""

    def __init__(self, endpoint: str, model: str) -> None:
        """`endpoint`: its path may be left out. `model` is the answers' name for it. OTEL_BSP_* variables are heeded.

        Raises:
            ConfigError: the packages are not installed.
        """
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise ConfigError(
                "--otlp-traces-endpoint needs OpenTelemetry's packages: pip install 'octavo[tracing]'"
            ) from error
        resource = Resource({SERVICE_NAME: "octavo", SERVICE_VERSION: __version__}).merge(
            OTELResourceDetector().detect()
        )
        # It ends with the server, and not when the interpreter does: that would wait for a collector that is gone.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=traces_url(endpoint))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("octavo", __version__)
        self._parents = TraceContextTextMapPropagator()
        self._kind, self._failed = trace.SpanKind.SERVER, trace.Status(trace.StatusCode.ERROR)
        self._model = model

    def record(self, record: RequestRecord, route: str) -> None:
        """Queue the span of a request that has ended."""
        operation = _OPERATIONS.get(route)
        if operation is None:
            return
        span = self._tracer.start_span(
            f"{operation} {record.model}",
            context=self._parents.extract(record.trace) if record.trace else None,
            kind=self._kind,
            attributes=attributes(record, operation, self._model),
            start_time=record.began,
        )
        if record.status >= 500 or (record.error is not None and record.status < 400):
            span.set_status(self._failed)
        span.end(record.began + int(record.seconds * 1e9))

    async def close(self, seconds: float) -> None:
        """Send what is queued, as far as the time allows."""
        thread = threading.Thread(target=self._shut_down, name="last spans", daemon=True)
        thread.start()
        await asyncio.to_thread(thread.join, min(seconds, FLUSH_SECONDS))

    def _shut_down(self) -> None:
        try:
            self._provider.shutdown()
        except Exception:
            log.exception("the last spans could not be sent")


def traces_url(endpoint: str) -> str:
    """The URL that spans are sent to: a collector that is named without a path takes them at OTLP's own."""
    return endpoint if urlsplit(endpoint).path.strip("/") else f"{endpoint.rstrip('/')}/v1/traces"


def attributes(record: RequestRecord, operation: str, model: str) -> Mapping[str, Any]:
    """What a span says of its request: parameters, sizes and times."""
    request = record.request
    told: dict[str, Any] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "octavo",
        "gen_ai.request.model": record.model,
        "gen_ai.request.id": record.request_id,
        "gen_ai.response.id": record.response_id,
        "gen_ai.response.model": model,
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.cache_read.input_tokens": record.cached_tokens,
        "gen_ai.usage.prompt_tokens": record.prompt_tokens,  # the name before, which vLLM has still
        "gen_ai.latency.e2e": record.seconds,
        "http.request.method": record.method,
        "http.response.status_code": record.status,
        "error.type": record.error,
    }
    told |= {name: record.phases.get(phase) for name, phase in _LATENCIES.items()}
    if request is not None:
        told |= {
            "gen_ai.response.finish_reasons": record.finish_reasons,
            "gen_ai.usage.output_tokens": record.completion_tokens,
            "gen_ai.usage.completion_tokens": record.completion_tokens,  # likewise
        }
        told |= {name: getattr(request, field) for name, field in _PARAMETERS.items()}
    return {name: value for name, value in told.items() if value is not None}
