"""A real OTLP receiver in this process."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span


class Receiver(TraceServiceServicer):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        self.endpoint = ""
        self._lock = threading.Lock()

    def Export(  # noqa: N802  # named by the protocol
        self, request: ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> ExportTraceServiceResponse:
        del context
        with self._lock:
            self.requests.append(request)
        return ExportTraceServiceResponse()

    @property
    def received(self) -> list[tuple[str, Span]]:
        """Every span, with the name of the service that sent it."""
        return [
            (_service_of(resource), span)
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    @property
    def spans(self) -> dict[str, Span]:
        """The last span of each name."""
        return {span.name: span for _, span in self.received}

    @property
    def services(self) -> set[str]:
        """Who sent spans."""
        return {service for service, _ in self.received}


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Receive spans at `endpoint` until the block ends."""
    receiver = Receiver()
    server = grpc.server(ThreadPoolExecutor(max_workers=1))
    add_TraceServiceServicer_to_server(receiver, server)  # type: ignore[no-untyped-call]  # generated
    receiver.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield receiver
    finally:
        server.stop(grace=None).wait()


def _service_of(resource: ResourceSpans) -> str:
    attributes = resource.resource.attributes
    return next(a.value.string_value for a in attributes if a.key == "service.name")
