"""The calls against a real server that breaks, forgets and refuses as scripted."""

import asyncio
import hashlib
from collections.abc import AsyncIterator

import grpc
import numpy as np
import pytest

from client.config import RetryPolicy
from client.errors import (
    AuthenticationError,
    ErrorReason,
    FedaggError,
    InvalidUpdateError,
    ModelIntegrityError,
    NotFoundError,
    ProtocolError,
    RoundDeadlineError,
    ServerInternalError,
    ServiceUnavailableError,
    TransportError,
)
from client.runtime import Runtime
from client.trainer import Plan
from client.transport.connection import ServerPool
from client.transport.federation_transport import FederationTransport
from client.transport.messages import (
    Assignment,
    DeviceState,
    Offer,
    Progress,
    ProgressStage,
    Receipt,
    RetryLater,
    RetryLaterReason,
)
from protos.fedagg.v1 import errors_pb2
from protos.fedagg.v1 import federation_pb2 as pb
from tests.client.cutting_proxy import CuttingProxy
from tests.client.federation import (
    DEVICE,
    TASK,
    TRACEPARENT,
    BreakAfter,
    FakeTime,
    Fault,
    Hang,
    LoseResponse,
    Refuse,
    ScriptedFederation,
    Served,
    Status,
    make_config,
    make_submission,
    model_request,
    serve,
)

OFFER = Offer(
    task=TASK,
    device_id=DEVICE,
    check_in_id="c-1",
    state=DeviceState(battery_percent=80, app_version="1.2"),
    max_wait_s=1.0,
)
OVERLOADED = Refuse(errors_pb2.OVERLOADED, grpc.StatusCode.RESOURCE_EXHAUSTED, 7_000)
# Timeouts are real time: on a busy machine a later attempt may run into them as well.
PATIENT = RetryPolicy(max_attempts=1_000, total_s=1e9)
# 1,200,016 payload bytes: three chunks of the default size.
DIM = 300_000


@pytest.fixture
async def transport(served: Served, runtime: Runtime) -> AsyncIterator[FederationTransport]:
    client = FederationTransport(make_config(served.address), runtime=runtime)
    yield client
    await client.close()


async def test_check_in_brings_the_assignment(
    served: Served, transport: FederationTransport
) -> None:
    answer = await transport.check_in(OFFER)
    assert answer == Assignment(
        task=TASK,
        round=3,
        model_version=2,
        model_sha256=hashlib.sha256(served.script.model).hexdigest(),
        model_bytes=len(served.script.model),
        dim=7,
        ttl_s=600.0,
        max_update_bytes=1 << 20,
        plan=Plan(
            local_epochs=2,
            batch_size=4,
            learning_rate=0.1,
            clipping_norm=0.0,
            hyperparameters={"mu": 0.25},
            round=3,
        ),
        traceparent=TRACEPARENT,
    )
    (request,) = served.script.requests("CheckIn")
    assert request == pb.CheckInRequest(
        task=TASK,
        device_id=DEVICE,
        check_in_id="c-1",
        state=pb.DeviceState(battery_percent=80, charging=True, idle=True, app_version="1.2"),
        max_wait_ms=1_000,
    )


async def test_a_lost_check_in_is_repeated_with_its_id(
    served: Served, transport: FederationTransport
) -> None:
    served.script.faults["CheckIn"].extend([LoseResponse(), Status(), LoseResponse()])
    assert isinstance(await transport.check_in(OFFER), Assignment)
    requests = served.script.requests("CheckIn")
    assert len(requests) == 4
    assert all(request == requests[0] for request in requests)


async def test_a_device_left_out_learns_when_to_return(
    served: Served, transport: FederationTransport
) -> None:
    served.script.answers.append(
        pb.CheckInResponse(
            retry_later=pb.RetryLater(
                reason=pb.RetryLater.NOT_ELIGIBLE, retry_after_ms=1_500, detail="battery"
            )
        )
    )
    assert await transport.check_in(OFFER) == RetryLater(
        reason=RetryLaterReason.NOT_ELIGIBLE, retry_after_s=1.5, detail="battery"
    )


