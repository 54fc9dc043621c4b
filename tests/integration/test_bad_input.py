"""Every bad input is refused with its own reason, and nothing of it is stored."""

import asyncio
import struct
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeAlias

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protos.fedagg.v1 import federation_pb2 as pb
from protos.fedagg.v1.errors_pb2 import ErrorReason
from tests.integration.service import (
    CALL_TIMEOUT_S,
    CLOCK,
    TASK,
    Service,
    eventually,
    header,
    refusal_of,
    serving,
    status_of,
    unless_overtaken,
)
from updates.codec import encode_dense

DIM: Final = 7
GOOD: Final = encode_dense(np.ones(DIM, np.float32))
OK: Final = grpc.StatusCode.OK
INVALID: Final = grpc.StatusCode.INVALID_ARGUMENT

Unary: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]"
Streaming: TypeAlias = "grpc.aio.StreamUnaryMultiCallable[bytes, bytes]"
Upload: TypeAlias = "grpc.aio.StreamUnaryCall[pb.SubmitUpdateRequest, pb.SubmissionReceipt]"
Send = Callable[[Service, pb.UpdateHeader, bytes], Awaitable[object]]


def payload(values: list[float], *, dtype: str = "<f4", head: bytes | None = None) -> bytes:
    """Encode by hand what the codec would refuse to."""
    if head is None:
        head = struct.pack("<4sBBHQ", b"FAU1", 1, 1, 0, len(values))
    return head + np.array(values, dtype).tobytes()


def head(magic: bytes = b"FAU1", codec: int = 1, dtype: int = 1, zero: int = 0) -> bytes:
    return struct.pack("<4sBBHQ", magic, codec, dtype, zero, DIM)


BAD_PAYLOADS: Final = {
    "nan": (payload([1, 2, 3, float("nan"), 5, 6, 7]), "NON_FINITE_UPDATE"),
    "infinity": (payload([1, 2, 3, 4, 5, 6, float("inf")]), "NON_FINITE_UPDATE"),
    "minus infinity": (payload([-float("inf")] + [0] * 6), "NON_FINITE_UPDATE"),
    "too few elements": (payload([1] * 6), "WRONG_SHAPE"),
    "no elements": (payload([]), "WRONG_SHAPE"),
    "float16": (payload([1] * DIM, dtype="<f2", head=head(dtype=2)), "WRONG_DTYPE"),
    "float64 of half the elements": (
        payload([1, 2, 3], dtype="<f8", head=head(dtype=3)),
        "WRONG_DTYPE",
    ),
    "unknown dtype": (payload([1] * DIM, head=head(dtype=9)), "MALFORMED_UPDATE"),
    "unknown codec": (payload([1] * DIM, head=head(codec=2)), "MALFORMED_UPDATE"),
    "reserved bytes set": (payload([1] * DIM, head=head(zero=1)), "NON_CANONICAL_UPDATE"),
    "wrong magic": (payload([1] * DIM, head=head(magic=b"FAU2")), "MALFORMED_UPDATE"),
    "shorter than its header says": (GOOD[:-4], "MALFORMED_UPDATE"),
    "cut in its header": (GOOD[:9], "MALFORMED_UPDATE"),
    "garbage": (bytes(range(44)), "MALFORMED_UPDATE"),
    "one element too many": (payload([1] * (DIM + 1)), "UPDATE_TOO_LARGE"),
}


async def send_inline(service: Service, head: pb.UpdateHeader, data: bytes) -> object:
    return await service.inline(head, data)


async def send_stream(service: Service, head: pb.UpdateHeader, data: bytes) -> object:
    return await service.stream(head, *(data[i : i + 5] for i in range(0, len(data), 5)))


PATHS: Final[dict[str, Send]] = {"inline": send_inline, "stream": send_stream}


@pytest.fixture(params=PATHS)
def send(request: pytest.FixtureRequest) -> Send:
    return PATHS[request.param]


def changed(head: pb.UpdateHeader, **fields: object) -> pb.UpdateHeader:
    """The same header with other fields."""
    after = pb.UpdateHeader()
    after.CopyFrom(head)
    after.MergeFrom(pb.UpdateHeader(**fields))  # type: ignore[arg-type]  # tests name the fields
    return after


