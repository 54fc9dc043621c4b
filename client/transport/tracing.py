"""Trace context: from the round into the device's spans, and from these into its calls."""

from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Tracer, TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

GrpcMetadata = tuple[tuple[str, str], ...]

_W3C: Final = TraceContextTextMapPropagator()


def tracer(provider: TracerProvider | None) -> Tracer:
    """Return the client's tracer; without an installed SDK its spans cost nothing."""
    return trace.get_tracer("fedagg.client", tracer_provider=provider)


def context_of(traceparent: str) -> Context:
    """Return the context that a round's `traceparent` names; empty or broken: a new trace."""
    return _W3C.extract({"traceparent": traceparent} if traceparent else {})


def trace_metadata() -> GrpcMetadata:
    """Return the current span as gRPC metadata (`traceparent`), empty outside any span."""
    carrier: dict[str, str] = {}
    _W3C.inject(carrier)
    return tuple(carrier.items())