@pytest.mark.parametrize(
    "answer",
    [
        pb.CheckInResponse(),
        pb.CheckInResponse(assignment=pb.Assignment(task=TASK, round=1)),
        pb.CheckInResponse(retry_later=pb.RetryLater(retry_after_ms=5)),
    ],
)
async def test_an_incomplete_answer_is_refused(
    served: Served, transport: FederationTransport, answer: pb.CheckInResponse
) -> None:
    served.script.answers.append(answer)
    with pytest.raises(ProtocolError):
        await transport.check_in(OFFER)


@pytest.mark.parametrize(
    "fault",
    [OVERLOADED, Status(grpc.StatusCode.RESOURCE_EXHAUSTED), Status(grpc.StatusCode.ABORTED)],
)
async def test_a_busy_server_is_asked_again(
    served: Served, transport: FederationTransport, fault: Fault
) -> None:
    served.script.faults["CheckIn"].append(fault)
    assert isinstance(await transport.check_in(OFFER), Assignment)
    assert served.script.count("CheckIn") == 2


async def test_the_servers_hint_is_waited_out(
    served: Served, transport: FederationTransport, fake_time: FakeTime
) -> None:
    served.script.faults["CheckIn"].append(OVERLOADED)
    await transport.check_in(OFFER)
    (slept,) = fake_time.sleeps
    assert 7.0 <= slept <= 7.5


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (
            Refuse(errors_pb2.UNKNOWN_TASK, grpc.StatusCode.NOT_FOUND),
            NotFoundError,
        ),
        (
            Refuse(errors_pb2.DEVICE_ID_MISMATCH, grpc.StatusCode.PERMISSION_DENIED),
            AuthenticationError,
        ),
        (Refuse(errors_pb2.INTERNAL_ERROR, grpc.StatusCode.INTERNAL), ServerInternalError),
        (Status(grpc.StatusCode.UNAUTHENTICATED), AuthenticationError),
        (Status(grpc.StatusCode.UNIMPLEMENTED), ServerInternalError),
        (Status(grpc.StatusCode.NOT_FOUND), NotFoundError),
    ],
)
async def test_a_final_refusal_is_not_repeated(
    served: Served, transport: FederationTransport, fault: Fault, expected: type[FedaggError]
) -> None:
    served.script.faults["CheckIn"].append(fault)
    with pytest.raises(expected):
        await transport.check_in(OFFER)
    assert served.script.count("CheckIn") == 1


async def test_a_reason_newer_than_the_client_is_an_unspecified_refusal(
    served: Served, transport: FederationTransport
) -> None:
    newer = errors_pb2.ErrorReason.ValueType(999)
    served.script.faults["CheckIn"].append(Refuse(newer, grpc.StatusCode.INVALID_ARGUMENT))
    with pytest.raises(ServerInternalError) as caught:
        await transport.check_in(OFFER)
    assert caught.value.reason is ErrorReason.ERROR_REASON_UNSPECIFIED


async def test_a_call_without_an_answer_times_out_and_is_repeated(
    served: Served, runtime: Runtime
) -> None:
    config = make_config(served.address, call_timeout_s=0.1, retry=PATIENT)
    transport = FederationTransport(config, runtime=runtime)
    served.script.faults["SubmitInlineUpdate"].append(Hang())
    receipt = await transport.submit(make_submission())
    assert receipt.submission_id == "s-1"
    assert served.script.count("SubmitInlineUpdate") >= 2
    await transport.close()


async def test_fetch_model_returns_the_file(served: Served, transport: FederationTransport) -> None:
    assert await transport.fetch_model(model_request(served.script)) == served.script.model
    assert transport.traffic.bytes_down == len(served.script.model)


async def test_fetch_model_resumes_where_the_stream_broke(
    served: Served, transport: FederationTransport
) -> None:
    served.script.faults["FetchModel"].extend([BreakAfter(130), BreakAfter(0), BreakAfter(7)])
    assert await transport.fetch_model(model_request(served.script)) == served.script.model
    offsets = [request.offset for request in served.script.requests("FetchModel")]  # type: ignore[attr-defined]  # recorded as objects
    assert offsets == [0, 130, 130, 137]
    assert transport.traffic.bytes_down == len(served.script.model)


async def test_fetch_model_goes_on_as_long_as_bytes_arrive(
    served: Served, runtime: Runtime
) -> None:
    config = make_config(served.address, retry=RetryPolicy(max_attempts=2))
    transport = FederationTransport(config, runtime=runtime)
    served.script.faults["FetchModel"].extend([BreakAfter(10)] * 12)
    assert await transport.fetch_model(model_request(served.script)) == served.script.model
    served.script.faults["FetchModel"].extend([BreakAfter(10), BreakAfter(0), BreakAfter(0)])
    with pytest.raises(TransportError):
        await transport.fetch_model(model_request(served.script))
    await transport.close()