async def assert_still_takes_a_good_update(service: Service) -> None:
    """The refusal cost the device nothing: its real update is admitted."""
    receipt = await service.inline(header("d1", GOOD, submission_id="after"), GOOD)
    assert receipt.accepted_at_ms > 0


async def test_a_bad_payload_is_refused_with_its_own_reason(
    collecting: Service, send: Send
) -> None:
    before = collecting.stored_updates()
    for name, (data, reason) in BAD_PAYLOADS.items():
        refusal = await refusal_of(send(collecting, header("d1", data), data))
        assert (refusal.code, refusal.reason) == (INVALID, reason), (name, refusal.message)
    assert collecting.stored_updates() == before
    # The device is counted among the refused once, however often it tried.
    assert collecting.store.smembers(f"fedagg:{{{TASK}}}:rejected:1") == {b"d1"}
    await assert_still_takes_a_good_update(collecting)


async def test_a_batch_has_an_outcome_for_every_update(collecting: Service) -> None:
    good = header("d2", GOOD)
    bad = [(header("d1", data), data) for data, _ in BAD_PAYLOADS.values()]
    nobody = (changed(header("d1", GOOD), task="nobody"), GOOD)
    nameless = (pb.UpdateHeader(), b"")
    outcomes = await collecting.batch(bad[0], (good, GOOD), *bad[1:], nobody, nameless)
    reasons = [
        ErrorReason.Name(outcome.error.reason) if outcome.HasField("error") else "receipt"
        for outcome in outcomes
    ]
    expected = [reason for _, reason in BAD_PAYLOADS.values()]
    assert reasons == [
        expected[0],
        "receipt",
        *expected[1:],
        "UNKNOWN_TASK",
        "MALFORMED_REQUEST",
    ]
    assert outcomes[1].receipt.device_id == "d2"
    assert collecting.store.hkeys(f"fedagg:{{{TASK}}}:submissions:1") == [b"d2"]


NOT_AS_DECLARED: Final[list[tuple[dict[str, object], bytes, str]]] = [
    ({"payload_bytes": 45}, GOOD, "UPDATE_TOO_LARGE"),
    ({"payload_bytes": 2**40}, GOOD, "UPDATE_TOO_LARGE"),
    ({"payload_bytes": 40}, GOOD, "UPDATE_TOO_LARGE"),
    ({"payload_digest": b"\x01" * 16}, GOOD, "DIGEST_MISMATCH"),
    ({}, payload([2] * DIM), "DIGEST_MISMATCH"),
    ({}, GOOD[:-4], "TRUNCATED_STREAM"),
    ({}, b"", "TRUNCATED_STREAM"),
]


async def test_what_arrives_must_be_what_was_declared(collecting: Service, send: Send) -> None:
    before = collecting.stored_updates()
    for fields, data, reason in NOT_AS_DECLARED:
        head = changed(header("d1", GOOD), **fields)
        refusal = await refusal_of(send(collecting, head, data))
        assert (refusal.code, refusal.reason) == (INVALID, reason), (fields, refusal.message)
        after = collecting.stored_updates()
        if reason == "TRUNCATED_STREAM":
            # A stream that ended early may be resumed: its bytes wait, but nothing is admitted.
            after = {name: value for name, value in after.items() if ".parts/" not in name}
        assert after == before
    await assert_still_takes_a_good_update(collecting)


OUT_OF_RANGE: Final[list[dict[str, object]]] = [
    {"task": "Digits!"},
    {"device_id": "d 1"},
    {"device_id": "d" * 129},
    {"submission_id": "../s1"},
    {"submission_id": "s" * 65},
    {"round": 2**60},
    {"model_version": 2**60},
    {"num_samples": 2**31},
    {"payload_digest": b"short"},
    {"loss_before": float("nan")},
    {"loss_after": float("inf")},
]
REQUIRED: Final = (
    "task",
    "round",
    "device_id",
    "submission_id",
    "model_version",
    "num_samples",
    "payload_bytes",
    "payload_digest",
)


async def test_a_header_out_of_range_is_malformed(collecting: Service, send: Send) -> None:
    before = collecting.stored_updates()
    bad = [(changed(header("d1", GOOD), **fields), next(iter(fields))) for fields in OUT_OF_RANGE]
    for field in REQUIRED:
        head = header("d1", GOOD)
        head.ClearField(field)
        bad.append((head, field))
    for head, field in bad:
        refusal = await refusal_of(send(collecting, head, GOOD))
        assert (refusal.code, refusal.reason) == (INVALID, "MALFORMED_REQUEST"), field
        assert field in refusal.message
    assert collecting.stored_updates() == before


