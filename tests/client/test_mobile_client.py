"""A whole device against a real server that follows a script."""

import asyncio
import threading
from collections.abc import Callable

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, StatusCode

from client.config import RetryPolicy
from client.errors import (
    AuthenticationError,
    ErrorReason,
    InvalidUpdateError,
    NotFoundError,
    RoundClosedError,
    TrainingError,
)
from client.hooks import ClientEvent, ClientHooks, EventKind
from client.mobile_client import MobileClient
from client.outcome import Outcome
from client.runtime import Runtime
from client.transport.messages import Assignment
from protos.fedagg.v1 import errors_pb2
from protos.fedagg.v1 import federation_pb2 as pb
from tests.client.bench import Bench, ShiftTrainer
from tests.client.federation import (
    TRACEPARENT,
    LoseResponse,
    Refuse,
    ScriptedFederation,
    Served,
    Status,
    make_config,
    serve,
)
from updates.codec import decode
from updates.vectors import encode_model


def only_update(script: ScriptedFederation) -> NDArray[np.float32]:
    (payload,) = script.stored.values()
    return decode(bytes(payload), dim=script.dim)


async def test_a_selected_device_trains_and_is_accepted(bench: Bench) -> None:
    trainer = ShiftTrainer()
    outcome = await bench.client(trainer).participate_once()
    (submission_id,) = bench.script.accepted
    assert outcome.outcome is Outcome.ACCEPTED
    assert (outcome.round, outcome.model_version) == (3, 2)
    assert outcome.submission_id == submission_id
    assert outcome.receipt is not None
    assert outcome.receipt.submission_id == submission_id
    assert outcome.bytes_down == len(bench.script.model)
    assert outcome.bytes_up == 16 + 4 * 7
    assert outcome.metrics.num_samples == 20
    assert outcome.metrics.loss_before == 3.0
    assert outcome.metrics.loss_after == 1.5
    # Seven ones, up to the rounding of the additions in float32.
    assert outcome.metrics.update_norm == pytest.approx(7**0.5, rel=1e-6)
    np.testing.assert_allclose(only_update(bench.script), np.ones(7), rtol=1e-6)
    header = bench.script.accepted[submission_id]
    assert (header.num_samples, header.model_version, header.loss_after) == (20, 2, 1.5)
    assert trainer.plans[0].round == 3
    assert trainer.threads[0] is not threading.main_thread()


async def test_events_tell_the_round_in_order(bench: Bench) -> None:
    outcome = await bench.client().participate_once()
    assert bench.kinds() == [
        EventKind.ASSIGNED,
        EventKind.MODEL_READY,
        EventKind.TRAINED,
        EventKind.SUBMITTING,
        EventKind.ACCEPTED,
        EventKind.ENDED,
    ]
    assert bench.events[-2].receipt == outcome.receipt
    assert bench.events[-1].outcome == outcome


async def test_the_device_state_is_asked_for_every_offer(bench: Bench) -> None:
    await bench.client().participate_once()
    (request,) = bench.script.requests("CheckIn")
    assert isinstance(request, pb.CheckInRequest)
    assert request.state == pb.DeviceState(battery_percent=55, idle=True)


async def test_waiting_repeats_the_offer_and_the_next_offer_is_new(bench: Bench) -> None:
    bench.answer(pb.RetryLater.WAITING, pb.RetryLater.WAITING, pb.RetryLater.NOT_SELECTED)
    client = bench.client()
    outcome = await client.participate_once()
    assert outcome.outcome is Outcome.NOT_SELECTED
    assert outcome.retry_after_s == 1.5
    assert bench.time.sleeps == [1.5, 1.5]
    await client.participate_once()
    first, second, third, fourth = bench.check_in_ids()
    assert first == second == third != fourth


