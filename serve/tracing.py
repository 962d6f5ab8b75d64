"""Traces: a span for every session, and one for every chunk that links to it.

Off unless `OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` is set; these and all other `OTEL_*`
variables mean what OpenTelemetry says. Names are those of its conventions for generative models, which know no video
yet, and `everframe.*` of our own. Nothing that people say or type is told, and of a session only what stands in logs.

Chunks are linked, not children: a span is told at its end, and sessions last for hours. A span costs 64 us, so there is
none for a frame.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from conf.errors import UserError
from serve.media import Shown
from serve.redaction import SHOWN

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
SPOKEN = "http/protobuf"
OPERATION, PROVIDER = "generate_content", "everframe"
FAULTS = ("failed",)
"""Ends of a session that are errors."""
NS = 1_000_000_000


class Silent:
    """A session of which nothing is traced; `Traced` is the same for one that is."""

    def chunk(self, shown: Shown, since_sampled_s: float | None = None) -> None:
        """A chunk's first frame leaves.

        Args:
            shown: what is known of it.
            since_sampled_s: seconds since it was sampled; None: that is not known.
        """

    def end(self, reason: str) -> None:
        """The session has ended. Only the first call counts."""


class Tracing:
    """Begins traces of sessions.

    Args:
        environ: where `OTEL_*` variables are; None: the process's own.

    Attributes:
        on: whether anything is traced.

    Raises:
        UserError: another protocol than HTTP is asked for, or the packages are missing.
    """

    def __init__(self, environ: Mapping[str, str] | None = None):
        environ = os.environ if environ is None else environ
        self.on = _wanted(environ)
        self._provider = self._tracer = None
        if self.on:
            _check(environ)
            self._provider = _provider(environ)
            self._tracer = self._provider.get_tracer("everframe.serve")

    def session(
        self, model: str, id: str, traceparent: str | None = None, server: tuple[str, int] | None = None
    ) -> Silent:
        """A session was given a place.

        Args:
            model: its name.
            id: of the session.
            traceparent: of the request that asked for it (W3C Trace Context); one that is malformed counts as none.
            server: the address and port that it is served on.
        """
        if not self._tracer:
            return Silent()
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier = {"traceparent": traceparent} if traceparent else {}
        common = {"gen_ai.request.model": model, "everframe.session": id[:SHOWN]}
        attributes = common | {
            "gen_ai.operation.name": OPERATION,
            "gen_ai.provider.name": PROVIDER,
            "gen_ai.output.type": "video",
        }
        if server:
            attributes |= {"server.address": server[0], "server.port": server[1]}
        span = self._tracer.start_span(
            f"{OPERATION} {model}",
            context=TraceContextTextMapPropagator().extract(carrier),
            kind=trace.SpanKind.SERVER,
            attributes=attributes,
        )
        return Traced(self._tracer, span, common)

    def close(self, timeout_s: float = 5.0) -> None:
        """Tell what waits; may take so long, so not in the loop."""
        if self._provider:
            self._provider.force_flush(round(timeout_s * 1000))
            self._provider.shutdown()


class Traced(Silent):
    """A session whose trace is told.

    Args:
        tracer: makes spans.
        span: of the session.
        common: attributes of all its spans.
    """

    def __init__(self, tracer: Any, span: Any, common: dict[str, str]):
        self._tracer, self._span, self._common = tracer, span, common
        self._chunks = self._frames = self._late = 0
        self._first_s: float | None = None
        self._begun = time.monotonic()

    def chunk(self, shown: Shown, since_sampled_s: float | None = None) -> None:
        from opentelemetry.trace import Link

        self._chunks += 1
        self._frames += shown.frames
        self._late += shown.late_s > 0
        if self._first_s is None:
            self._first_s = time.monotonic() - self._begun
        told = {
            "everframe.chunk": shown.chunk,
            "everframe.frames": shown.frames,
            "everframe.late_s": shown.late_s,
            "everframe.events": len(shown.events),
            "everframe.control_to_frame_s": shown.latency_s,
        }
        now = time.time_ns()
        span = self._tracer.start_span(
            "chunk",
            context=_root(),
            links=[Link(self._span.get_span_context())],
            attributes=self._common | {name: value for name, value in told.items() if value is not None},
            start_time=now - round((since_sampled_s or 0.0) * NS),
        )
        span.end(now)

    def end(self, reason: str) -> None:
        from opentelemetry.trace import Status, StatusCode

        if not self._span.is_recording():
            return
        told = {
            "everframe.reason": reason,
            "everframe.chunks": self._chunks,
            "everframe.frames": self._frames,
            "everframe.late_chunks": self._late,
        }
        if self._first_s is not None:
            told["everframe.time_to_first_frame_s"] = self._first_s
        if reason in FAULTS:
            told["error.type"] = reason
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.set_attributes(told)
        self._span.end()


def _root() -> Any:
    """No parent, whatever is under way."""
    from opentelemetry.context import Context

    return Context()


def _wanted(environ: Mapping[str, str]) -> bool:
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or environ.get("OTEL_TRACES_EXPORTER") == "none":
        return False
    return any(environ.get(name) for name in ENDPOINTS)


def _check(environ: Mapping[str, str]) -> None:
    for name in PROTOCOLS:
        if (value := environ.get(name)) and value != SPOKEN:
            raise UserError(f"{name}={value}", f"traces are told by {SPOKEN}", f"set {name}={SPOKEN}")


def _provider(environ: Mapping[str, str]) -> Any:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        name = next(name for name in ENDPOINTS if environ.get(name))
        rule = f"traces need a package that is not installed ({error.name})"
        raise UserError(f"{name}={environ[name]}", rule, "pip install everframe[serve]") from error
    named = environ.get("OTEL_SERVICE_NAME") or "service.name=" in environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    provider = TracerProvider(resource=Resource.create({} if named else {"service.name": PROVIDER}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