async def test_an_update_that_does_not_fit_the_round_is_refused(
    collecting: Service, send: Send
) -> None:
    await collecting.check_in("d3", max_wait_ms=0)  # waits, but is in no cohort
    before = collecting.stored_updates()
    unfit: list[tuple[dict[str, object], grpc.StatusCode, str]] = [
        ({"task": "other"}, grpc.StatusCode.NOT_FOUND, "UNKNOWN_TASK"),
        ({"round": 2}, grpc.StatusCode.NOT_FOUND, "UNKNOWN_ROUND"),
        ({"device_id": "d3"}, grpc.StatusCode.FAILED_PRECONDITION, "DEVICE_NOT_SELECTED"),
        ({"model_version": 2}, grpc.StatusCode.FAILED_PRECONDITION, "WRONG_MODEL_VERSION"),
    ]
    for fields, code, reason in unfit:
        refusal = await refusal_of(send(collecting, changed(header("d1", GOOD), **fields), GOOD))
        assert (refusal.code, refusal.reason) == (code, reason)
    assert collecting.stored_updates() == before


async def test_a_closed_round_takes_no_update(collecting: Service, send: Send) -> None:
    await collecting.inline(header("d1", GOOD), GOOD)
    collecting.advance(600_000)  # the collection timeout
    refusal = await refusal_of(send(collecting, header("d2", GOOD), GOOD))
    assert (refusal.code, refusal.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "ROUND_CLOSED",
    )
    record = await collecting.finished(1)
    assert (record["decision"], record["accepted"]) == ("abandoned", 1)
    # Nor does it once the round is over.
    refusal = await refusal_of(send(collecting, header("d2", GOOD), GOOD))
    assert refusal.reason == "ROUND_CLOSED"
    assert collecting.store.hkeys(f"fedagg:{{{TASK}}}:submissions:1") == [b"d1"]


async def test_one_submission_id_holds_one_payload(collecting: Service, send: Send) -> None:
    await send(collecting, header("d1", GOOD), GOOD)
    before = collecting.stored_updates()
    other = payload([2] * DIM)
    conflict = await refusal_of(send(collecting, header("d1", other), other))
    assert (conflict.code, conflict.reason) == (
        grpc.StatusCode.ALREADY_EXISTS,
        "SUBMISSION_CONFLICT",
    )
    again = header("d1", GOOD, submission_id="s2")
    second = await refusal_of(send(collecting, again, GOOD))
    assert (second.code, second.reason) == (
        grpc.StatusCode.ALREADY_EXISTS,
        "ALREADY_CONTRIBUTED",
    )
    assert collecting.stored_updates() == before


async def test_a_stream_starts_with_one_header(collecting: Service) -> None:
    before = collecting.stored_updates()
    data = pb.SubmitUpdateRequest(data=GOOD)
    head = pb.SubmitUpdateRequest(header=header("d1", GOOD))
    for parts in ((data,), (), (pb.SubmitUpdateRequest(), head, data), (head, head, data)):
        refusal = await refusal_of(collecting.stream_parts(*parts))
        assert (refusal.code, refusal.reason) == (INVALID, "MALFORMED_REQUEST")
    assert collecting.stored_updates() == before


async def test_an_inline_update_must_fit_one_message(tmp_path: Path, redis_url: str) -> None:
    limits = {"limits": {"inline-max-bytes": 1024}}
    async with serving(tmp_path, redis_url, sections=limits, dim=300, clock=CLOCK) as service:
        await service.open_round("d1", "d2")
        data = service.update()
        refusal = await refusal_of(service.inline(header("d1", data), data))
        assert (refusal.code, refusal.reason) == (INVALID, "UPDATE_TOO_LARGE")
        assert "SubmitUpdate" in refusal.message
        assert service.store.exists(f"fedagg:{{{TASK}}}:submissions:1") == 0
        assert (await service.stream(header("d1", data), data)).device_id == "d1"