async def test_run_keeps_the_servers_pace_until_the_task_is_finished(bench: Bench) -> None:
    bench.answer(pb.RetryLater.NOT_SELECTED, retry_after_ms=60_000)
    bench.answer(pb.RetryLater.NO_OPEN_ROUND, retry_after_ms=2_000)
    bench.answer(pb.RetryLater.NOT_ELIGIBLE, retry_after_ms=3_000)
    bench.script.answers.append(bench.script.assignment())
    bench.answer(pb.RetryLater.TASK_FINISHED)
    assert await bench.client().run() == 1
    assert bench.time.sleeps == [60.0, 2.0, 3.0]


async def test_run_stops_after_the_rounds_asked_for(bench: Bench) -> None:
    assert await bench.client().run(max_rounds=2) == 2
    assert len(bench.script.accepted) == 2
    assert await bench.client().run(max_rounds=0) == 0


async def test_an_unchanged_model_is_not_fetched_again(bench: Bench) -> None:
    client = bench.client()
    await client.participate_once()
    second = await client.participate_once()
    assert second.outcome is Outcome.ACCEPTED
    assert second.bytes_down == 0
    assert bench.script.count("FetchModel") == 1
    bench.script.model = encode_model({"other": np.ones(7, dtype=np.float32)})
    bench.script.__post_init__()
    third = await client.participate_once()
    assert third.bytes_down == len(bench.script.model)
    assert bench.script.count("FetchModel") == 2


async def test_the_update_is_clipped_and_then_transformed(bench: Bench) -> None:
    bench.script.clipping_norm = 0.5
    seen: list[tuple[float, Assignment]] = []

    def double(vector: NDArray[np.float32], assignment: Assignment) -> NDArray[np.float32]:
        seen.append((float(np.linalg.norm(vector)), assignment))
        return vector * np.float32(2)

    await bench.client(transform=double).participate_once()
    ((norm, assignment),) = seen
    assert norm == pytest.approx(0.5, rel=1e-6)
    assert assignment.round == 3
    assert np.linalg.norm(only_update(bench.script)) == pytest.approx(1.0, rel=1e-6)


async def test_lost_responses_change_nothing_but_the_time(bench: Bench) -> None:
    for method in ("CheckIn", "SubmitInlineUpdate"):
        bench.script.faults[method].extend([LoseResponse(), Status()])
    outcome = await bench.client().participate_once()
    assert outcome.outcome is Outcome.ACCEPTED
    assert len(set(bench.check_in_ids())) == 1
    assert len(bench.script.accepted) == 1
    assert bench.kinds().count(EventKind.RETRYING) == 4


@pytest.mark.parametrize(
    ("reason", "code", "expected"),
    [
        (
            errors_pb2.ROUND_CLOSED,
            grpc.StatusCode.FAILED_PRECONDITION,
            Outcome.ROUND_CLOSED,
        ),
        (errors_pb2.WRONG_SHAPE, grpc.StatusCode.INVALID_ARGUMENT, Outcome.REFUSED),
        (errors_pb2.ALREADY_CONTRIBUTED, grpc.StatusCode.ALREADY_EXISTS, Outcome.REFUSED),
        (errors_pb2.INTERNAL_ERROR, grpc.StatusCode.INTERNAL, Outcome.REFUSED),
    ],
)
async def test_a_refused_update_is_an_outcome_and_not_sent_again(
    bench: Bench,
    reason: errors_pb2.ErrorReason.ValueType,
    code: grpc.StatusCode,
    expected: Outcome,
) -> None:
    bench.script.faults["SubmitInlineUpdate"].append(Refuse(reason, code))
    outcome = await bench.client().participate_once()
    assert outcome.outcome is expected
    assert outcome.error is not None
    assert outcome.receipt is None
    assert outcome.submission_id is not None
    assert bench.script.count("SubmitInlineUpdate") == 1


