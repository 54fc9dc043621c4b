"""The life of a submission: check, store, admit, acknowledge. In that order, and nothing twice.

An update is acknowledged only when its payload and its admission are durable. Small payloads travel
into the round store inside the admission itself; large ones lie in the blob store before it. A
retry, with the same submission id, gets the receipt of the first success.
"""

from collections import OrderedDict, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final

from protos.fedagg.v1 import federation_pb2 as pb
from protos.wire import MAX_CHUNK_BYTES
from security.shared_round.terms.parameters import RoundParameters
from server import errors
from server.config import LimitsConfig
from server.errors import (
    InvalidInput,
    Overloaded,
    ServiceError,
    UpdateTooLarge,
)
from server.intake.uploads import Uploads
from server.round.observers import DeviceObserver
from server.round.ports import Admission, AdmissionStore, AdmissionVerdict, RoundStore, Submission
from server.task.payload_format import PayloadFormat, SealedFormat
from server.task.task_info import TaskDirectory, TaskInfo
from server.wire.device_messages import check_size, receipt_of, submission_of
from server.wire.pace import OVERLOAD_RETRY_MS
from updates.codec import dense_payload_bytes

MAX_KNOWN_ROUNDS: Final = 64  # whose parameters are kept parsed

_REFUSALS: Final[dict[AdmissionVerdict, tuple[type[ServiceError], str]]] = {
    AdmissionVerdict.CONFLICT: (
        errors.SubmissionConflict,
        "the submission id was used with another payload",
    ),
    AdmissionVerdict.ALREADY_CONTRIBUTED: (
        errors.AlreadyContributed,
        "the device contributed to this round under another submission id",
    ),
    AdmissionVerdict.NOT_SELECTED: (
        errors.DeviceNotSelected,
        "the device is not in the round's cohort",
    ),
    AdmissionVerdict.CLOSED: (errors.RoundClosed, "the round takes no more updates"),
    AdmissionVerdict.UNKNOWN_ROUND: (errors.UnknownRound, "the round is not open yet"),
    AdmissionVerdict.WRONG_MODEL_VERSION: (
        errors.WrongModelVersion,
        "the round trains from another model version",
    ),
}


