"""Spans as a collector gets them, over OTLP/HTTP; and that a collector that is gone hurts nobody."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

import serving
from octavo_server.frontend.tracing import traces_url

MARK = "zanzibar7"
FAST = {"OTEL_BSP_SCHEDULE_DELAY": "50"}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": f"{MARK} {MARK}"}], "max_tokens": 5}


class Collector:
    """What an OpenTelemetry collector does with spans, but for keeping them anywhere else."""

    def __init__(self) -> None:
        self.batches: list[ExportTraceServiceRequest] = []
        self.paths: set[str] = set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.paths.add(self.path)
                collector.batches.append(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    @property
    def spans(self) -> list[Span]:
        return [
            span
            for batch in list(self.batches)
            for resource in batch.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def of(self, request_id: str) -> Span:
        """The one span of a request."""

        def found() -> list[Span]:
            return [span for span in self.spans if attributes(span)["gen_ai.request.id"] == request_id]

        serving.until(found)
        (span,) = found()
        return span


def attributes(span: Span) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for pair in span.attributes:
        kind = pair.value.WhichOneof("value")
        value = getattr(pair.value, kind)
        told[pair.key] = [each.string_value for each in value.values] if kind == "array_value" else value
    return told


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.server.shutdown()
    made.thread.join()
    made.server.server_close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return serving.text_model(tmp_path_factory.mktemp("traces") / "model")


@pytest.fixture(scope="module")
def server(model: Path, collector: Collector) -> Iterator[serving.ServerProcess]:
    env = {**FAST, "FAKE_ERROR_TOKEN": "40"}
    with serving.serve(model, env=env, otlp_traces_endpoint=collector.url) as process:
        process.wait_until_ready()
        yield process


def test_a_request_has_a_span_with_sizes_times_and_parameters(
    server: serving.ServerProcess, collector: Collector
) -> None:
    before = time.time_ns()
    body = CHAT | {"stream": True, "temperature": 0.5, "top_p": 0.9, "seed": 3, "stop": [MARK * 9]}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body)
    first = json.loads(answer.text.split("\n\n")[0].removeprefix("data: "))
    span = collector.of(answer.headers["x-request-id"])
    told = attributes(span)
    assert (span.name, span.kind) == ("chat tiny", Span.SPAN_KIND_SERVER)
    assert before <= span.start_time_unix_nano <= span.end_time_unix_nano <= time.time_ns()
    latencies = {name: told.pop(name) for name in [*told] if ".latency." in name}
    assert {"gen_ai.latency.time_to_first_token", "gen_ai.latency.time_in_model_decode"} <= latencies.keys()
    assert all(0 <= seconds <= latencies["gen_ai.latency.e2e"] for seconds in latencies.values())
    assert (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9 == pytest.approx(latencies["gen_ai.latency.e2e"])
    tokens = told.pop("gen_ai.usage.input_tokens")
    assert tokens == told.pop("gen_ai.usage.prompt_tokens") > 4
    assert told == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "octavo",
        "gen_ai.request.model": "tiny",
        "gen_ai.response.model": "tiny",
        "gen_ai.request.id": answer.headers["x-request-id"],
        "gen_ai.response.id": first["id"],
        "gen_ai.response.finish_reasons": ["length"],
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.usage.completion_tokens": 5,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.seed": 3,
        "gen_ai.request.max_tokens": 5,
        "http.request.method": "POST",
        "http.response.status_code": 200,
    }
    assert collector.paths == {"/v1/traces"}
    assert not any(MARK.encode() in batch.SerializeToString() for batch in collector.batches)
    (resource,) = {str(batch.resource_spans[0].resource) for batch in collector.batches}
    assert "octavo" in resource


def test_embeddings_and_responses_have_spans_too(server: serving.ServerProcess, collector: Collector) -> None:
    answer = httpx.post(f"{server.url}/v1/embeddings", json={"model": "tiny", "input": [f"{MARK} a", "b"]})
    span = collector.of(answer.headers["x-request-id"])
    told = attributes(span)
    assert (span.name, told["gen_ai.response.id"]) == ("embeddings tiny", answer.json()["id"])
    assert told["gen_ai.usage.input_tokens"] == answer.json()["usage"]["prompt_tokens"]
    assert not {"gen_ai.usage.output_tokens", "gen_ai.latency.time_to_first_token"} & told.keys()
    answer = httpx.post(f"{server.url}/v1/responses", json={"model": "tiny", "input": MARK, "max_output_tokens": 3})
    span = collector.of(answer.headers["x-request-id"])
    assert (span.name, attributes(span)["gen_ai.response.id"]) == ("chat tiny", answer.json()["id"])
    assert not any(MARK.encode() in batch.SerializeToString() for batch in collector.batches)


def test_a_span_belongs_to_the_trace_that_the_client_began(server: serving.ServerProcess, collector: Collector) -> None:
    parent = {"traceparent": "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01", "tracestate": "a=b"}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=CHAT, headers=parent)
    span = collector.of(answer.headers["x-request-id"])
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == ("0123456789abcdef" * 2, "0123456789abcdef")
    assert span.trace_state == "a=b"
    others = [httpx.post(f"{server.url}/v1/chat/completions", json=CHAT, headers=h) for h in ({}, {"traceparent": "x"})]
    spans = [collector.of(other.headers["x-request-id"]) for other in others]
    assert [other.parent_span_id for other in spans] == [b"", b""]
    assert len({each.trace_id for each in (span, *spans)}) == 3


def test_a_trace_that_is_not_sampled_stays_so(server: serving.ServerProcess, collector: Collector) -> None:
    parent = {"traceparent": "00-0123456789abcdef0123456789abcdef-0123456789abcdef-00"}
    quiet = httpx.post(f"{server.url}/v1/chat/completions", json=CHAT, headers=parent)
    collector.of(httpx.post(f"{server.url}/v1/chat/completions", json=CHAT).headers["x-request-id"])
    known = {attributes(span)["gen_ai.request.id"] for span in collector.spans}
    assert quiet.status_code == 200 and quiet.headers["x-request-id"] not in known


def test_a_request_that_fails_in_the_engine_is_an_error(server: serving.ServerProcess, collector: Collector) -> None:
    body = {"model": "tiny", "prompt": [40, 41, 42], "max_tokens": 9}
    answer = httpx.post(f"{server.url}/v1/completions", json=body)
    span = collector.of(answer.headers["x-request-id"])
    told = attributes(span)
    assert answer.status_code == told["http.response.status_code"] == 500
    assert (span.name, span.status.code, told["error.type"]) == ("text_completion tiny", 2, "internal")


def test_a_collector_that_is_gone_neither_slows_requests_nor_keeps_the_server(model: Path) -> None:
    with serving.serve(model, env=FAST, otlp_traces_endpoint="http://127.0.0.1:9/v1/traces") as server:
        server.wait_until_ready()
        for _ in range(20):
            assert httpx.post(f"{server.url}/v1/chat/completions", json=CHAT).status_code == 200
        serving.until(lambda: "opentelemetry" in server.log)  # it has tried
        assert httpx.get(f"{server.url}/ready").status_code == 200
        server.process.terminate()
        assert server.process.wait(serving.PATIENCE_SECONDS) == 0
        assert "Traceback" not in server.log


def test_a_collector_that_never_answers_holds_up_nobody(model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(serving.PATIENCE_SECONDS)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with serving.serve(model, env=FAST, otlp_traces_endpoint=url) as server:
            server.wait_until_ready()
            assert httpx.post(f"{server.url}/v1/chat/completions", json=CHAT).status_code == 200
            connection, _ = listener.accept()
            with connection:
                assert connection.recv(4).startswith(b"POST")  # a batch is on its way, and stays there
                for _ in range(20):  # httpx waits for five seconds, the exporter for ten
                    assert httpx.post(f"{server.url}/v1/chat/completions", json=CHAT).status_code == 200
                server.process.send_signal(signal.SIGINT)
                assert server.process.wait(serving.PATIENCE_SECONDS) == 130


def test_without_the_packages_it_says_what_to_install(model: Path) -> None:
    program = """
import sys
sys.modules["opentelemetry.sdk.trace"] = None
from octavo_server.errors import ConfigError
from octavo_server.frontend.tracing import OtlpTracing
try:
    OtlpTracing("http://x", "m")
except ConfigError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "--otlp-traces-endpoint" in said and "pip install 'octavo[tracing]'" in said


def test_a_server_without_tracing_imports_none_of_it(model: Path) -> None:
    program = "import sys, octavo_server.frontend.server; print([m for m in sys.modules if 'opentelemetry.sdk' in m])"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("http://c:4318", "http://c:4318/v1/traces"),
        ("https://c:4318/", "https://c:4318/v1/traces"),
        ("http://c/otlp/v1/traces", "http://c/otlp/v1/traces"),
    ],
)
def test_a_collector_may_be_named_without_a_path(given: str, used: str) -> None:
    assert traces_url(given) == used