async def test_run_goes_on_after_a_refusal_but_not_at_once(bench: Bench) -> None:
    closed = Refuse(errors_pb2.ROUND_CLOSED, grpc.StatusCode.FAILED_PRECONDITION)
    bench.script.faults["SubmitInlineUpdate"].extend([closed, closed])
    assert await bench.client().run(max_rounds=1) == 1
    assert len(bench.time.sleeps) == 2
    assert all(slept >= 0.5 for slept in bench.time.sleeps)


async def test_an_unreachable_server_is_an_outcome_with_the_hint(bench: Bench) -> None:
    busy = Refuse(errors_pb2.OVERLOADED, grpc.StatusCode.RESOURCE_EXHAUSTED, 9_000)
    config = make_config(bench.address, retry=RetryPolicy(max_attempts=2))
    bench.script.faults["CheckIn"].extend([busy, busy])
    client = bench.client(config=config)
    outcome = await client.participate_once()
    assert outcome.outcome is Outcome.UNREACHABLE
    assert outcome.retry_after_s == 9.0
    bench.script.faults["CheckIn"].extend([busy, busy])
    bench.time.sleeps.clear()
    assert await client.run(max_rounds=1) == 1
    assert len(bench.time.sleeps) == 2
    assert all(slept >= 9.0 for slept in bench.time.sleeps)


@pytest.mark.parametrize(
    ("reason", "code", "expected"),
    [
        (
            errors_pb2.UNAUTHENTICATED_DEVICE,
            grpc.StatusCode.UNAUTHENTICATED,
            AuthenticationError,
        ),
        (errors_pb2.UNKNOWN_TASK, grpc.StatusCode.NOT_FOUND, NotFoundError),
    ],
)
async def test_run_ends_when_no_check_in_can_ever_succeed(
    bench: Bench,
    reason: errors_pb2.ErrorReason.ValueType,
    code: grpc.StatusCode,
    expected: type[Exception],
) -> None:
    bench.script.faults["CheckIn"].append(Refuse(reason, code))
    with pytest.raises(expected):
        await bench.client().run()
    assert bench.script.count("CheckIn") == 1


async def test_a_failing_trainer_is_an_outcome_and_the_server_hears_of_it(bench: Bench) -> None:
    def fail(_should_stop: Callable[[], bool]) -> None:
        raise ZeroDivisionError("in the application")

    outcome = await bench.client(ShiftTrainer(during=fail)).participate_once()
    assert outcome.outcome is Outcome.FAILED
    assert isinstance(outcome.error, TrainingError)
    assert "in the application" in outcome.detail
    (report,) = bench.script.requests("ReportProgress")
    assert isinstance(report, pb.ReportProgressRequest)
    assert report.stage == pb.ReportProgressRequest.FAILED
    assert not bench.script.accepted


async def test_a_diverged_update_is_not_sent(bench: Bench) -> None:
    outcome = await bench.client(ShiftTrainer(float("nan"))).participate_once()
    assert outcome.outcome is Outcome.FAILED
    assert bench.script.count("SubmitInlineUpdate") == 0


async def test_a_failing_transform_is_an_outcome(bench: Bench) -> None:
    def cut(vector: NDArray[np.float32], _assignment: Assignment) -> NDArray[np.float32]:
        return vector[1:]

    outcome = await bench.client(transform=cut).participate_once()
    assert outcome.outcome is Outcome.FAILED
    assert "shape (6,)" in outcome.detail


async def test_a_model_with_another_hash_is_refused_and_not_kept(bench: Bench) -> None:
    trainer = ShiftTrainer()
    client = bench.client(trainer)
    honest = bench.script.model
    bench.script.model = honest[:-1] + b"!"
    outcome = await client.participate_once()
    assert outcome.outcome is Outcome.FAILED
    assert "hashes to" in outcome.detail
    assert trainer.plans == []
    bench.script.model = honest
    assert (await client.participate_once()).outcome is Outcome.ACCEPTED


