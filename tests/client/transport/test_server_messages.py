"""What a failed call means, and what a plan asks for."""

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata

from client.errors import ProtocolError, ServerInternalError, TransportError
from client.transport.messages import Assignment, RetryLater, RetryLaterReason
from client.transport.server_messages import check_in_answer, error_from_rpc
from protos.fedagg.v1 import federation_pb2 as pb
from protos.fedagg.v1.errors_pb2 import ErrorDetail, ErrorReason
from tests.client.federation import ScriptedFederation
from updates.compression_plan import CompressionPlan, Method, dense_plan
from updates.plan_message import to_message

TOP_2 = CompressionPlan(method=Method.TOP_K, dim=7, num_values=2, error_feedback=True)


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


def read(script: ScriptedFederation) -> Assignment:
    answer = check_in_answer(script.assignment())
    assert isinstance(answer, Assignment)
    return answer


def test_a_plan_that_says_nothing_of_compression_is_dense() -> None:
    assignment = read(ScriptedFederation())
    assert assignment.plan.compression is None
    assert assignment.compression == dense_plan(7)
    assert (assignment.plan.device_noise_multiplier, assignment.plan.reports_clipping) == (0, False)


def test_a_plan_tells_the_compression_and_the_privacy_of_the_round() -> None:
    script = ScriptedFederation(clipping_norm=1.0, compression=to_message(TOP_2))
    script.privacy = pb.PrivacyPlan(device_noise_multiplier=0.5, reports_clipping=True)
    assignment = read(script)
    assert assignment.compression == assignment.plan.compression == TOP_2
    assert (assignment.plan.device_noise_multiplier, assignment.plan.reports_clipping) == (
        0.5,
        True,
    )


@pytest.mark.parametrize(
    "compression",
    [
        pb.CompressionPlan(),
        pb.CompressionPlan(
            method=pb.CompressionPlan.TOP_K, num_values=8, value_type=pb.CompressionPlan.FLOAT32
        ),
        pb.CompressionPlan(
            method=pb.CompressionPlan.RAND_K, num_values=2, value_type=pb.CompressionPlan.FLOAT32
        ),
        pb.CompressionPlan(method=pb.CompressionPlan.TOP_K, num_values=2),
    ],
)
def test_a_compression_plan_that_cannot_be_followed_is_refused(
    compression: pb.CompressionPlan,
) -> None:
    with pytest.raises(ProtocolError, match="compression plan cannot be followed"):
        read(ScriptedFederation(compression=compression))


@pytest.mark.parametrize(
    ("privacy", "message"),
    [
        (pb.PrivacyPlan(device_noise_multiplier=-1.0), "device_noise_multiplier=-1.0"),
        (pb.PrivacyPlan(device_noise_multiplier=float("nan")), "device_noise_multiplier=nan"),
        (pb.PrivacyPlan(device_noise_multiplier=float("inf")), "device_noise_multiplier=inf"),
        (pb.PrivacyPlan(device_noise_multiplier=1.0), "needs a clipping_norm"),
        (pb.PrivacyPlan(reports_clipping=True), "needs a clipping_norm"),
    ],
)
def test_a_privacy_plan_that_makes_no_sense_is_refused(
    privacy: pb.PrivacyPlan, message: str
) -> None:
    with pytest.raises(ProtocolError, match=message):
        read(ScriptedFederation(privacy=privacy))


def test_a_device_learns_that_the_budget_is_exhausted() -> None:
    later = pb.RetryLater(reason=pb.RetryLater.BUDGET_EXHAUSTED, retry_after_ms=2_000)
    answer = check_in_answer(pb.CheckInResponse(retry_later=later))
    assert answer == RetryLater(reason=RetryLaterReason.BUDGET_EXHAUSTED, retry_after_s=2.0)
