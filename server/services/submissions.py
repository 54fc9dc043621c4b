"""The life of a submission: check, store, admit, acknowledge. In that order, and nothing twice.

An update is acknowledged only when its payload and its admission are durable. Small payloads travel
into the round store inside the admission itself; large ones lie in the blob store before it. A
retry, with the same submission id, gets the receipt of the first success.
"""

import asyncio
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final, Protocol

from protos.fedagg.v1 import federation_pb2 as pb
from server import errors
from server.config import LimitsConfig
from server.convert import check_size, receipt_of, submission_of, upload_part
from server.errors import (
    InvalidInput,
    MalformedRequest,
    OffsetOutOfRange,
    Overloaded,
    ServiceError,
    UpdateTooLarge,
)
from server.kernels import Workers
from server.storage.blobs import BlobStore
from server.storage.keys import payload_blob
from server.storage.ports import Admission, AdmissionVerdict, BlobNotFound, RoundStore, Submission
from server.tasks import TaskDirectory, TaskInfo
from server.upload import UploadSink, check_inline

WRITE_BYTES: Final = 1 << 20  # handed to a thread at once: larger saves hops, smaller saves memory
INLINE_LIMIT_BYTES: Final = 1 << 20  # SubmitInlineUpdate and one SubmitUpdatesRequest
OVERLOAD_RETRY_MS: Final = 1000

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


class SubmissionObserver(Protocol):
    """Told of every submission; must not fail."""

    def accepted(self, submission: Submission) -> None: ...

    def refused(self, task: str, reason: str) -> None: ...

    def upload_started(self) -> None: ...

    def upload_ended(self) -> None: ...