async def test_an_update_above_the_limit_is_not_even_trained(bench: Bench) -> None:
    bench.script.max_update_bytes = 43
    trainer = ShiftTrainer()
    outcome = await bench.client(trainer).participate_once()
    assert outcome.outcome is Outcome.REFUSED
    assert isinstance(outcome.error, InvalidUpdateError)
    assert outcome.error.reason is ErrorReason.UPDATE_TOO_LARGE
    assert trainer.plans == []
    bench.script.max_update_bytes = 44
    assert (await bench.client().participate_once()).outcome is Outcome.ACCEPTED


async def test_training_is_stopped_while_the_upload_still_fits(bench: Bench) -> None:
    bench.script.ttl_ms = 1_000_000
    steps = 0

    def train_on(should_stop: Callable[[], bool]) -> None:
        nonlocal steps
        while not should_stop():
            steps += 1
            bench.time.now += 25.0

    config = make_config(bench.address, deadline_margin_s=50.0)
    outcome = await bench.client(ShiftTrainer(during=train_on), config=config).participate_once()
    assert outcome.outcome is Outcome.ACCEPTED
    # 1,000 s less twice the margin of 50 s, in steps of 25 s.
    assert steps == 36


async def test_an_update_trained_too_long_is_not_sent(bench: Bench) -> None:
    bench.script.ttl_ms = 10_000

    def overrun(_should_stop: Callable[[], bool]) -> None:
        bench.time.now += 9.75

    outcome = await bench.client(ShiftTrainer(during=overrun)).participate_once()
    assert outcome.outcome is Outcome.DEADLINE_MISSED
    assert bench.script.count("SubmitInlineUpdate") == 0
    assert outcome.metrics.train_s == 9.75


# The download takes 75 s, so 400 KB more or less will take as long again; the margin is 50 s.
@pytest.mark.parametrize(
    ("ttl_s", "training_s", "expected", "num_trained"),
    [
        (210, 0, Outcome.ACCEPTED, 1),
        (190, 0, Outcome.DEADLINE_MISSED, 0),
        (300, 90, Outcome.ACCEPTED, 1),
        (300, 110, Outcome.DEADLINE_MISSED, 1),
    ],
)
async def test_an_upload_that_cannot_finish_is_not_begun(
    bench: Bench, ttl_s: int, training_s: int, expected: Outcome, num_trained: int
) -> None:
    def slow_down(event: ClientEvent) -> None:
        if event.kind is EventKind.RETRYING:
            bench.time.now = 1_075.0

    def train(_should_stop: Callable[[], bool]) -> None:
        bench.time.now += training_s

    async def no_time(_seconds: float) -> None:
        await asyncio.sleep(0)

    bench.serve_big_model()
    bench.script.ttl_ms = ttl_s * 1_000
    bench.script.faults["FetchModel"].append(Status())
    trainer = ShiftTrainer(during=train)
    client = MobileClient(
        make_config(bench.address, deadline_margin_s=50.0),
        trainer,
        hooks=ClientHooks(on_event=slow_down),
        runtime=Runtime(clock=bench.time.clock, sleep=no_time),
    )
    outcome = await client.participate_once()
    await client.close()
    assert outcome.outcome is expected
    assert outcome.metrics.fetch_s == 75.0
    assert len(trainer.plans) == num_trained
    assert bench.script.count("SubmitUpdate") == (expected is Outcome.ACCEPTED)


async def test_a_round_that_closes_during_training_stops_it(bench: Bench) -> None:
    stopped = threading.Event()

    def until_stopped(should_stop: Callable[[], bool]) -> None:
        bench.script.round_open = False
        while not should_stop():
            stopped.wait(0.001)
        stopped.set()

    config = make_config(bench.address, progress_interval_s=5.0)
    outcome = await bench.client(
        ShiftTrainer(during=until_stopped), config=config
    ).participate_once()
    assert stopped.is_set()
    assert outcome.outcome is Outcome.ROUND_CLOSED
    assert isinstance(outcome.error, RoundClosedError)
    assert not bench.script.accepted