async def test_a_resume_offset_must_lie_within_what_is_stored(collecting: Service) -> None:
    before = collecting.stored_updates()
    refusal = await refusal_of(collecting.stream(header("d1", GOOD, offset=8), GOOD[8:]))
    assert (refusal.code, refusal.reason) == (
        grpc.StatusCode.OUT_OF_RANGE,
        "OFFSET_OUT_OF_RANGE",
    )
    assert collecting.stored_updates() == before
    await refusal_of(collecting.stream(header("d1", GOOD), GOOD[:20]))
    refusal = await refusal_of(collecting.stream(header("d1", GOOD, offset=21), GOOD[21:]))
    assert refusal.reason == "OFFSET_OUT_OF_RANGE"
    # The part is still there to go on from.
    assert (await collecting.upload_status(header("d1", GOOD))).stored_bytes == 20
    receipt = await collecting.stream(header("d1", GOOD, offset=20), GOOD[20:])
    assert receipt.payload_digest == header("d1", GOOD).payload_digest


async def test_a_damaged_part_is_not_offered_for_ever(collecting: Service) -> None:
    await refusal_of(collecting.stream(header("d1", GOOD), GOOD[:20]))
    (part,) = (collecting.data_dir / "blobs" / "updates").rglob("*.parts/*")
    part.write_bytes(b"\xff" * 20)  # as a power loss may leave it
    refusal = await refusal_of(collecting.stream(header("d1", GOOD, offset=20), GOOD[20:]))
    assert refusal.reason == "MALFORMED_UPDATE"
    assert (await collecting.upload_status(header("d1", GOOD))).stored_bytes == 0
    assert (await collecting.stream(header("d1", GOOD), GOOD)).device_id == "d1"


async def test_a_part_that_leads_to_the_wrong_digest_is_dropped(collecting: Service) -> None:
    other = payload([1, 2, 3, 4, 5, 6, 7])
    await refusal_of(collecting.stream(header("d1", GOOD), other[:24]))
    refusal = await refusal_of(collecting.stream(header("d1", GOOD, offset=24), GOOD[24:]))
    assert refusal.reason == "DIGEST_MISMATCH"
    assert (await collecting.upload_status(header("d1", GOOD))).stored_bytes == 0
    assert (await collecting.stream(header("d1", GOOD), GOOD)).device_id == "d1"


async def test_a_fetch_names_an_existing_version_and_offset(service: Service) -> None:
    size = len(service.model)
    assert await service.fetch(1, offset=size) == b""
    beyond = await refusal_of(service.fetch(1, offset=size + 1))
    assert (beyond.code, beyond.reason) == (
        grpc.StatusCode.OUT_OF_RANGE,
        "OFFSET_OUT_OF_RANGE",
    )
    for version in (2, 2**64 - 1):
        unknown = await refusal_of(service.fetch(version))
        assert (unknown.code, unknown.reason) == (
            grpc.StatusCode.NOT_FOUND,
            "UNKNOWN_MODEL_VERSION",
        )
    nowhere = await refusal_of(service.fetch(task="no such task"))
    assert (nowhere.code, nowhere.reason) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_TASK")


async def test_a_check_in_out_of_range_is_malformed(service: Service) -> None:
    good = pb.CheckInRequest(task=TASK, device_id="d1", check_in_id="c")
    for bad in (
        pb.CheckInRequest(),
        pb.CheckInRequest(task=TASK, device_id="d1"),
        pb.CheckInRequest(task="no such task", device_id="d1", check_in_id="c"),
        pb.CheckInRequest(task=TASK, device_id="d/1", check_in_id="c"),
        pb.CheckInRequest(task=TASK, device_id="d1", check_in_id="c", max_wait_ms=60_001),
        pb.CheckInRequest(
            task=TASK, device_id="d1", check_in_id="c", state=pb.DeviceState(battery_percent=101)
        ),
        pb.CheckInRequest(
            task=TASK, device_id="d1", check_in_id="c", state=pb.DeviceState(app_version="1" * 65)
        ),
    ):
        refusal = await refusal_of(service.stub.CheckIn(bad, timeout=CALL_TIMEOUT_S))
        assert (refusal.code, refusal.reason) == (INVALID, "MALFORMED_REQUEST"), bad
    assert service.store.zcard(f"fedagg:{{{TASK}}}:waiting") == 0
    # They differ from this one by what was wrong with them.
    answer = await service.stub.CheckIn(good, timeout=CALL_TIMEOUT_S)
    assert answer.retry_later.reason == pb.RetryLater.WAITING


