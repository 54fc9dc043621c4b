"""The `fedagg.v1.Federation` service: thin methods over the stores.

Each method checks the caller, converts, and lets someone else decide. Errors are raised as
`ServiceError`; `server/wire/interceptor.py` turns them into statuses.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final, Protocol

from protos.fedagg.v1 import federation_pb2 as pb
from protos.wire import MAX_BATCH_UPDATES
from server.errors import MalformedRequest, ServiceError
from server.intake.submissions import Submissions, status_query
from server.models.model_catalog import ModelCatalog
from server.round.observers import DeviceObserver
from server.round.ports import AdmissionStore, CheckInAnswer, CheckInVerdict, RoundStore
from server.round.selection import PaceSteering, eligibility, retry_after_ms
from server.round.state import Phase
from server.task.task_info import TaskDirectory, TaskInfo
from server.wire import device_messages
from server.wire.identity import Context, PeerIdentity
from server.wire.status import error_detail

NOT_ELIGIBLE_RETRY_MS: Final = 60_000
FINISHED_RETRY_MS: Final = 3_600_000
WAITING_RETRY_MS: Final = 200

_RETRY_REASONS: Final = {
    CheckInVerdict.WAITING: pb.RetryLater.Reason.WAITING,
    CheckInVerdict.NOT_SELECTED: pb.RetryLater.Reason.NOT_SELECTED,
    CheckInVerdict.NO_OPEN_ROUND: pb.RetryLater.Reason.NO_OPEN_ROUND,
    CheckInVerdict.TASK_FINISHED: pb.RetryLater.Reason.TASK_FINISHED,
    CheckInVerdict.BUDGET_EXHAUSTED: pb.RetryLater.Reason.BUDGET_EXHAUSTED,
}

_DECIDED: Final = frozenset(
    {CheckInVerdict.ASSIGNED, CheckInVerdict.TASK_FINISHED, CheckInVerdict.BUDGET_EXHAUSTED}
)


class RoundNews(Protocol):
    """Wakes a check-in that waits for a decision."""

    def mark(self, task: str) -> int:
        """Count the news of a task so far; taken before the state is read."""

    def wake(self, task: str) -> None:
        """Wake everybody who waits for a task."""

    async def wait(self, task: str, *, timeout_s: float, since: int) -> None:
        """Return once there is news of a task after `since`, or after `timeout_s` seconds."""


class PlanMaker(Protocol):
    """Makes the plan of one round's assignment; the same on every replica."""

    async def plan(self, task: TaskInfo, answer: CheckInAnswer) -> pb.Plan:
        """Make the plan of the round that `answer` assigned the device to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePorts:
    """What the service works with."""

    tasks: TaskDirectory
    rounds: RoundStore
    admission: AdmissionStore
    models: ModelCatalog
    submissions: Submissions
    news: RoundNews
    identity: PeerIdentity
    observer: DeviceObserver
    check_in_ttl_s: float
    check_ins_held: int
    plans: PlanMaker


class FederationService:
    """Answers devices and gateways. Any replica answers any call."""

    def __init__(self, ports: ServicePorts) -> None:
        self._ports = ports
        self._held = 0
        self._is_draining = False

    def drain(self) -> None:
        """Answer the check-ins that wait, and hold no more: this process is about to stop."""
        self._is_draining = True
        for task in self._ports.tasks.names:
            self._ports.news.wake(task)

    async def check_in(self, request: pb.CheckInRequest, context: Context) -> pb.CheckInResponse:
        """Register the offer; wait for the decision as long as the device allows."""
        offer = device_messages.check_in_of(request)
        self._ports.identity.check(context, offer.device_id)
        task = self._ports.tasks[offer.task]
        why_not = eligibility(offer.conditions, task.criteria)
        if why_not is not None:
            self._ports.observer.checked_in(task.name, "not_eligible")
            return _retry_later(
                pb.RetryLater.Reason.NOT_ELIGIBLE, NOT_ELIGIBLE_RETRY_MS, detail=why_not
            )
        answer = await self._decision(task, offer)
        self._ports.observer.checked_in(task.name, answer.verdict.name.lower())
        if answer.verdict is CheckInVerdict.ASSIGNED:
            return pb.CheckInResponse(assignment=await self._assignment(task, answer))
        return _retry_later(_RETRY_REASONS[answer.verdict], self._retry_ms(offer.device_id, answer))

    async def fetch_model(
        self, request: pb.FetchModelRequest, context: Context
    ) -> AsyncIterator[bytes]:
        """Stream serialized `ModelChunk` messages."""
        self._ports.identity.check_any(context)
        task = self._ports.tasks[request.task]
        models = self._ports.models
        wanted = request.model_version
        model = await (models.version(task.name, wanted) if wanted else models.current(task.name))
        async for chunk in models.stream(task.name, model, request.offset):
            yield chunk
            self._ports.observer.model_sent(task.name, len(chunk))

    async def submit_update(
        self, messages: AsyncIterator[bytes], context: Context
    ) -> pb.SubmissionReceipt:
        """Take one update in chunks."""
        submission, admission = await self._ports.submissions.submit_stream(
            messages, check_device=self._ports.identity.check_submitter(context)
        )
        return device_messages.receipt_of(submission, admission)

    async def submit_inline_update(
        self, request: pb.InlineUpdate, context: Context
    ) -> pb.SubmissionReceipt:
        """Take one update in one message."""
        self._ports.identity.check(context, request.header.device_id)
        return await self._ports.submissions.submit_inline(request)

    async def submit_updates(
        self, requests: AsyncIterator[pb.SubmitUpdatesRequest], context: Context
    ) -> AsyncIterator[pb.SubmitUpdatesResponse]:
        """Take batches of updates: a gateway's for its devices, or a device's own."""
        check_device = self._ports.identity.check_submitter(context)
        async for request in requests:
            if not 1 <= len(request.updates) <= MAX_BATCH_UPDATES:
                msg = f"{len(request.updates)} updates in a batch,"
                msg += f" must lie in [1, {MAX_BATCH_UPDATES}]"
                raise MalformedRequest(msg)
            outcomes = await self._ports.submissions.submit_batch(
                request.updates, check_device=check_device
            )
            yield pb.SubmitUpdatesResponse(
                batch_id=request.batch_id, outcomes=[_outcome(outcome) for outcome in outcomes]
            )

    async def get_upload_status(
        self, request: pb.GetUploadStatusRequest, context: Context
    ) -> pb.GetUploadStatusResponse:
        """Tell where to resume, or that nothing is left to do."""
        self._ports.identity.check(context, request.device_id)
        submission = status_query(request)
        self._ports.tasks[submission.task]
        stored, admission = await self._ports.submissions.status(submission)
        receipt = device_messages.receipt_of(submission, admission) if admission else None
        return pb.GetUploadStatusResponse(stored_bytes=stored, receipt=receipt)

    async def report_progress(
        self, request: pb.ReportProgressRequest, context: Context
    ) -> pb.ReportProgressResponse:
        """Tell whether the round still waits for this device."""
        device_messages.check_names(task=request.task, device_id=request.device_id)
        device_messages.check_round_number(request.round)
        if not 0 <= request.fraction <= 1:
            msg = f"fraction={request.fraction} must lie in [0, 1]"
            raise MalformedRequest(msg)
        self._ports.identity.check(context, request.device_id)
        task = self._ports.tasks[request.task]
        snapshot = await self._ports.rounds.snapshot(task.name)
        round_ = snapshot.round
        if (
            round_ is None
            or round_.number != request.round
            or round_.phase is not Phase.COLLECTING
            or snapshot.accepted >= round_.reporting_goal
        ):
            return pb.ReportProgressResponse(round_open=False, ttl_ms=0)
        left = max(0, round_.deadline_ms - snapshot.now_ms)
        return pb.ReportProgressResponse(round_open=left > 0, ttl_ms=left)

    async def _decision(self, task: TaskInfo, offer: device_messages.CheckIn) -> CheckInAnswer:
        wait_ms = offer.max_wait_ms if self._held < self._ports.check_ins_held else 0
        deadline = time.monotonic() + wait_ms / 1000
        self._held += 1
        try:
            return await self._decided(task, offer, deadline)
        finally:
            self._held -= 1

    async def _decided(
        self, task: TaskInfo, offer: device_messages.CheckIn, deadline: float
    ) -> CheckInAnswer:
        while True:
            mark = self._ports.news.mark(task.name)
            answer = await self._ports.admission.check_in(
                task.name,
                device_id=offer.device_id,
                check_in_id=offer.check_in_id,
                ttl_ms=int(self._ports.check_in_ttl_s * 1000),
                wanted=task.offers_wanted,
            )
            left = deadline - time.monotonic()
            if answer.verdict in _DECIDED or left <= 0 or self._is_draining:
                return answer
            # Half the offer's life, so that it is renewed while the device waits.
            pause = min(left, self._ports.check_in_ttl_s / 2)
            await self._ports.news.wait(task.name, timeout_s=pause, since=mark)

    async def _assignment(self, task: TaskInfo, answer: CheckInAnswer) -> pb.Assignment:
        model = await self._ports.models.version(task.name, answer.base_version)
        plan = await self._ports.plans.plan(task, answer)
        return pb.Assignment(
            task=task.name,
            round=answer.round_number,
            model_version=model.version,
            model_sha256=model.sha256,
            model_bytes=model.size_bytes,
            dim=task.dim,
            ttl_ms=answer.ttl_ms,
            max_update_bytes=task.max_update_bytes,
            plan=plan,
            traceparent=answer.traceparent,
            shared_parameters=answer.shared_parameters,
            direct_delivery=task.shared is not None and task.shared.is_direct,
        )

    def _retry_ms(self, device_id: str, answer: CheckInAnswer) -> int:
        match answer.verdict:
            case CheckInVerdict.TASK_FINISHED | CheckInVerdict.BUDGET_EXHAUSTED:
                return FINISHED_RETRY_MS
            case CheckInVerdict.WAITING:
                return WAITING_RETRY_MS
            case _:
                return _paced_ms(device_id, answer, self._ports.check_in_ttl_s)


def _paced_ms(device_id: str, answer: CheckInAnswer, check_in_ttl_s: float) -> int:
    """Spread the returns, and let each come before its offer lapses."""
    pace = PaceSteering(earliest_ms=0, num_waiting=1, min_spread_ms=int(check_in_ttl_s * 500))
    return retry_after_ms(pace, device_id=device_id, round_number=answer.round_number, seed=0)


def _retry_later(
    reason: pb.RetryLater.Reason.ValueType, retry_ms: int, *, detail: str = ""
) -> pb.CheckInResponse:
    later = pb.RetryLater(reason=reason, retry_after_ms=retry_ms, detail=detail[:200])
    return pb.CheckInResponse(retry_later=later)


def _outcome(outcome: pb.SubmissionReceipt | ServiceError) -> pb.SubmissionOutcome:
    if isinstance(outcome, ServiceError):
        return pb.SubmissionOutcome(error=error_detail(outcome))
    return pb.SubmissionOutcome(receipt=outcome)