async def test_fetch_model_refuses_a_gap(served: Served, transport: FederationTransport) -> None:
    served.script.offset_shift = 1
    with pytest.raises(ModelIntegrityError, match="offset 1"):
        await transport.fetch_model(model_request(served.script))


async def test_fetch_model_needs_no_status_after_the_last_byte(
    served: Served, transport: FederationTransport
) -> None:
    served.script.faults["FetchModel"].append(BreakAfter(len(served.script.model)))
    assert await transport.fetch_model(model_request(served.script)) == served.script.model
    assert served.script.count("FetchModel") == 1


async def test_fetch_model_refuses_a_file_with_another_hash(
    served: Served, transport: FederationTransport
) -> None:
    honest = served.script.sha256
    served.script.model = served.script.model[:-1] + b"!"
    with pytest.raises(ModelIntegrityError, match="hashes to"):
        await transport.fetch_model(model_request(served.script, sha256=honest))
    assert served.script.count("FetchModel") == 1


async def test_fetch_model_refuses_an_announcement_that_differs(
    served: Served, transport: FederationTransport
) -> None:
    with pytest.raises(ModelIntegrityError, match="asked for"):
        await transport.fetch_model(model_request(served.script, sha256="0" * 64))


async def test_fetch_model_refuses_a_model_above_the_limit_unseen(
    served: Served, transport: FederationTransport
) -> None:
    with pytest.raises(ModelIntegrityError, match="max_model_bytes"):
        await transport.fetch_model(model_request(served.script, total_bytes=1 << 40))
    assert served.script.count("FetchModel") == 0


async def test_a_stalled_download_is_resumed(served: Served, runtime: Runtime) -> None:
    config = make_config(served.address, stall_timeout_s=0.2, retry=PATIENT)
    transport = FederationTransport(config, runtime=runtime)
    served.script.faults["FetchModel"].append(Hang())
    assert await transport.fetch_model(model_request(served.script)) == served.script.model
    await transport.close()


async def test_a_small_update_travels_in_one_message(
    served: Served, transport: FederationTransport
) -> None:
    submission = make_submission()
    receipt = await transport.submit(submission)
    assert receipt == Receipt(
        task=TASK,
        round=3,
        device_id=DEVICE,
        submission_id="s-1",
        payload_digest=submission.payload_digest,
        accepted_at_ms=1_700_000_000_000,
    )
    (message,) = served.script.requests("SubmitInlineUpdate")
    assert isinstance(message, pb.InlineUpdate)
    assert message.payload == submission.payload
    assert message.header == pb.UpdateHeader(
        task=TASK,
        round=3,
        device_id=DEVICE,
        submission_id="s-1",
        model_version=2,
        num_samples=10,
        payload_bytes=len(submission.payload),
        payload_digest=submission.payload_digest,
        loss_before=2.0,
        loss_after=1.0,
    )
    assert transport.traffic.bytes_up == len(submission.payload)


async def test_a_lost_receipt_is_asked_for_with_the_same_submission(
    served: Served, transport: FederationTransport
) -> None:
    served.script.faults["SubmitInlineUpdate"].extend([LoseResponse(), LoseResponse()])
    await transport.submit(make_submission())
    messages = served.script.requests("SubmitInlineUpdate")
    assert len(messages) == 3
    assert all(message == messages[0] for message in messages)
    assert list(served.script.accepted) == ["s-1"]


async def test_a_large_update_travels_in_chunks(
    served: Served, transport: FederationTransport
) -> None:
    submission = make_submission(dim=DIM)
    await transport.submit(submission)
    assert served.script.stored["s-1"] == submission.payload[:]
    assert transport.traffic.bytes_up == len(submission.payload)
    assert served.script.count("GetUploadStatus") == 0


async def test_a_broken_upload_resumes_at_what_is_stored(
    served: Served, transport: FederationTransport
) -> None:
    submission = make_submission(dim=DIM)
    served.script.faults["SubmitUpdate"].extend([BreakAfter(600_001), BreakAfter(524_288)])
    await transport.submit(submission)
    headers = served.script.requests("SubmitUpdate")
    assert [header.offset for header in headers] == [0, 600_001, 1_124_289]  # type: ignore[attr-defined]  # recorded as objects
    assert {header.submission_id for header in headers} == {"s-1"}  # type: ignore[attr-defined]  # as above
    assert served.script.stored["s-1"] == submission.payload[:]