async def test_an_app_version_that_is_none_makes_no_device_eligible(
    tmp_path: Path, redis_url: str
) -> None:
    criteria = {"criteria": {"min-app-version": "1.2"}}
    async with serving(tmp_path, redis_url, task=criteria) as service:
        for version in ("", "new", "1..2", "-1", "1.2.x", "1.1.9"):
            state = pb.DeviceState(charging=True, app_version=version)
            offer = pb.CheckInRequest(task=TASK, device_id="d1", check_in_id="c", state=state)
            answer = await service.stub.CheckIn(offer, timeout=CALL_TIMEOUT_S)
            assert answer.retry_later.reason == pb.RetryLater.NOT_ELIGIBLE, version
            assert answer.retry_later.detail == "application too old"
        assert service.store.zcard(f"fedagg:{{{TASK}}}:waiting") == 0


async def test_a_progress_report_out_of_range_is_malformed(collecting: Service) -> None:
    for bad in (
        pb.ReportProgressRequest(task=TASK, round=1, device_id="d1", fraction=1.5),
        pb.ReportProgressRequest(task=TASK, round=1, device_id="d1", fraction=float("nan")),
        pb.ReportProgressRequest(task=TASK, round=0, device_id="d1"),
        pb.ReportProgressRequest(task=TASK, round=1, device_id=""),
    ):
        refusal = await refusal_of(collecting.stub.ReportProgress(bad, timeout=CALL_TIMEOUT_S))
        assert (refusal.code, refusal.reason) == (INVALID, "MALFORMED_REQUEST"), bad


async def test_a_batch_has_a_bounded_number_of_updates(collecting: Service) -> None:
    for count in (0, 4097):
        refusal = await refusal_of(collecting.batch(*[(pb.UpdateHeader(), b"")] * count))
        assert (refusal.code, refusal.reason) == (INVALID, "MALFORMED_REQUEST")
        assert str(count) in refusal.message


async def test_an_upload_that_falls_silent_is_ended(tmp_path: Path, redis_url: str) -> None:
    limits = {"limits": {"upload-stall-s": 1.0}}
    async with serving(tmp_path, redis_url, sections=limits, clock=CLOCK) as service:
        await service.open_round("d1", "d2")
        call = service.stub.SubmitUpdate(timeout=CALL_TIMEOUT_S)
        await call.write(pb.SubmitUpdateRequest(header=header("d1", GOOD)))
        await call.write(pb.SubmitUpdateRequest(data=GOOD[:20]))
        refusal = await refusal_of(call)
        assert (refusal.code, refusal.reason) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "OVERLOADED",
        )
        assert refusal.retry_after_ms > 0
        # Nothing was wrong with the bytes: they wait for the rest.
        assert (await service.upload_status(header("d1", GOOD))).stored_bytes == 20


async def begin(service: Service, device: str) -> Upload:
    """Start an upload that sends its header and then waits."""
    upload: Upload = service.stub.SubmitUpdate(timeout=CALL_TIMEOUT_S)
    await upload.write(pb.SubmitUpdateRequest(header=header(device, GOOD)))
    return upload


async def finish(upload: Upload) -> pb.SubmissionReceipt:
    await upload.write(pb.SubmitUpdateRequest(data=GOOD))
    await upload.done_writing()
    return await upload


async def refused(uploads: Mapping[str, Upload], count: int) -> set[str]:
    """Names of the uploads that were refused, once there are `count`, for being too many."""

    async def ended() -> set[str] | None:
        names = {name for name, upload in uploads.items() if upload.done()}
        return names if len(names) == count else None

    names = await eventually(ended)
    for name in names:
        refusal = await refusal_of(uploads[name])
        assert refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refusal.reason == "OVERLOADED"
        assert 0 < refusal.retry_after_ms <= 60_000
    return names


async def test_uploads_beyond_the_window_are_told_to_come_back(
    tmp_path: Path, redis_url: str
) -> None:
    devices = ("d1", "d2", "d3", "d4")
    limits = {"limits": {"uploads-in-flight": 1, "uploads-queued": 1}}
    task = {"reporting-goal": 4}
    async with serving(tmp_path, redis_url, task=task, sections=limits, clock=CLOCK) as service:
        await service.open_round(*devices)
        uploads = {device: await begin(service, device) for device in devices}
        late = await refused(uploads, 2)
        # One is read and one waits; the place that becomes free goes to the one that waits.
        receipts = await asyncio.gather(*(finish(uploads[d]) for d in set(devices) - late))
        assert {receipt.device_id for receipt in receipts} == set(devices) - late
        for device in late:
            assert (await service.stream(header(device, GOOD), GOOD)).device_id == device


