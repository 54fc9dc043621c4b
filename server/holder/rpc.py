"""gRPC plumbing of the ShareHolder service."""

from __future__ import annotations

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
        super().__init__(METHODS, meter=meter, log=log)
        self._gate = gate

    def guarded(self, handler: Handler, method: str) -> Handler:
        """Return the handler behind the gate."""
        return self._gate.guarded(handler, method)

    def _judge(
        self, error: Exception, method: str
    ) -> tuple[grpc.StatusCode, errors_pb2.ErrorDetail]:
        if isinstance(error, SharedRoundError) and error.reason:
            error = as_service_error(error)
        return super()._judge(error, method)
