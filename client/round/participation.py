"""One device in one round: fetch the model, train, submit the update."""

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import replace

from client.errors import (
    ErrorReason,
    FedaggError,
    InvalidUpdateError,
    RoundClosedError,
    RoundDeadlineError,
)
from client.hooks import ClientEvent, EventKind
from client.outcome import RoundMetrics
from client.round.deadline import RoundDeadline
from client.round.device import Device
from client.round.late_update import LateUpdate
from client.round.local_update import LocalUpdate, local_update
from client.round.model_cache import ReceivedModel
from client.round.submission_maker import SubmissionMaker
from client.round.training import WatchedTraining
from client.round_encoding import DeliveryContext, RoundEncoding
from client.transport.messages import Assignment, ModelRequest, ProgressStage, Receipt, Submission
from updates.codec import dense_payload_bytes


class Participation:
    """Runs one assignment once. The attributes tell how far it came, also on errors.

    Attributes:
        submission_id: id under which the update is sent.
        model_version: version that the update was, or would have been, trained from.
        metrics: what was measured on the way.
        share_receipts: by share holder, its signed receipt, where the device delivers directly.
    """

    def __init__(self, device: Device, assignment: Assignment) -> None:
        self.submission_id = device.runtime.new_id()
        self.model_version = assignment.model_version
        self.metrics = RoundMetrics()
        self.share_receipts: Mapping[int, bytes] = {}
        self._device = device
        self._assignment = assignment
        self._maker = SubmissionMaker(device, assignment)
        self._has_left = False
        self._deadline = RoundDeadline(
            device.runtime.clock,
            ttl_s=assignment.ttl_s,
            margin_s=device.config.deadline_margin_s,
        )

    async def run(self) -> Receipt:
        """Do the round's work and return the receipt.

        Raises:
            FedaggError: whatever ended the participation.
        """
        try:
            return await self._run()
        finally:
            for notice in self._device.memory.notices():
                self._emit(EventKind.RESIDUAL_RESET, detail=notice)

    async def _run(self) -> Receipt:
        self._maker.accept_terms()
        self._check_update_fits(self._encoding.payload_bytes)
        await self._maker.settle_last(deadline_at=self._deadline.at)
        late = self._device.late.take(self._assignment, self._encoding)
        if late is not None:
            return await self._submit_late(late)
        model = await self._fetch()
        self._emit(EventKind.MODEL_READY)
        update = await self._train(model)
        self._emit(EventKind.TRAINED)
        return await self._submit_or_keep(update)

    @property
    def _encoding(self) -> RoundEncoding:
        return self._maker.encoding

    def _check_update_fits(self, payload_bytes: int) -> None:
        limit = self._assignment.max_update_bytes
        if payload_bytes > limit:
            raise InvalidUpdateError(
                ErrorReason.UPDATE_TOO_LARGE,
                f"an update of {payload_bytes} bytes exceeds max_update_bytes={limit}",
            )

    async def _fetch(self) -> ReceivedModel:
        device, assignment = self._device, self._assignment
        with device.tracer.start_as_current_span("device.fetch_model") as span:
            cached = device.cache.get(assignment.model_sha256)
            span.set_attribute("fedagg.model_cached", cached is not None)
            if cached:
                self.metrics = replace(self.metrics, fetch_s=0.0)
                return cached
            started = device.runtime.clock()
            data = await device.transport.fetch_model(
                ModelRequest(
                    task=assignment.task,
                    device_id=device.config.device_id,
                    model_version=assignment.model_version,
                    sha256=assignment.model_sha256,
                    total_bytes=assignment.model_bytes,
                ),
                deadline_at=self._deadline.at,
            )
            elapsed = device.runtime.clock() - started
            device.link.record(len(data), elapsed)
            model = await asyncio.to_thread(ReceivedModel, data, assignment)
            device.cache.put(model)
            self.metrics = replace(self.metrics, fetch_s=elapsed)
            return model

    async def _train(self, model: ReceivedModel) -> LocalUpdate:
        device, assignment = self._device, self._assignment
        with device.tracer.start_as_current_span("device.train") as span:
            self._check_time(self._upload_s())
            started = device.runtime.clock()
            training = WatchedTraining(
                device, assignment, self._deadline, is_useful_late=self._encoding.takes_stale
            )
            # Training has to end while the last step, the encoding and the upload still fit.
            result = await training.run(
                model, reserve_s=2 * self._upload_s() + device.config.deadline_margin_s
            )
            closed = RoundClosedError(ErrorReason.ROUND_CLOSED, "the round closed during training")
            if training.is_round_closed and not self._encoding.takes_stale:
                raise closed
            update = await asyncio.to_thread(
                local_update,
                model,
                result,
                clipping_norm=0.0 if self._maker.clips_itself else assignment.plan.clipping_norm,
            )
            self._measured(update)
            self.metrics = replace(self.metrics, train_s=device.runtime.clock() - started)
            span.set_attribute("fedagg.num_samples", update.num_samples)
            if training.is_round_closed:
                self._keep(update)
                raise closed
            return update

    def _measured(self, update: LocalUpdate) -> None:
        self.metrics = replace(
            self.metrics,
            num_samples=update.num_samples,
            loss_before=update.loss_before,
            loss_after=update.loss_after,
            update_norm=update.norm,
        )

    async def _submit_late(self, late: LateUpdate) -> Receipt:
        self.model_version = late.model_version
        self._measured(late.update)
        self._emit(EventKind.REUSED)
        return await self._submit_or_keep(late.update)

    async def _submit_or_keep(self, update: LocalUpdate) -> Receipt:
        try:
            return await self._submit(update)
        except (RoundDeadlineError, RoundClosedError):
            # Once a share has left, the update is in one round for good, whatever the server says:
            # sealed again for a second one, the difference of two sums could be this update.
            if not self._has_left:
                self._keep(update)
            raise

    def _keep(self, update: LocalUpdate) -> None:
        """Hold the update for a later round where the task has rounds that take stale ones."""
        if not self._encoding.takes_stale:
            return
        assignment = self._assignment
        self._device.late.put(
            LateUpdate(
                task=assignment.task,
                round=assignment.round,
                model_version=self.model_version,
                update=update,
            )
        )
        self._emit(EventKind.KEPT)

    async def _submit(self, update: LocalUpdate) -> Receipt:
        device = self._device
        with device.tracer.start_as_current_span("device.submit") as span:
            self._check_time(self._upload_s())
            # One submission for all attempts: each of them sends the same bytes.
            submission = await asyncio.to_thread(
                self._maker.make,
                update,
                submission_id=self.submission_id,
                model_version=self.model_version,
            )
            self._check_update_fits(len(submission.payload))
            self._emit(EventKind.SUBMITTING)
            started, sent = device.runtime.clock(), device.transport.traffic.bytes_up
            await self._check_round_open()
            receipt = await self._send(submission)
            elapsed = device.runtime.clock() - started
            moved_bytes = self._moved_bytes(submission, sent)
            device.link.record(moved_bytes, elapsed)
            self.metrics = replace(
                self.metrics,
                submit_s=elapsed,
                payload_bytes=moved_bytes,
                dense_bytes=dense_payload_bytes(self._assignment.dim),
                staleness=self._assignment.model_version - self.model_version,
            )
            span.set_attribute("fedagg.submission_id", self.submission_id)
            self._emit(EventKind.ACCEPTED, receipt)
            return receipt

    async def _send(self, submission: Submission) -> Receipt:
        await self._maker.begin(submission)
        self._has_left = True
        try:
            self.share_receipts = await self._encoding.deliver(submission.payload, self._delivery())
            receipt = await self._device.transport.submit(submission, deadline_at=self._deadline.at)
        except FedaggError as error:
            await self._maker.failed(error)
            raise
        await self._maker.accepted()
        return receipt

    async def _check_round_open(self) -> None:
        """Find out, while the update can still be kept, that the round takes it no more."""
        if not self._encoding.takes_stale:
            return
        try:
            status = await self._device.transport.report_progress(
                self._device.progress(self._assignment, ProgressStage.UPLOADING)
            )
        except FedaggError:
            return  # A report is a courtesy: the submission will meet the same trouble.
        if not status.is_open:
            raise RoundClosedError(
                ErrorReason.ROUND_CLOSED, "the round closed before the update was sent"
            )

    def _delivery(self) -> DeliveryContext:
        device = self._device
        return DeliveryContext(
            runtime=device.runtime,
            deadline_at=self._deadline.at,
            traffic=device.transport.traffic,
            on_retry=lambda retry: device.hooks.on_event(
                ClientEvent(kind=EventKind.RETRYING, retry=retry)
            ),
        )

    def _moved_bytes(self, submission: Submission, sent_before: int) -> int:
        """Return what the link carried; of a relayed update, without what was sent in vain."""
        if not self.share_receipts:
            return len(submission.payload)
        return self._device.transport.traffic.bytes_up - sent_before

    async def report_failure(self) -> None:
        """Tell the server that this device gives up; never raises."""
        with contextlib.suppress(FedaggError):
            await self._device.transport.report_progress(
                self._device.progress(self._assignment, ProgressStage.FAILED)
            )

    def _upload_s(self) -> float:
        return self._device.link.seconds_for(self._encoding.upload_bytes)

    def _check_time(self, needed_s: float) -> None:
        if not self._deadline.leaves(needed_s):
            raise RoundDeadlineError(
                f"the round ends before an upload of about {needed_s:.3f} s could"
            )

    def _emit(self, kind: EventKind, receipt: Receipt | None = None, *, detail: str = "") -> None:
        self._device.hooks.on_event(
            ClientEvent(
                kind=kind,
                assignment=self._assignment,
                submission_id=self.submission_id,
                receipt=receipt,
                detail=detail,
            )
        )