async def test_an_upload_whose_receipt_was_lost_is_not_sent_again(
    served: Served, transport: FederationTransport
) -> None:
    submission = make_submission(dim=DIM)
    served.script.faults["SubmitUpdate"].append(LoseResponse())
    receipt = await transport.submit(submission)
    assert receipt.payload_digest == submission.payload_digest
    assert served.script.count("SubmitUpdate") == 1
    assert transport.traffic.bytes_up == len(submission.payload)


async def test_a_refused_offset_is_corrected(
    served: Served, transport: FederationTransport, fake_time: FakeTime
) -> None:
    refused = Refuse(errors_pb2.OFFSET_OUT_OF_RANGE, grpc.StatusCode.INVALID_ARGUMENT)
    served.script.faults["SubmitUpdate"].extend([BreakAfter(100), refused])
    await transport.submit(make_submission(dim=DIM))
    assert served.script.count("GetUploadStatus") == 2
    assert len(fake_time.sleeps) == 1


async def test_a_server_that_refuses_every_offset_is_left(
    served: Served, transport: FederationTransport
) -> None:
    refused = Refuse(errors_pb2.OFFSET_OUT_OF_RANGE, grpc.StatusCode.INVALID_ARGUMENT)
    served.script.faults["SubmitUpdate"].extend([refused] * 50)
    with pytest.raises(FedaggError, match="OFFSET_OUT_OF_RANGE"):
        await transport.submit(make_submission(dim=DIM))
    assert served.script.count("SubmitUpdate") < 10


async def test_a_refused_update_is_not_sent_again(
    served: Served, transport: FederationTransport
) -> None:
    served.script.faults["SubmitUpdate"].append(
        Refuse(errors_pb2.NON_FINITE_UPDATE, grpc.StatusCode.INVALID_ARGUMENT)
    )
    with pytest.raises(InvalidUpdateError) as caught:
        await transport.submit(make_submission(dim=DIM))
    assert caught.value.reason is ErrorReason.NON_FINITE_UPDATE
    assert served.script.count("SubmitUpdate") == 1


async def test_a_stalled_upload_is_resumed(served: Served, runtime: Runtime) -> None:
    config = make_config(served.address, stall_timeout_s=0.3, retry=PATIENT)
    transport = FederationTransport(config, runtime=runtime)
    served.script.faults["SubmitUpdate"].append(Hang())
    submission = make_submission(dim=DIM)
    await transport.submit(submission)
    assert served.script.stored["s-1"] == submission.payload[:]
    await transport.close()


async def test_submit_does_not_wait_past_the_deadline(
    served: Served, transport: FederationTransport, fake_time: FakeTime
) -> None:
    served.script.faults["SubmitInlineUpdate"].append(OVERLOADED)
    with pytest.raises(RoundDeadlineError):
        await transport.submit(make_submission(), deadline_at=fake_time.now + 5)
    assert fake_time.sleeps == []


async def test_a_receipt_for_another_update_is_refused(
    served: Served, transport: FederationTransport
) -> None:
    served.script.receipt_changes = {"device_id": "another-device"}
    with pytest.raises(ProtocolError, match="another-device"):
        await transport.submit(make_submission())
    served.script.receipt_changes = {"payload_digest": bytes(16)}
    with pytest.raises(ProtocolError):
        await transport.submit(make_submission())
    served.script.receipt_changes = {"submission_id": ""}
    with pytest.raises(ProtocolError):
        await transport.submit(make_submission(dim=DIM))


async def test_a_batch_brings_one_outcome_per_update(transport: FederationTransport) -> None:
    batch = [
        make_submission(submission_id=f"s-{number}", num_samples=number) for number in (11, 13, 17)
    ]
    first, refused, last = await transport.submit_batch(batch)
    assert isinstance(first, Receipt)
    assert first.submission_id == "s-11"
    assert isinstance(refused, InvalidUpdateError)
    assert refused.reason is ErrorReason.WRONG_SHAPE
    assert isinstance(last, Receipt)
    assert last.submission_id == "s-17"
    assert await transport.submit_batch([]) == []