async def test_a_round_that_is_prolonged_is_trained_on(bench: Bench) -> None:
    bench.script.ttl_ms = 20_000
    # Six reports at intervals of 5 s: more than the first time to live.
    reported = threading.Event()

    def until_reported(should_stop: Callable[[], bool]) -> None:
        while bench.script.count("ReportProgress") < 6 and not should_stop():
            reported.wait(0.001)

    config = make_config(bench.address, progress_interval_s=5.0)
    bench.script.faults["ReportProgress"].append(Status())
    outcome = await bench.client(
        ShiftTrainer(during=until_reported), config=config
    ).participate_once()
    assert outcome.outcome is Outcome.ACCEPTED
    assert bench.time.now - 1_000.0 >= 30.0


async def test_cancelling_the_client_stops_its_training(bench: Bench) -> None:
    training, stopped = threading.Event(), threading.Event()

    def until_stopped(should_stop: Callable[[], bool]) -> None:
        training.set()
        while not should_stop():
            stopped.wait(0.001)
        stopped.set()

    task = asyncio.create_task(bench.client(ShiftTrainer(during=until_stopped)).run())
    await asyncio.to_thread(training.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(stopped.wait, 10)


async def test_spans_continue_the_rounds_trace_and_travel_with_the_calls(bench: Bench) -> None:
    await bench.client().participate_once()
    spans = {span.name: span for span in bench.exporter.get_finished_spans()}
    assert spans.keys() == {"device.round", "device.fetch_model", "device.train", "device.submit"}
    _, trace_id, parent_id, _ = TRACEPARENT.split("-")
    assert {f"{_context(span).trace_id:032x}" for span in spans.values()} == {trace_id}
    round_span = spans["device.round"]
    assert round_span.parent is not None
    assert f"{round_span.parent.span_id:016x}" == parent_id
    for name in ("device.fetch_model", "device.train", "device.submit"):
        parent = spans[name].parent
        assert parent is not None
        assert parent.span_id == _context(round_span).span_id
    assert round_span.attributes is not None
    assert round_span.attributes["fedagg.outcome"] == "accepted"
    for method, name in (
        ("FetchModel", "device.fetch_model"),
        ("SubmitInlineUpdate", "device.submit"),
    ):
        (call,) = [call for call in bench.script.calls if call.method == method]
        sent = f"00-{trace_id}-{_context(spans[name]).span_id:016x}-01"
        assert call.metadata["traceparent"] == sent


async def test_a_failed_round_is_a_failed_span(bench: Bench) -> None:
    bench.script.faults["SubmitInlineUpdate"].append(
        Refuse(errors_pb2.ROUND_CLOSED, grpc.StatusCode.FAILED_PRECONDITION)
    )
    await bench.client().participate_once()
    spans = {span.name: span for span in bench.exporter.get_finished_spans()}
    assert spans["device.round"].status.status_code is StatusCode.ERROR
    assert spans["device.submit"].status.status_code is StatusCode.ERROR
    assert spans["device.train"].status.status_code is StatusCode.UNSET


def test_run_forever_needs_no_event_loop() -> None:
    # The server lives in a loop of its own, in another thread.
    script = ScriptedFederation()
    script.answers.append(script.assignment())
    finished = pb.RetryLater(reason=pb.RetryLater.TASK_FINISHED, retry_after_ms=1)
    script.answers.append(pb.CheckInResponse(retry_later=finished))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        served = asyncio.run_coroutine_threadsafe(serve(script), loop).result(10)
        assert MobileClient(make_config(served.address), ShiftTrainer()).run_forever() == 1
        asyncio.run_coroutine_threadsafe(_stop(served), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
    assert len(script.accepted) == 1


async def _stop(served: Served) -> None:
    await served.stop()


def _context(span: ReadableSpan) -> SpanContext:
    context = span.get_span_context()
    assert context is not None
    return context
