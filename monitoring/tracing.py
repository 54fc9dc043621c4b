"""Distributed traces over OTLP: off unless an endpoint is configured.

A round is one trace: the coordinator opens it, a device's calls continue it by the W3C
`traceparent` that comes with its assignment. The helpers work on the OpenTelemetry API alone; the
SDK is only imported where traces are exported.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

TRACEPARENT_KEY: Final = "traceparent"

# How long one export may take. A dead collector holds up the end of a process by at most four of
# them: the buffer has room for that many batches.
_EXPORT_TIMEOUT_S: Final = 2.0
_TRACEPARENT_CHARS: Final = 55
_PROPAGATOR: Final = TraceContextTextMapPropagator()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracing:
    """Where a process's spans go. A resource: call `shutdown` once at the end."""

    provider: trace.TracerProvider
    stop: Callable[[], None] | None = None

    @property
    def is_on(self) -> bool:
        """True where spans are exported."""
        return self.stop is not None

    def tracer(self, name: str) -> trace.Tracer:
        """Return the tracer of a module; while off, one of its spans costs some microseconds."""
        return self.provider.get_tracer(name)

    def install(self) -> None:
        """Make this the process's provider, for libraries that ask for the global one.

        Call it at most once in a process, from its composition root.
        """
        if self.is_on:
            trace.set_tracer_provider(self.provider)

    def shutdown(self) -> None:
        """Export what is buffered and stop; spans ended later are dropped."""
        if self.stop is not None:
            self.stop()


def configure_tracing(
    *, service_name: str, otlp_endpoint: str | None, sample_ratio: float = 1.0
) -> Tracing:
    """Set up the export of spans; nothing global changes.

    Args:
        service_name: what the process is called in the trace store, such as "fedagg-coordinator".
        otlp_endpoint: an OTLP gRPC receiver, "https://host:port", or "http://host:port" or
            "host:port" without TLS; None turns tracing off.
        sample_ratio: share of new traces that are recorded, 0 to 1. A call that comes with a
            trace follows the decision made there.

    Raises:
        ValueError: if `sample_ratio` or the endpoint's scheme is out of range.
    """
    if not 0.0 <= sample_ratio <= 1.0:
        msg = f"sample_ratio={sample_ratio} must satisfy 0 <= sample_ratio <= 1"
        raise ValueError(msg)
    if otlp_endpoint is None:
        return Tracing(provider=trace.NoOpTracerProvider())
    scheme, separator, _ = otlp_endpoint.partition("://")
    if not separator:
        return _exporting(service_name, f"http://{otlp_endpoint}", sample_ratio)
    if scheme not in {"http", "https"}:
        msg = f"otlp_endpoint={otlp_endpoint!r} must start with http:// or https://, or no scheme"
        raise ValueError(msg)
    return _exporting(service_name, otlp_endpoint, sample_ratio)


def current_traceparent() -> str:
    """Return the current span as a W3C traceparent, 55 characters; empty without a span."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return carrier.get(TRACEPARENT_KEY, "")


def context_from_traceparent(traceparent: str) -> Context:
    """Return the context of a remote span; an empty one where the text is not a traceparent."""
    if len(traceparent) != _TRACEPARENT_CHARS:
        return Context()
    return _PROPAGATOR.extract({TRACEPARENT_KEY: traceparent}, context=Context())


def context_from_metadata(metadata: Iterable[tuple[str, str | bytes]] | None) -> Context:
    """Return the context that a call's metadata carries; an empty one where it carries none."""
    for key, value in metadata or ():
        if key == TRACEPARENT_KEY and isinstance(value, str):
            return context_from_traceparent(value)
    return Context()


def _exporting(service_name: str, otlp_endpoint: str, sample_ratio: float) -> Tracing:
    # The SDK belongs to the server's dependencies and takes 0.2 s to import: devices and processes
    # without tracing do without it.
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (  # noqa: PLC0415
        OTLPSpanExporter,
    )
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased  # noqa: PLC0415

    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(sample_ratio)),
        resource=Resource.create({"service.name": service_name, "process.pid": os.getpid()}),
        shutdown_on_exit=False,
    )
    exporter = OTLPSpanExporter(
        endpoint=otlp_endpoint,
        insecure=otlp_endpoint.startswith("http://"),
        timeout=_EXPORT_TIMEOUT_S,
    )
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracing(provider=provider, stop=provider.shutdown)
