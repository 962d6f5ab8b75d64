"""Traces, as a collector on this machine hears them."""

from __future__ import annotations

import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from conf.errors import UserError
from serve.media import Shown
from serve.tracing import ENDPOINTS, Silent, Tracing


class Collector:
    """Takes OTLP over HTTP."""

    def __init__(self):
        requests = self.requests = []

        class Take(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                requests.append((self.path, ExportTraceServiceRequest.FromString(body)))
                self.send_response(200)
                self.end_headers()
                self.wfile.write(ExportTraceServiceResponse().SerializeToString())

            def log_message(self, *_):
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Take)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    @property
    def spans(self) -> list:
        return [s for _, r in self.requests for rs in r.resource_spans for ss in rs.scope_spans for s in ss.spans]

    def named(self, name: str) -> list:
        return [span for span in self.spans if span.name == name]


@pytest.fixture
def collector(monkeypatch):
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    found = Collector()
    monkeypatch.setenv(ENDPOINTS[0], found.address)
    yield found
    found.close()


def told(span) -> dict:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_session_and_its_chunks(collector):
    tracing = Tracing()
    session = tracing.session("nano", "Ab3_x9restofit", PARENT, ("127.0.0.1", 8080))
    session.chunk(Shown(0, 12, 0, 0), since_sampled_s=0.5)
    session.chunk(Shown(1, 12, 12, 43200, ("k1", "p2"), latency_s=0.4, late_s=0.03))
    session.end("lease")
    session.end("stopped")
    tracing.close()
    (path, request), *_ = collector.requests
    assert path == "/v1/traces"
    (name,) = [a.value.string_value for a in request.resource_spans[0].resource.attributes if a.key == "service.name"]
    assert name == "everframe"
    (whole,), chunks = collector.named("generate_content nano"), collector.named("chunk")
    assert (whole.trace_id.hex(), whole.parent_span_id.hex()) == (PARENT.split("-")[1], PARENT.split("-")[2])
    known = told(whole)
    assert known.pop("everframe.time_to_first_frame_s") >= 0
    assert known == {
        "gen_ai.operation.name": "generate_content",
        "gen_ai.provider.name": "everframe",
        "gen_ai.request.model": "nano",
        "gen_ai.output.type": "video",
        "server.address": "127.0.0.1",
        "server.port": 8080,
        "everframe.session": "Ab3_x9",
        "everframe.reason": "lease",
        "everframe.chunks": 2,
        "everframe.frames": 24,
        "everframe.late_chunks": 1,
    }
    assert whole.status.code == 0
    for chunk in chunks:
        (link,) = chunk.links
        assert (link.trace_id, link.span_id) == (whole.trace_id, whole.span_id)
        assert not chunk.parent_span_id and chunk.trace_id != whole.trace_id
    first, second = chunks
    assert first.end_time_unix_nano - first.start_time_unix_nano == 500_000_000
    assert told(second) == {
        "gen_ai.request.model": "nano",
        "everframe.session": "Ab3_x9",
        "everframe.chunk": 1,
        "everframe.frames": 12,
        "everframe.late_s": 0.03,
        "everframe.events": 2,
        "everframe.control_to_frame_s": 0.4,
    }


def test_a_session_that_failed(collector):
    tracing = Tracing()
    tracing.session("nano", "x", "no traceparent at all").end("failed")
    tracing.close()
    (span,) = collector.spans
    assert span.status.code == 2 and told(span)["error.type"] == "failed"
    assert not span.parent_span_id


def test_a_name_of_its_own(collector, monkeypatch):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "studio")
    tracing = Tracing()
    tracing.session("nano", "x").end("stopped")
    tracing.close()
    resource = collector.requests[0][1].resource_spans[0].resource
    assert [a.value.string_value for a in resource.attributes if a.key == "service.name"] == ["studio"]


@pytest.mark.parametrize(
    "changes",
    [
        {ENDPOINTS[0]: ""},
        {"OTEL_SDK_DISABLED": "true"},
        {"OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_off(collector, monkeypatch, changes):
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    tracing = Tracing()
    session = tracing.session("nano", "x", PARENT)
    assert not tracing.on and type(session) is Silent
    session.chunk(Shown(0, 12, 0, 0))
    session.end("stopped")
    tracing.close()
    assert not collector.requests


def test_the_endpoint_of_traces_alone(collector, monkeypatch):
    monkeypatch.delenv(ENDPOINTS[0])
    monkeypatch.setenv(ENDPOINTS[1], f"{collector.address}/here")
    tracing = Tracing()
    tracing.session("nano", "x").end("stopped")
    tracing.close()
    assert [path for path, _ in collector.requests] == ["/here"]


def test_another_protocol_is_refused_at_the_start():
    with pytest.raises(UserError, match=r"OTEL_EXPORTER_OTLP_PROTOCOL=grpc: .*http/protobuf"):
        Tracing({ENDPOINTS[0]: "http://127.0.0.1:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