async def test_one_device_cannot_fill_the_window(collecting: Service) -> None:
    uploads = {str(number): await begin(collecting, "d1") for number in range(4)}
    late = await refused(uploads, 2)
    assert (await collecting.stream(header("d2", GOOD), GOOD)).device_id == "d2"
    assert (await finish(uploads[min(set(uploads) - late)])).device_id == "d1"
    for upload in uploads.values():
        upload.cancel()


@pytest.mark.slow
async def test_an_upload_that_trickles_is_ended(tmp_path: Path, redis_url: str) -> None:
    limits = {"limits": {"upload-stall-s": 1.0, "upload-min-bytes-per-s": 1 << 30}}
    async with serving(tmp_path, redis_url, sections=limits, clock=CLOCK) as service:
        await service.open_round("d1", "d2")
        call = service.stub.SubmitUpdate(timeout=CALL_TIMEOUT_S)
        await call.write(pb.SubmitUpdateRequest(header=header("d1", GOOD)))
        sent = 0

        async def ended() -> bool | None:
            nonlocal sent
            if call.done():
                return True
            # Never silent for long, and never at its end either.
            if sent < len(GOOD) - 1:
                with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    await call.write(pb.SubmitUpdateRequest(data=GOOD[sent : sent + 1]))
                    sent += 1
            return None

        await eventually(ended, pause_s=0.1)
        refusal = await refusal_of(call)
        assert refusal.reason == "OVERLOADED"
        assert 1 < sent < len(GOOD)
        assert (await service.upload_status(header("d1", GOOD))).stored_bytes > 1


async def test_messages_that_are_no_requests_are_refused(collecting: Service) -> None:
    before = collecting.stored_updates()
    for method in ("CheckIn", "SubmitInlineUpdate", "GetUploadStatus", "ReportProgress"):
        raw: Unary = collecting.channel.unary_unary(f"/fedagg.v1.Federation/{method}")
        # gRPC itself refuses them, before the service sees anything.
        assert await status_of(raw(b"\xff\xff", timeout=CALL_TIMEOUT_S)) is not OK
    assert collecting.stored_updates() == before


def is_acceptable(data: bytes) -> bool:
    """The codec's rules once more, from its documentation."""
    if data[:16] != struct.pack("<4sBBHQ", b"FAU1", 1, 1, 0, DIM) or len(data) != 16 + 4 * DIM:
        return False
    return all(abs(value) < float("inf") for value in struct.unpack(f"<{DIM}f", data[16:]))


MUTATED: Final = st.builds(
    lambda place, byte, cut: GOOD[:place] + bytes([byte]) + GOOD[place + 1 : cut],
    st.integers(0, len(GOOD) - 1),
    st.integers(0, 255),
    st.integers(len(GOOD) - 8, len(GOOD)),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.one_of(st.binary(min_size=1, max_size=44), MUTATED))
async def test_no_payload_breaks_the_server(collecting: Service, data: bytes) -> None:
    status = await status_of(collecting.inline(header("d1", data), data))
    # A good payload conflicts with the good one that came before it.
    expected = {OK, grpc.StatusCode.ALREADY_EXISTS} if is_acceptable(data) else {INVALID}
    assert status in expected


RAW_PARTS: Final = st.lists(
    st.one_of(
        st.binary(max_size=50),
        st.just(pb.SubmitUpdateRequest(header=header("d1", GOOD)).SerializeToString()),
        st.just(pb.SubmitUpdateRequest(data=GOOD[:20]).SerializeToString()),
        st.binary(max_size=20).map(lambda tail: b"\x12" + tail),
    ),
    max_size=4,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=RAW_PARTS)
async def test_no_stream_breaks_the_server(collecting: Service, messages: list[bytes]) -> None:
    raw: Streaming = collecting.channel.stream_unary("/fedagg.v1.Federation/SubmitUpdate")
    call = unless_overtaken(lambda: raw(iter(messages), timeout=CALL_TIMEOUT_S))
    assert await status_of(call) is INVALID
