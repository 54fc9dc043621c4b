"""gRPC plumbing of the ShareHolder service."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

import grpc

from monitoring.logs import EventLogger
from monitoring.rpc_meter import RpcMeter
from protos.fedagg.v1 import errors_pb2
from protos.fedagg.v1 import share_holder_pb2 as pb
from security.errors import SharedRoundError
from server.holder.gate import Gate
from server.holder.refusals import as_service_error
from server.wire.interceptor import ServiceInterceptor

if TYPE_CHECKING:  # generic in the stubs only
    Handler = grpc.RpcMethodHandler[Any, Any]

SERVICE_NAME: Final = pb.DESCRIPTOR.services_by_name["ShareHolder"].full_name
METHODS: Final = tuple(
    f"/{SERVICE_NAME}/{method.name}"
    for method in pb.DESCRIPTOR.services_by_name["ShareHolder"].methods
)


class HolderInterceptor(ServiceInterceptor):
    """Guards the calls of ShareHolder, maps their errors and measures them, and those alone."""

    def __init__(self, gate: Gate, *, meter: RpcMeter, log: EventLogger) -> None:
        super().__init__(meter=meter, log=log)
        self._gate = gate

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method not in METHODS:
            return handler
        known = self._wrapped.get(method)
        if known is None or known[0] is not handler:
            known = self._wrapped[method] = (
                handler,
                self._wrap(self._gate.guarded(handler, method), method),
            )
        return known[1]

    def _judge(
        self, error: Exception, method: str
    ) -> tuple[grpc.StatusCode, errors_pb2.ErrorDetail]:
        if isinstance(error, SharedRoundError) and error.reason:
            error = as_service_error(error)
        return super()._judge(error, method)