class Submissions:
    """Takes updates over any of the three paths.

    Args:
        tasks: what is served.
        rounds: the round that a sealed update is for.
        admission: admits.
        uploads: receives payloads in chunks.
        observer: metrics.
        limits: how large an inline payload may be, and how many are stored at once.
    """

    def __init__(  # noqa: PLR0913  # its collaborators
        self,
        *,
        tasks: TaskDirectory,
        rounds: RoundStore,
        admission: AdmissionStore,
        uploads: Uploads,
        observer: DeviceObserver,
        limits: LimitsConfig,
    ) -> None:
        self._tasks = tasks
        self._rounds = rounds
        self._admission = admission
        self._uploads = uploads
        self._observer = observer
        self._inline_max_bytes = min(MAX_CHUNK_BYTES, limits.inline_max_bytes)
        self._inline_in_flight = limits.inline_in_flight
        self._inline = 0
        self._sealed: OrderedDict[tuple[str, int], SealedFormat] = OrderedDict()

    async def submit_inline(self, update: pb.InlineUpdate) -> pb.SubmissionReceipt:
        """Take one update that came in one message."""
        submission = submission_of(update.header, update.payload)
        outcome = (await self._submit_together([submission]))[0]
        if isinstance(outcome, ServiceError):
            raise outcome
        return receipt_of(submission, outcome)

    async def submit_batch(
        self, updates: Iterable[pb.InlineUpdate], *, check_device: Callable[[str], None]
    ) -> list[pb.SubmissionReceipt | ServiceError]:
        """Take many updates; each has an outcome of its own, in order.

        `check_device` raises where the peer may not speak for the device of a header.
        """
        outcomes: list[pb.SubmissionReceipt | ServiceError | None] = []
        submissions: list[Submission] = []
        places: list[int] = []
        for place, update in enumerate(updates):
            try:
                submission = submission_of(update.header, update.payload)
                check_device(submission.device_id)
                submissions.append(submission)
                places.append(place)
                outcomes.append(None)
            except ServiceError as error:
                outcomes.append(error)
        answers = await self._submit_together(submissions)
        for place, submission, answer in zip(places, submissions, answers, strict=True):
            if isinstance(answer, Admission):
                outcomes[place] = receipt_of(submission, answer)
            else:
                outcomes[place] = answer
        return [outcome for outcome in outcomes if outcome is not None]

    async def submit_stream(
        self, messages: AsyncIterator[bytes], *, check_device: Callable[[str], None]
    ) -> tuple[Submission, Admission]:
        """Take one update in chunks: raw `SubmitUpdateRequest` messages, the header first.

        Args:
            messages: the stream; not read while the window is full.
            check_device: raises where the peer may not speak for the device of the header.

        Raises:
            ServiceError: the subclass that says why the update was refused. A stream that breaks
                before its end leaves what was received for a resumed upload.
        """
        self._observer.upload_started()
        try:
            header = await self._uploads.header(messages)
            submission = submission_of(header, None)
            check_device(submission.device_id)
            task = self._tasks[submission.task]
            check_size(submission.payload_bytes, limit=task.max_update_bytes)
            # Whoever would be refused at the end is refused now, and never holds a place.
            known = self._outcome(
                submission, await self._admission.probe(submission), counted=False
            )
            if isinstance(known, ServiceError):
                raise known
            if known.verdict is AdmissionVerdict.DUPLICATE:
                return submission, known
            payload_format = await self._format_of(task, submission.round_number)
            await self._receive(messages, submission, payload_format, header.offset)
        finally:
            self._observer.upload_ended()
        outcome = self._outcome(submission, (await self._admission.admit([submission]))[0])
        if isinstance(outcome, ServiceError):
            raise outcome
        return submission, outcome

    async def status(self, submission: Submission) -> tuple[int, Admission | None]:
        """Return bytes stored of an unfinished upload, or the admission of a finished one."""
        admission = await self._admission.probe(submission)
        if admission.verdict is AdmissionVerdict.DUPLICATE:
            return submission.payload_bytes, admission
        return await self._uploads.stored_bytes(submission), None

    async def _submit_together(
        self, submissions: Sequence[Submission]
    ) -> list[Admission | ServiceError]:
        """Check each, admit the good ones of a task in one step."""
        # While the store is slow, updates must not pile up here: the devices keep them.
        if self._inline >= self._inline_in_flight:
            msg = f"{self._inline} inline updates are being stored"
            raise Overloaded(msg, retry_after_ms=OVERLOAD_RETRY_MS)
        self._inline += len(submissions)
        try:
            return await self._admit_good(submissions)
        finally:
            self._inline -= len(submissions)

    async def _admit_good(
        self, submissions: Sequence[Submission]
    ) -> list[Admission | ServiceError]:
        outcomes: list[Admission | ServiceError | None] = [None] * len(submissions)
        good: defaultdict[str, list[int]] = defaultdict(list)
        for i, submission in enumerate(submissions):
            try:
                known = await self._check(submission)
                if known is None:
                    good[submission.task].append(i)
                else:
                    outcomes[i] = self._outcome(submission, known)
            except errors.UnknownRound as error:
                # The round may be over and this a retry: what is stored answers first.
                admission = await self._admission.probe(submission)
                is_new = admission.verdict is AdmissionVerdict.ACCEPTED
                outcomes[i] = error if is_new else self._outcome(submission, admission)
            except ServiceError as error:
                outcomes[i] = error
                await self._note_refusal(submission, error)
        for indices in good.values():
            batch = [submissions[i] for i in indices]
            for i, verdict in zip(indices, await self._admission.admit(batch), strict=True):
                outcomes[i] = self._outcome(submissions[i], verdict)
        return [outcome for outcome in outcomes if outcome is not None]

    async def _check(self, submission: Submission) -> Admission | None:
        """Check the payload, unless the answer is known without it; then return that."""
        task = self._tasks[submission.task]
        size = len(submission.inline_payload or b"")
        if size > self._inline_max_bytes:
            msg = f"{size} bytes are too many for one message: use SubmitUpdate"
            raise UpdateTooLarge(msg)
        check_size(submission.payload_bytes, limit=task.max_update_bytes)
        payload_format = await self._format_of(task, submission.round_number)
        if not payload_format.is_quick:
            # A few bytes may decode to many: not for whoever would be refused at the end.
            known = await self._admission.probe(submission)
            if known.verdict is not AdmissionVerdict.ACCEPTED:
                return known
        await self._uploads.check(submission, payload_format)
        return None

    async def _format_of(self, task: TaskInfo, round_number: int) -> PayloadFormat:
        """Return what the payloads of a round must be.

        Raises:
            UnknownRound: if the round is shared and not the one that is open.
        """
        if task.shared is None:
            return task.plain_payload
        key = (task.name, round_number)
        known = self._sealed.get(key)
        if known is None:
            round_ = (await self._rounds.snapshot(task.name)).round
            if round_ is None or round_.number != round_number or round_.shared is None:
                msg = f"round {round_number} is not open"
                raise errors.UnknownRound(msg)
            params = RoundParameters.from_bytes(round_.shared.params_bytes)
            known = SealedFormat(params=params, is_direct=task.shared.is_direct)
            self._sealed[key] = known
            if len(self._sealed) > MAX_KNOWN_ROUNDS:
                self._sealed.popitem(last=False)
        return known

    async def _receive(
        self,
        messages: AsyncIterator[bytes],
        submission: Submission,
        payload_format: PayloadFormat,
        offset: int,
    ) -> None:
        try:
            await self._uploads.receive(
                messages, submission, payload_format=payload_format, offset=offset
            )
        except InvalidInput as error:
            await self._note_refusal(submission, error)
            raise

    def _outcome(
        self, submission: Submission, admission: Admission, *, counted: bool = True
    ) -> Admission | ServiceError:
        if admission.verdict is AdmissionVerdict.ACCEPTED and counted:
            dense_bytes = dense_payload_bytes(self._tasks[submission.task].dim)
            self._observer.accepted(submission, dense_bytes=dense_bytes)
        refusal = _REFUSALS.get(admission.verdict)
        if refusal is None:
            return admission
        error_class, words = refusal
        self._observer.refused(submission.task, error_class.reason)
        return error_class(f"round {submission.round_number}: {words}")

    async def _note_refusal(self, submission: Submission, error: ServiceError) -> None:
        if isinstance(error, errors.UnknownTask):
            return  # a metric label must not be what a stranger chose
        self._observer.refused(submission.task, error.reason)
        if not isinstance(error, errors.TruncatedStream | errors.OffsetOutOfRange):
            await self._admission.note_rejection(
                submission.task, submission.round_number, submission.device_id
            )


def status_query(request: pb.GetUploadStatusRequest) -> Submission:
    """Return the submission a status request asks about.

    Raises:
        MalformedRequest: if a field is out of range.
    """
    header = pb.UpdateHeader(
        task=request.task,
        round=request.round,
        device_id=request.device_id,
        submission_id=request.submission_id,
        payload_digest=request.payload_digest,
        model_version=1,
        num_samples=1,
        payload_bytes=1,
    )
    return replace(submission_of(header, None), payload_bytes=0)
