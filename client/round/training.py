"""The trainer's run, and the watch over whether its round still waits."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator

from client.errors import FedaggError, TrainingError
from client.round.deadline import RoundDeadline
from client.round.device import Device
from client.round.model_cache import ReceivedModel
from client.trainer import TrainingResult
from client.transport.messages import Assignment, ProgressStage


class WatchedTraining:
    """Runs the trainer once for a round.

    Attributes:
        is_round_closed: whether the round was seen to take no more updates.
    """

    def __init__(
        self,
        device: Device,
        assignment: Assignment,
        deadline: RoundDeadline,
        *,
        is_useful_late: bool,
    ) -> None:
        """Prepare the run.

        Args:
            device: whose trainer it is.
            assignment: the round.
            deadline: moved when the server tells how long the round waits.
            is_useful_late: let the training end by itself where the round closes meanwhile.
        """
        self.is_round_closed = False
        self._device = device
        self._assignment = assignment
        self._deadline = deadline
        self._is_useful_late = is_useful_late
        self._stop = threading.Event()

    async def run(self, model: ReceivedModel, *, reserve_s: float) -> TrainingResult:
        """Train, asking the trainer to stop while `reserve_s` of the round are left.

        Raises:
            TrainingError: if the trainer raised anything.
        """

        def should_stop() -> bool:
            return self._stop.is_set() or not self._deadline.leaves(reserve_s)

        with self._watching():
            try:
                return await asyncio.to_thread(
                    self._device.trainer.train, model.tensors, self._assignment.plan, should_stop
                )
            # The application's code may raise anything, and none of it may end the client.
            except Exception as error:
                raise TrainingError(
                    f"the trainer raised {type(error).__name__}: {error}"
                ) from error
            finally:
                # A cancelled client leaves no training behind it.
                self._stop.set()

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        interval_s = self._device.config.progress_interval_s
        if interval_s is None:
            yield
            return
        watcher = asyncio.create_task(self._watch(interval_s))
        try:
            yield
        finally:
            watcher.cancel()

    async def _watch(self, interval_s: float) -> None:
        report = self._device.progress(self._assignment, ProgressStage.TRAINING)
        while True:
            await self._device.runtime.sleep(interval_s)
            try:
                status = await self._device.transport.report_progress(report)
            except FedaggError:
                continue  # A report is a courtesy: the submission will meet the same trouble.
            if not status.is_open:
                self.is_round_closed = True
                if not self._is_useful_late:
                    self._stop.set()
                return
            self._deadline.renew(status.ttl_s)
