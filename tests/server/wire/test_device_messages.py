"""Requests are checked once, against the ranges that the protocol states."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos.fedagg.v1 import federation_pb2 as pb
from server.errors import MalformedRequest, UpdateTooLarge
from server.wire import device_messages
from tests.looped import looped


def header(**changes: object) -> pb.UpdateHeader:
    fields: dict[str, object] = {
        "task": "keyboard",
        "round": 1,
        "device_id": "phone-1",
        "submission_id": "s1",
        "model_version": 1,
        "num_samples": 10,
        "payload_bytes": 100,
        "payload_digest": bytes(16),
    }
    return pb.UpdateHeader(**(fields | changes))  # type: ignore[arg-type]  # tests name the fields


def test_a_good_header_becomes_a_submission() -> None:
    submission = device_messages.submission_of(header(loss_before=0.5), b"payload")
    assert submission.round_number == 1
    assert submission.loss_before == 0.5
    assert submission.loss_after is None
    assert submission.inline_payload == b"payload"


@looped(
    "field, value",
    [
        ("task", ""),
        ("task", "Keyboard"),
        ("task", "-x"),
        ("task", "x" * 65),
        ("device_id", ""),
        ("device_id", "a b"),
        ("device_id", "x" * 129),
        ("device_id", "../../etc"),
        ("submission_id", ""),
        ("submission_id", "a.b"),
        ("submission_id", "a|b"),
        ("round", 0),
        ("round", 2**60),
        ("model_version", 0),
        ("num_samples", 0),
        ("num_samples", 2**31),
        ("payload_bytes", 0),
        ("payload_digest", b""),
        ("payload_digest", bytes(17)),
        ("loss_before", math.nan),
        ("loss_after", math.inf),
    ],
)
def test_a_field_out_of_range_is_named(field: str, value: object) -> None:
    with pytest.raises(MalformedRequest, match=field):
        device_messages.submission_of(header(**{field: value}), None)


@looped(
    "field, value",
    [
        ("task", "No"),
        ("device_id", "a/b"),
        ("check_in_id", "a b"),
        ("max_wait_ms", 60_001),
        ("state", pb.DeviceState(battery_percent=101)),
        ("state", pb.DeviceState(app_version="1" * 65)),
    ],
)
def test_a_check_in_out_of_range_is_refused(field: str, value: object) -> None:
    good = pb.CheckInRequest(task="keyboard", device_id="d", check_in_id="c")
    device_messages.check_in_of(good)
    fields: dict[str, object] = {"task": "keyboard", "device_id": "d", "check_in_id": "c"}
    request = pb.CheckInRequest(**(fields | {field: value}))  # type: ignore[arg-type]
    with pytest.raises(MalformedRequest):
        device_messages.check_in_of(request)


def test_a_device_without_a_battery_is_told_from_an_empty_one() -> None:
    request = pb.CheckInRequest(task="t", device_id="d", check_in_id="c")
    assert device_messages.check_in_of(request).conditions.battery_percent is None
    request.state.battery_percent = 0
    assert device_messages.check_in_of(request).conditions.battery_percent == 0


def test_a_payload_over_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(UpdateTooLarge, match="payload_bytes=101 exceeds the task's limit of 100"):
        device_messages.check_size(101, limit=100)
    device_messages.check_size(100, limit=100)


@given(st.binary(max_size=3_000))
def test_data_is_sliced_as_protobuf_would_parse_it(data: bytes) -> None:
    message = pb.SubmitUpdateRequest(data=data).SerializeToString()
    part = device_messages.upload_part(message)
    assert isinstance(part, memoryview)
    assert bytes(part) == data


@looped("size", [0, 1, 127, 128, 16_383, 16_384, 1 << 20])
def test_data_is_sliced_at_every_length_of_the_length(size: int) -> None:
    part = device_messages.upload_part(pb.SubmitUpdateRequest(data=bytes(size)).SerializeToString())
    assert isinstance(part, memoryview)
    assert len(part) == size


def test_a_header_is_parsed() -> None:
    part = device_messages.upload_part(pb.SubmitUpdateRequest(header=header()).SerializeToString())
    assert part == header()


def test_a_message_with_several_parts_means_what_protobuf_says() -> None:
    first = pb.SubmitUpdateRequest(data=b"first").SerializeToString()
    second = pb.SubmitUpdateRequest(data=b"second").SerializeToString()
    part = device_messages.upload_part(first + second)
    assert isinstance(part, memoryview)
    assert bytes(part) == b"second"


def test_an_empty_message_is_refused() -> None:
    with pytest.raises(MalformedRequest, match="neither"):
        device_messages.upload_part(b"")


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_read_as_protobuf_reads_it(message: bytes) -> None:
    try:
        part = device_messages.upload_part(message)
    except MalformedRequest:
        return
    expected = pb.SubmitUpdateRequest.FromString(message)
    if isinstance(part, memoryview):
        assert expected.WhichOneof("part") == "data"
        assert bytes(part) == expected.data
    else:
        assert part == expected.header
