"""One device in one round: fetch the model, train, submit the update."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from opentelemetry.trace import Tracer

from client.config import ClientConfig
from client.deadline import LinkEstimate, RoundDeadline
from client.errors import (
    ErrorReason,
    FedaggError,
    InvalidUpdateError,
    RoundClosedError,
    RoundDeadlineError,
    TrainingError,
)
from client.hooks import ClientEvent, ClientHooks, EventKind
from client.local_update import LocalUpdate, encode_update, local_update
from client.messages import Assignment, ModelRequest, Progress, Receipt, Stage, Submission
from client.model_cache import ModelCache, ReceivedModel
from client.outcome import RoundMetrics
from client.runtime import Runtime
from client.trainer import Trainer, TrainingResult
from client.transport import FederationTransport
from compression.codec import dense_payload_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What stays the same from round to round."""

    config: ClientConfig
    trainer: Trainer
    transport: FederationTransport
    runtime: Runtime
    hooks: ClientHooks
    tracer: Tracer
    cache: ModelCache = field(default_factory=ModelCache)
    link: LinkEstimate = field(default_factory=LinkEstimate)


class Participation:
    """Runs one assignment once. `metrics` and `receipt` tell how far it came, also on errors."""

    def __init__(self, device: Device, assignment: Assignment) -> None:
        self.submission_id = device.runtime.new_id()
        self.metrics = RoundMetrics()
        self._device = device
        self._assignment = assignment
        self._payload_bytes = dense_payload_bytes(assignment.dim)
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
        self._check_update_fits()
        model = await self._fetch()
        self._emit(EventKind.MODEL_READY)
        update = await self._train(model)
        self._emit(EventKind.TRAINED)
        return await self._submit(update)

    def _check_update_fits(self) -> None:
        limit = self._assignment.max_update_bytes
        if self._payload_bytes > limit:
            raise InvalidUpdateError(
                ErrorReason.UPDATE_TOO_LARGE,
                f"an update of {self._payload_bytes} bytes exceeds max_update_bytes={limit}",
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
            result = await self._run_trainer(model)
            update = await asyncio.to_thread(
                local_update, model, result, clipping_norm=assignment.plan.clipping_norm
            )
            self.metrics = replace(
                self.metrics,
                num_samples=update.num_samples,
                loss_before=update.loss_before,
                loss_after=update.loss_after,
                update_norm=update.norm,
                train_s=device.runtime.clock() - started,
            )
            span.set_attribute("fedagg.num_samples", update.num_samples)
            return update

    async def _run_trainer(self, model: ReceivedModel) -> TrainingResult:
        stop, round_closed = threading.Event(), asyncio.Event()
        # Training has to end while the last step, the encoding and the upload still fit.
        reserve_s = 2 * self._upload_s() + self._device.config.deadline_margin_s

        def should_stop() -> bool:
            return stop.is_set() or not self._deadline.leaves(reserve_s)

        with self._watching(stop, round_closed):
            try:
                result = await asyncio.to_thread(
                    self._device.trainer.train, model.tensors, self._assignment.plan, should_stop
                )
            # The application's code may raise anything, and none of it may end the client.
            except Exception as error:
                raise TrainingError(
                    f"the trainer raised {type(error).__name__}: {error}"
                ) from error
            finally:
                # A cancelled client leaves no training behind it.
                stop.set()
        if round_closed.is_set():
            raise RoundClosedError(ErrorReason.ROUND_CLOSED, "the round closed during training")
        return result

    @contextlib.contextmanager
    def _watching(self, stop: threading.Event, round_closed: asyncio.Event) -> Iterator[None]:
        interval_s = self._device.config.progress_interval_s
        if interval_s is None:
            yield
            return
        watcher = asyncio.create_task(self._watch(interval_s, stop, round_closed))
        try:
            yield
        finally:
            watcher.cancel()

    async def _watch(
        self, interval_s: float, stop: threading.Event, round_closed: asyncio.Event
    ) -> None:
        while True:
            await self._device.runtime.sleep(interval_s)
            try:
                status = await self._device.transport.report_progress(
                    self._progress(Stage.TRAINING)
                )
            except FedaggError:
                continue  # A report is a courtesy: the submission will meet the same trouble.
            if not status.is_open:
                round_closed.set()
                stop.set()
                return
            self._deadline.renew(status.ttl_s)

    async def _submit(self, update: LocalUpdate) -> Receipt:
        device = self._device
        with device.tracer.start_as_current_span("device.submit") as span:
            self._check_time(self._upload_s())
            submission = await asyncio.to_thread(self._submission, update)
            self._emit(EventKind.SUBMITTING)
            started = device.runtime.clock()
            receipt = await device.transport.submit(submission, deadline_at=self._deadline.at)
            elapsed = device.runtime.clock() - started
            device.link.record(len(submission.payload), elapsed)
            self.metrics = replace(self.metrics, submit_s=elapsed)
            span.set_attribute("fedagg.submission_id", self.submission_id)
            self._emit(EventKind.ACCEPTED, receipt)
            return receipt

    def _submission(self, update: LocalUpdate) -> Submission:
        assignment = self._assignment
        return Submission(
            task=assignment.task,
            round=assignment.round,
            device_id=self._device.config.device_id,
            submission_id=self.submission_id,
            model_version=assignment.model_version,
            num_samples=update.num_samples,
            payload=encode_update(self._transformed(update.vector), dim=assignment.dim),
            loss_before=update.loss_before,
            loss_after=update.loss_after,
        )

    def _transformed(self, vector: NDArray[np.float32]) -> NDArray[np.float32]:
        transform = self._device.hooks.update_transform
        if transform is None:
            return vector
        try:
            return transform(vector, self._assignment)
        # As for the trainer: the application's code may raise anything.
        except Exception as error:
            raise TrainingError(f"update_transform raised {error!r}") from error

    async def report_failure(self) -> None:
        """Tell the server that this device gives up; never raises."""
        with contextlib.suppress(FedaggError):
            await self._device.transport.report_progress(self._progress(Stage.FAILED))

    def _progress(self, stage: Stage) -> Progress:
        return Progress(
            task=self._assignment.task,
            round=self._assignment.round,
            device_id=self._device.config.device_id,
            stage=stage,
        )

    def _upload_s(self) -> float:
        return self._device.link.seconds_for(self._payload_bytes)

    def _check_time(self, needed_s: float) -> None:
        if not self._deadline.leaves(needed_s):
            raise RoundDeadlineError(
                f"the round ends before an upload of about {needed_s:.3f} s could"
            )

    def _emit(self, kind: EventKind, receipt: Receipt | None = None) -> None:
        self._device.hooks.on_event(
            ClientEvent(
                kind=kind,
                assignment=self._assignment,
                submission_id=self.submission_id,
                receipt=receipt,
            )
        )