async def test_a_broken_batch_stream_repeats_only_what_is_unanswered(
    served: Served, transport: FederationTransport
) -> None:
    # 400,016 bytes each: two to a message of 1 MiB.
    batch = [make_submission(dim=100_000, submission_id=f"s-{number}") for number in range(6)]
    served.script.faults["SubmitUpdates"].append(BreakAfter(1))
    outcomes = await transport.submit_batch(batch)
    assert [outcome.submission_id for outcome in outcomes if isinstance(outcome, Receipt)] == [
        submission.submission_id for submission in batch
    ]
    sent = [message.batch_id for message in served.script.requests("batch")]  # type: ignore[attr-defined]  # recorded as objects
    assert sent == [1, 2, 2, 3]
    assert all(message.ByteSize() <= 1 << 20 for message in served.script.requests("batch"))  # type: ignore[attr-defined]  # as above


async def test_an_update_too_large_for_a_batch_is_refused_unsent(
    served: Served, transport: FederationTransport
) -> None:
    with pytest.raises(InvalidUpdateError, match="UPDATE_TOO_LARGE"):
        await transport.submit_batch([make_submission(dim=DIM)])
    assert served.script.count("SubmitUpdates") == 0


async def test_progress_is_reported_once(served: Served, transport: FederationTransport) -> None:
    report = Progress(
        task=TASK, round=3, device_id=DEVICE, stage=ProgressStage.TRAINING, fraction=0.5
    )
    status = await transport.report_progress(report)
    assert status.is_open
    assert status.ttl_s == 600.0
    assert served.script.requests("ReportProgress") == [
        pb.ReportProgressRequest(
            task=TASK,
            round=3,
            device_id=DEVICE,
            stage=pb.ReportProgressRequest.TRAINING,
            fraction=0.5,
        )
    ]
    served.script.faults["ReportProgress"].append(OVERLOADED)
    with pytest.raises(ServiceUnavailableError):
        await transport.report_progress(report)


async def test_a_lost_server_is_left_for_the_next_address(served: Served, runtime: Runtime) -> None:
    gone = await serve(ScriptedFederation())
    await gone.stop()
    for addresses in ((gone.address, served.address), (served.address, gone.address)):
        transport = FederationTransport(make_config(*addresses), runtime=runtime)
        assert isinstance(await transport.check_in(OFFER), Assignment)
        await transport.close()


async def test_without_any_server_the_client_gives_up(runtime: Runtime) -> None:
    gone = await serve(ScriptedFederation())
    await gone.stop()
    config = make_config(gone.address, retry=RetryPolicy(max_attempts=2))
    transport = FederationTransport(config, runtime=runtime)
    with pytest.raises(TransportError):
        await transport.check_in(OFFER)
    await transport.close()


async def test_a_shared_pool_stays_open(served: Served, runtime: Runtime) -> None:
    config = make_config(served.address)
    pool = ServerPool(config)
    first = FederationTransport(config, runtime=runtime, pool=pool)
    second = FederationTransport(config, runtime=runtime, pool=pool)
    await first.check_in(OFFER)
    endpoint = pool.current()
    await first.close()
    assert pool.current() is endpoint
    assert isinstance(await second.check_in(OFFER), Assignment)
    assert first.traffic is not second.traffic
    await pool.close()


async def test_a_cut_connection_costs_neither_model_nor_update(
    served: Served, fake_time: FakeTime
) -> None:
    async def sleep(seconds: float) -> None:
        await fake_time.sleep(seconds)
        await asyncio.sleep(0.01)  # lets gRPC notice the cut connection

    rng = np.random.default_rng(5)
    served.script.model = rng.bytes(500_000)
    served.script.sha256 = hashlib.sha256(served.script.model).hexdigest()
    served.script.chunk_bytes = 20_000
    runtime = Runtime(clock=fake_time.clock, sleep=sleep)
    async with CuttingProxy(
        served.address, cut_after=[200_000, 250_000, 150_000, 700_000]
    ) as proxy:
        retry = RetryPolicy(max_attempts=100)
        transport = FederationTransport(make_config(proxy.address, retry=retry), runtime=runtime)
        assert await transport.fetch_model(model_request(served.script)) == served.script.model
        submission = make_submission(dim=DIM)
        await transport.submit(submission)
        await transport.close()
    assert proxy.num_cuts == 4
    assert served.script.stored["s-1"] == submission.payload[:]
