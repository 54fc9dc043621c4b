"""Which method answers what: the handlers of the services that devices call."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from protos.fedagg.v1 import enrollment_pb2
from protos.fedagg.v1 import federation_pb2 as pb
from server.devices.device_service import FederationService
from server.errors import MalformedRequest
from server.wire.identity import Context

if TYPE_CHECKING:  # generic in the stubs only
    Call = Callable[[Any, Context], Any]

MessageT = TypeVar("MessageT", bound=Message)

SERVICE: Final = "fedagg.v1.Federation"


METHODS: Final = tuple(
    f"/{service.full_name}/{method.name}"
    for service in (
        pb.DESCRIPTOR.services_by_name["Federation"],
        enrollment_pb2.DESCRIPTOR.services_by_name["Enrollment"],
    )
    for method in service.methods
)


def federation_handlers(service: FederationService) -> grpc.GenericRpcHandler:
    """Make the handlers of `Federation`.

    Requests arrive raw and are parsed inside the interceptor, so that garbage is refused like any
    other bad input. Two directions stay raw for their bytes' sake: SubmitUpdate's requests (see
    `device_messages.upload_part`) and FetchModel's responses (see `ModelCatalog`).
    """
    unary = grpc.unary_unary_rpc_method_handler
    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            "CheckIn": unary(_parsed(service.check_in, pb.CheckInRequest), None, _serialize),
            "FetchModel": grpc.unary_stream_rpc_method_handler(
                _parsed_stream(service.fetch_model, pb.FetchModelRequest), None, None
            ),
            "SubmitUpdate": grpc.stream_unary_rpc_method_handler(
                service.submit_update, None, _serialize
            ),
            "SubmitInlineUpdate": unary(
                _parsed(service.submit_inline_update, pb.InlineUpdate), None, _serialize
            ),
            "SubmitUpdates": grpc.stream_stream_rpc_method_handler(
                lambda messages, context: service.submit_updates(
                    _parsed_messages(messages, pb.SubmitUpdatesRequest), context
                ),
                None,
                _serialize,
            ),
            "GetUploadStatus": unary(
                _parsed(service.get_upload_status, pb.GetUploadStatusRequest), None, _serialize
            ),
            "ReportProgress": unary(
                _parsed(service.report_progress, pb.ReportProgressRequest), None, _serialize
            ),
        },
    )


def _parsed(call: Call, message: type[Message]) -> Call:
    return lambda data, context: call(_parse(data, message), context)


def _parsed_stream(call: Call, message: type[Message]) -> Call:
    async def stream(data: bytes, context: Context) -> AsyncIterator[Any]:
        async for response in call(_parse(data, message), context):
            yield response

    return stream


async def _parsed_messages(
    messages: AsyncIterator[bytes], message: type[MessageT]
) -> AsyncIterator[MessageT]:
    async for data in messages:
        yield _parse(data, message)


def _parse(data: bytes, message: type[MessageT]) -> MessageT:
    try:
        return message.FromString(data)
    except DecodeError as error:
        msg = f"the request is not a {message.DESCRIPTOR.name}"
        raise MalformedRequest(msg) from error


def _serialize(message: Any) -> bytes:  # noqa: ANN401  # any message
    data: bytes = message.SerializeToString()
    return data
