"""Every error has one status and one reason, and nothing else leaks."""

from collections.abc import Iterator

import grpc

from protos.fedagg.v1 import errors_pb2
from server.errors import RoundClosed, ServiceError
from server.storage.redis_client import StoreRefused
from server.wire.status import (
    MAX_MESSAGE_CHARS,
    STATUS,
    error_detail,
    internal_error_detail,
    status_code,
)


def all_errors(root: type[ServiceError] = ServiceError) -> Iterator[type[ServiceError]]:
    for cls in root.__subclasses__():
        yield cls
        yield from all_errors(cls)


def test_every_error_class_with_a_reason_is_in_the_table() -> None:
    concrete = {cls for cls in all_errors() if "reason" in vars(cls)}
    assert concrete == set(STATUS)


def test_every_leaf_of_the_tree_answers_with_a_known_reason() -> None:
    for cls in all_errors():
        if not cls.__subclasses__():
            detail = error_detail(cls("what was wrong"))
            assert detail.reason != errors_pb2.ErrorReason.ERROR_REASON_UNSPECIFIED
            assert status_code(cls("x")) is not grpc.StatusCode.OK


def test_every_reason_belongs_to_one_class() -> None:
    reasons = [cls.reason for cls in STATUS]
    assert len(set(reasons)) == len(reasons)


def test_every_reason_on_the_wire_has_a_class() -> None:
    wire = set(errors_pb2.ErrorReason.keys()) - {"ERROR_REASON_UNSPECIFIED", "INTERNAL_ERROR"}
    assert {cls.reason for cls in STATUS} == wire


def test_a_private_subclass_answers_as_its_ancestor() -> None:
    error = StoreRefused("OOM")
    assert status_code(error) is grpc.StatusCode.UNAVAILABLE
    assert error_detail(error).reason == errors_pb2.ErrorReason.STORE_UNAVAILABLE


def test_the_hint_and_the_message_travel() -> None:
    detail = error_detail(RoundClosed("round 3 takes no more updates", retry_after_ms=250))
    assert detail.retry_after_ms == 250
    assert detail.message == "round 3 takes no more updates"


def test_a_long_message_is_cut() -> None:
    assert len(error_detail(RoundClosed("x" * 5_000)).message) == MAX_MESSAGE_CHARS


def test_a_defect_tells_nothing_of_the_server() -> None:
    detail = internal_error_detail()
    assert detail.reason == errors_pb2.ErrorReason.INTERNAL_ERROR
    assert detail.message == "internal error"