class Submissions:
    """Takes updates over any of the three paths.

    Args:
        tasks: what is served.
        store: admits.
        blobs: keeps large payloads.
        workers: threads for decoding and file work.
        observer: metrics.
        limits: uploads in flight (the others are not read, so flow control holds their bytes back
            at the devices and memory stays bounded), uploads queued (further ones are told to come
            back), the stall after which an upload is ended, and the largest inline payload.
    """

    def __init__(  # noqa: PLR0913  # its collaborators and limits
        self,
        *,
        tasks: TaskDirectory,
        store: RoundStore,
        blobs: BlobStore,
        workers: Workers,
        observer: SubmissionObserver,
        limits: LimitsConfig,
    ) -> None:
        self._tasks = tasks
        self._store = store
        self._blobs = blobs
        self._workers = workers
        self._observer = observer
        self._window = asyncio.Semaphore(limits.uploads_in_flight)
        self._capacity = limits.uploads_in_flight + limits.uploads_queued
        self._uploads = 0
        self._stall_s = limits.upload_stall_s
        self._inline_max_bytes = min(INLINE_LIMIT_BYTES, limits.inline_max_bytes)

    async def submit_inline(self, update: pb.InlineUpdate) -> pb.SubmissionReceipt:
        """Take one update that came in one message."""
        submission = submission_of(update.header, update.payload)
        outcome = (await self._submit_together([submission]))[0]
        if isinstance(outcome, ServiceError):
            raise outcome
        return receipt_of(submission, outcome)

    async def submit_batch(
        self, updates: Iterable[pb.InlineUpdate]
    ) -> list[pb.SubmissionReceipt | ServiceError]:
        """Take many updates; each has an outcome of its own, in order."""
        outcomes: list[pb.SubmissionReceipt | ServiceError | None] = []
        submissions: list[Submission] = []
        places: list[int] = []
        for place, update in enumerate(updates):
            try:
                submissions.append(submission_of(update.header, update.payload))
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
        if self._uploads >= self._capacity:
            msg = f"{self._uploads} uploads are under way"
            raise Overloaded(msg, retry_after_ms=OVERLOAD_RETRY_MS)
        self._uploads += 1
        self._observer.upload_started()
        try:
            async with self._window:
                return await self._receive(_unless_stalled(messages, self._stall_s), check_device)
        finally:
            self._uploads -= 1
            self._observer.upload_ended()

    async def status(self, submission: Submission) -> tuple[int, Admission | None]:
        """Bytes stored of an unfinished upload, or the admission of a finished one."""
        admission = await self._store.probe(submission)
        if admission.verdict is AdmissionVerdict.DUPLICATE:
            return submission.payload_bytes, admission
        part = await self._blobs.stored_part(_blob_key(submission))
        return (part[1] if part else 0), None

    async def _submit_together(
        self, submissions: Sequence[Submission]
    ) -> list[Admission | ServiceError]:
        """Check each, admit the good ones of a task in one step."""
        outcomes: list[Admission | ServiceError | None] = [None] * len(submissions)
        good: defaultdict[str, list[int]] = defaultdict(list)
        for i, submission in enumerate(submissions):
            try:
                await self._check(submission)
                good[submission.task].append(i)
            except ServiceError as error:
                outcomes[i] = error
                await self._note_refusal(submission, error)
        for indices in good.values():
            batch = [submissions[i] for i in indices]
            for i, verdict in zip(indices, await self._store.admit(batch), strict=True):
                outcomes[i] = self._outcome(submissions[i], verdict)
        return [outcome for outcome in outcomes if outcome is not None]

    async def _check(self, submission: Submission) -> None:
        task = self._tasks[submission.task]
        size = len(submission.inline_payload or b"")
        if size > self._inline_max_bytes:
            msg = f"{size} bytes are too many for one message: use SubmitUpdate"
            raise UpdateTooLarge(msg)
        check_size(submission.payload_bytes, limit=task.max_update_bytes)
        # A few microseconds for payloads this small: a thread would cost more than the work.
        check_inline(submission, dim=task.dim)

    async def _receive(
        self, messages: AsyncIterator[bytes], check_device: Callable[[str], None]
    ) -> tuple[Submission, Admission]:
        header = await self._header(messages)
        submission = submission_of(header, None)
        check_device(submission.device_id)
        task = self._tasks[submission.task]
        check_size(submission.payload_bytes, limit=task.max_update_bytes)
        known = self._outcome(submission, await self._store.probe(submission), counted=False)
        if isinstance(known, ServiceError):
            raise known
        if known.verdict is AdmissionVerdict.DUPLICATE:
            return submission, known
        try:
            await self._store_payload(messages, submission, task, header.offset)
        except InvalidInput as error:
            await self._note_refusal(submission, error)
            raise
        outcome = self._outcome(submission, (await self._store.admit([submission]))[0])
        if isinstance(outcome, ServiceError):
            await self._blobs.delete(_blob_key(submission))
            raise outcome
        return submission, outcome

    async def _header(self, messages: AsyncIterator[bytes]) -> pb.UpdateHeader:
        async for message in messages:
            part = upload_part(message)
            if isinstance(part, pb.UpdateHeader):
                return part
            break
        msg = "the first message must hold the header"
        raise MalformedRequest(msg)

    async def _store_payload(
        self, messages: AsyncIterator[bytes], submission: Submission, task: TaskInfo, offset: int
    ) -> None:
        key = _blob_key(submission)
        writer = self._blobs.open_part(key, part=uuid.uuid4().hex)
        sink = UploadSink(submission, dim=task.dim, writer=writer)
        resumed = ""
        try:
            if offset:
                resumed = await self._resume(sink, key, offset)
            await self._pump(messages, sink)
            await self._workers.run(sink.commit)
        except ServiceError as error:
            # A stream that simply ended early may be resumed; wrong bytes may not.
            keep = isinstance(error, errors.TruncatedStream | errors.Unavailable)
            await self._workers.run(sink.abort, keep=keep)
            if resumed and not keep:
                await self._blobs.delete_part(key, part=resumed)
            raise
        except BaseException:
            await asyncio.shield(self._workers.run(sink.abort, keep=True))
            raise
        if resumed:
            await self._blobs.delete_part(key, part=resumed)

    async def _resume(self, sink: UploadSink, key: str, offset: int) -> str:
        """Read the stored bytes through the same checks as if they arrived now."""
        stored = await self._blobs.stored_part(key)
        if stored is None or stored[1] < offset:
            msg = f"offset={offset} lies beyond the {stored[1] if stored else 0} bytes stored"
            raise OffsetOutOfRange(msg)
        part, _ = stored
        try:
            await self._workers.run(
                lambda: sink.feed(self._blobs.iter_part(key, part=part, length=offset))
            )
        except BlobNotFound as error:
            msg = "the stored part is gone: start again at offset 0"
            raise OffsetOutOfRange(msg) from error
        return part

    async def _pump(self, messages: AsyncIterator[bytes], sink: UploadSink) -> None:
        """Move chunks from the stream to the sink; the next arrive while a thread checks these."""
        chunks: list[memoryview] = []
        held = 0
        writing: asyncio.Future[None] | None = None
        try:
            async for message in messages:
                part = upload_part(message)
                if isinstance(part, pb.UpdateHeader):
                    msg = "only the first message may hold a header"
                    raise MalformedRequest(msg)
                chunks.append(part)
                held += len(part)
                if held >= WRITE_BYTES:
                    if writing is not None:
                        await writing
                    writing = asyncio.ensure_future(self._workers.run(sink.feed, chunks))
                    chunks, held = [], 0
        finally:
            # The sink must be idle before it is committed or aborted, whatever happened.
            if writing is not None:
                await asyncio.shield(writing)
        if chunks:
            await self._workers.run(sink.feed, chunks)

    def _outcome(
        self, submission: Submission, admission: Admission, *, counted: bool = True
    ) -> Admission | ServiceError:
        if admission.verdict is AdmissionVerdict.ACCEPTED and counted:
            self._observer.accepted(submission)
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
        if not isinstance(error, errors.TruncatedStream):
            await self._store.note_rejection(
                submission.task, submission.round_number, submission.device_id
            )


async def _unless_stalled(messages: AsyncIterator[bytes], stall_s: float) -> AsyncIterator[bytes]:
    """Pass messages on; a peer that falls silent must not hold a place in the window."""
    while True:
        try:
            async with asyncio.timeout(stall_s):
                message = await anext(messages)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            msg = f"nothing arrived for {stall_s:g} s"
            raise Overloaded(msg, retry_after_ms=OVERLOAD_RETRY_MS) from error
        yield message


def status_query(request: pb.GetUploadStatusRequest) -> Submission:
    """The submission a status request asks about.

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


def _blob_key(submission: Submission) -> str:
    return payload_blob(
        submission.task,
        submission.round_number,
        device_id=submission.device_id,
        submission_id=submission.submission_id,
        digest=submission.digest,
    )
