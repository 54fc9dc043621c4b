"""A device of the federation: offers itself, trains when selected, sends its update."""

import asyncio
from types import TracebackType
from typing import Self

from opentelemetry.trace import Status, StatusCode

from client.compression.error_memory import ErrorMemory
from client.config import ClientConfig
from client.errors import AuthenticationError, FedaggError, InvalidRequestError, NotFoundError
from client.hooks import ClientEvent, ClientHooks, EventKind
from client.outcome import OUTCOME_OF_ANSWER, Outcome, RoundOutcome, outcome_of_error
from client.round.device import Device
from client.round.participation import Participation
from client.runtime import Runtime
from client.sharing.sharing_loader import load_sealer
from client.trainer import Trainer
from client.transport.connection import ServerPool
from client.transport.federation_transport import FederationTransport
from client.transport.messages import Assignment, Offer, RetryLater, RetryLaterReason
from client.transport.retry import Retry
from client.transport.tracing import context_of, tracer


class MobileClient:
    """Takes part in the rounds of one learning task with one device's data.

    Used from one event loop; runs one participation at a time. Cancelling a call stops its
    training at the next `should_stop`. An update whose receipt did not arrive before the process
    ended may or may not count, and never counts twice. Nothing of it is kept on disk, but for what
    compression left out of it where `config.state_dir` is set.
    """

    def __init__(
        self,
        config: ClientConfig,
        trainer: Trainer,
        *,
        hooks: ClientHooks | None = None,
        runtime: Runtime | None = None,
        pool: ServerPool | None = None,
    ) -> None:
        """Prepare the client; the first call connects.

        Args:
            config: where the servers are and who the device is.
            trainer: trains on local data, in a worker thread.
            hooks: functions of the application that look into, or change, what happens.
            runtime: clock, sleep, randomness, tracing; None: the real ones.
            pool: connections shared with other clients of this event loop, closed by their
                owner; None: its own.

        Raises:
            ClientConfigError: if `config.sharing` cannot be used: a file is missing or wrong, or
                `fedagg[shared]` is not installed; or if `config.state_dir` cannot be made.
        """
        runtime = runtime or Runtime()
        self._config = config
        self._runtime = runtime
        self._hooks = hooks or ClientHooks()
        self._transport = FederationTransport(
            config, runtime=runtime, pool=pool, on_retry=self._on_retry
        )
        self._device = Device(
            config=config,
            trainer=trainer,
            transport=self._transport,
            runtime=runtime,
            hooks=self._hooks,
            tracer=tracer(runtime.tracer_provider),
            memory=ErrorMemory(config, self._transport),
            sealer=self._hooks.sealer or (load_sealer(config) if config.sharing else None),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections, unless they are shared."""
        await self._transport.close()

    def forget(self) -> None:
        """Remove what is kept of the device's updates, on disk too: it leaves the task.

        Raises:
            ClientConfigError: if a file cannot be removed.
        """
        self._device.memory.forget()
        self._device.late.forget()

    async def run(self, max_rounds: int | None = None) -> int:
        """Take part until the task is finished, or its privacy budget is exhausted.

        Args:
            max_rounds: stop after so many accepted updates, from 0; None: no limit.

        Returns:
            Number of accepted updates. `on_event` tells about each participation.

        Raises:
            AuthenticationError: if the server does not accept the device.
            NotFoundError: if the task does not exist.
            InvalidRequestError: if the server can never accept this device's check-in.
        """
        accepted = failures = 0
        while max_rounds is None or accepted < max_rounds:
            outcome = await self.participate_once()
            match outcome.outcome:
                case Outcome.FINISHED | Outcome.BUDGET_EXHAUSTED:
                    break
                case Outcome.ACCEPTED:
                    accepted, failures = accepted + 1, 0
                    continue
                case Outcome.NOT_SELECTED | Outcome.NO_OPEN_ROUND | Outcome.NOT_ELIGIBLE:
                    failures = 0
                case _:
                    failures += 1
            await self._runtime.sleep(self._pause_s(outcome, failures))
        return accepted

    def run_forever(self) -> int:
        """Run `run()` in an event loop of its own, for programs without one."""
        return asyncio.run(self._run_and_close())

    async def participate_once(self) -> RoundOutcome:
        """Offer the device once and, if it is selected, do the round's work.

        Returns:
            How it ended. Lost connections, refusals and failures of the trainer are outcomes.

        Raises:
            AuthenticationError, NotFoundError, InvalidRequestError: as for `run`.
        """
        try:
            answer = await self._check_in()
        except (AuthenticationError, NotFoundError, InvalidRequestError):
            raise
        except FedaggError as error:
            outcome = RoundOutcome(
                outcome=outcome_of_error(error),
                retry_after_s=error.retry_after_s,
                detail=str(error),
                error=error,
            )
        else:
            match answer:
                case Assignment():
                    outcome = await self._take_part(answer)
                case RetryLater():
                    outcome = RoundOutcome(
                        outcome=OUTCOME_OF_ANSWER[answer.reason],
                        retry_after_s=answer.retry_after_s,
                        detail=answer.detail,
                    )
        self._hooks.on_event(ClientEvent(kind=EventKind.ENDED, outcome=outcome))
        return outcome

    async def _check_in(self) -> Assignment | RetryLater:
        offer = Offer(
            task=self._config.task,
            device_id=self._config.device_id,
            check_in_id=self._runtime.new_id(),
            state=self._hooks.device_state(),
            max_wait_s=self._config.max_wait_s,
        )
        while True:
            answer = await self._transport.check_in(offer)
            if not isinstance(answer, RetryLater) or answer.reason is not RetryLaterReason.WAITING:
                return answer
            await self._runtime.sleep(answer.retry_after_s)

    async def _take_part(self, assignment: Assignment) -> RoundOutcome:
        traffic = self._transport.traffic
        up, down = traffic.bytes_up, traffic.bytes_down
        participation = Participation(self._device, assignment)
        self._hooks.on_event(ClientEvent(kind=EventKind.ASSIGNED, assignment=assignment))
        receipt, error = None, None
        with self._device.tracer.start_as_current_span(
            "device.round",
            context=context_of(assignment.traceparent),
            attributes={"fedagg.task": assignment.task, "fedagg.round": assignment.round},
        ) as span:
            try:
                receipt = await participation.run()
            except AuthenticationError:
                raise
            except FedaggError as caught:
                error = caught
                span.record_exception(caught)
                span.set_status(Status(StatusCode.ERROR, str(caught)))
            outcome = outcome_of_error(error) if error else Outcome.ACCEPTED
            span.set_attribute("fedagg.outcome", outcome.value)
            if outcome is Outcome.FAILED:
                await participation.report_failure()
        return RoundOutcome(
            outcome=outcome,
            round=assignment.round,
            model_version=participation.model_version,
            submission_id=participation.submission_id,
            receipt=receipt,
            metrics=participation.metrics,
            share_receipts=participation.share_receipts,
            bytes_up=traffic.bytes_up - up,
            bytes_down=traffic.bytes_down - down,
            retry_after_s=error.retry_after_s if error else None,
            detail=str(error) if error else "",
            error=error,
        )

    def _pause_s(self, outcome: RoundOutcome, failures: int) -> float:
        # Pace steering is the server's business: its word is taken as it is. Without one the
        # pause has a floor, so that a quick failure cannot make a busy loop.
        if not failures and outcome.retry_after_s is not None:
            return outcome.retry_after_s
        floor_s = max(outcome.retry_after_s or 0.0, self._config.retry.initial_s)
        return self._config.retry.delay_s(
            failures=max(failures, 1), rng=self._runtime.rng, hint_s=floor_s
        )

    def _on_retry(self, retry: Retry) -> None:
        self._hooks.on_event(ClientEvent(kind=EventKind.RETRYING, retry=retry))

    async def _run_and_close(self) -> int:
        async with self:
            return await self.run()
