"""What a failed call means."""

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata

from client.convert import error_from_rpc
from client.errors import ServerInternalError, TransportError
from protos.fedagg.v1.errors_pb2 import ErrorDetail, ErrorReason


def failure(code: grpc.StatusCode, *trailer: tuple[str, bytes]) -> AioRpcError:
    return AioRpcError(code, Metadata(), Metadata(*trailer), details="words")


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
    ],
)
def test_a_status_the_server_did_not_give_is_a_lost_connection(code: grpc.StatusCode) -> None:
    error = error_from_rpc(failure(code))
    assert isinstance(error, TransportError)
    assert error.retryable


def test_a_defect_the_server_tells_of_is_not_retried() -> None:
    detail = ErrorDetail(reason=ErrorReason.INTERNAL_ERROR).SerializeToString()
    error = error_from_rpc(failure(grpc.StatusCode.INTERNAL, ("fedagg-error-bin", detail)))
    assert isinstance(error, ServerInternalError)
    assert not error.retryable
