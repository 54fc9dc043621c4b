"""What the server needs of its stores: values and ports, no implementation.

Two stores hold everything: the *round store* (Redis: control state and small payloads), here as
four ports, and the *blob store* (files or objects: models and large payloads).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from privacy.budget import LedgerState
from server.round.round_privacy import RoundCost, RoundPrivacy
from server.round.selection import Candidate
from server.round.shared_round import SharedRound
from server.round.state import Round


class BlobNotFound(LookupError):
    """No blob under that key."""


class CommitResult(Enum):
    """Outcome of a compare-and-set."""

    COMMITTED = "committed"
    STALE = "stale"  # somebody changed the round first: read it again
    FENCED = "fenced"  # a newer leader exists: stop driving
    BASE_CHANGED = "base_changed"  # the round's base is no longer the current model version


class AdmissionVerdict(Enum):
    """What the round store says of one submission. Values are the script's return codes."""

    ACCEPTED = 0
    DUPLICATE = 1  # admitted before with the same bytes: the same receipt
    CONFLICT = 2  # the submission id was used with other bytes
    ALREADY_CONTRIBUTED = 3  # the device is in under another submission id
    NOT_SELECTED = 4
    CLOSED = 5
    UNKNOWN_ROUND = 6
    WRONG_MODEL_VERSION = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to drive one task's rounds until it expires."""

    owner: str
    fence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One update as offered for admission."""

    task: str
    round_number: int
    device_id: str
    submission_id: str
    model_version: int
    num_samples: int
    payload_bytes: int
    digest: bytes
    loss_before: float | None
    loss_after: float | None
    inline_payload: bytes | None  # None: the payload lies in the blob store
    within_clipping_norm: bool | None = None  # before it was clipped; None: not told


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """Verdict on one submission; `accepted_at_ms` is meaningful for ACCEPTED and DUPLICATE."""

    verdict: AdmissionVerdict
    accepted_at_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """An admitted update, as the aggregation reads it back."""

    device_id: str
    submission_id: str
    num_samples: int
    payload_bytes: int
    digest: bytes
    accepted_at_ms: int
    inline: bool
    loss_before: float | None
    loss_after: float | None
    model_version: int = 0  # trained from it; 0: not recorded
    within_clipping_norm: bool | None = None  # as the device said; None: it did not


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """Metadata of one published model version."""

    version: int
    parent: int | None
    round_number: int | None  # None: the initial model
    sha256: str
    size_bytes: int
    dim: int
    created_at_ms: int
    metrics: dict[str, float]
    state_sha256: str = ""  # of the aggregator's state that belongs to it; "": no round led to it
    clipping_norm: float | None = None  # C of private rounds that start from it; None: the plan's


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRound:
    """What is kept of a round after it ended."""

    task: str
    number: int
    decision: str  # "published" or "abandoned"
    reason: str
    base_version: int
    model_version: int | None
    cohort_size: int
    accepted: int
    contributors: tuple[str, ...]  # for the audit log; the list of finished rounds has none
    rejected: int
    excluded: int
    started_at_ms: int
    finished_at_ms: int
    bytes_up: int
    traceparent: str
    metrics: dict[str, float]
    shared: SharedRound | None = None  # for the audit log, as the contributors
    privacy: RoundCost | None = None  # for the audit log, as the contributors


class CheckInVerdict(Enum):
    """What the store knows about an offer. Values are the script's return codes."""

    ASSIGNED = 0
    WAITING = 1
    NOT_SELECTED = 2
    NO_OPEN_ROUND = 3
    TASK_FINISHED = 4
    BUDGET_EXHAUSTED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckInAnswer:
    """Verdict on an offer, with the round it concerns."""

    verdict: CheckInVerdict
    round_number: int
    ttl_ms: int
    base_version: int
    traceparent: str
    shared_parameters: bytes = b""  # serialized; empty: the round is plain
    privacy: RoundPrivacy | None = None  # of the assigned round; None: it is not private


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One consistent reading of a task: the store's clock, the round and its counters."""

    now_ms: int
    round: Round | None
    accepted: int
    waiting: int
    current_version: int
    latest_version: int
    published_rounds: int
    is_exhausted: bool = False  # the next round would exceed the privacy budget


class AdmissionStore(Protocol):
    """What devices offer and send: check-ins and submissions.

    Every method is one atomic step, durable when it returns as far as the store's settings reach,
    and safe to repeat. All raise `StoreUnavailable` where the store does not answer.
    """

    async def check_in(
        self, task: str, *, device_id: str, check_in_id: str, ttl_ms: int, wanted: int
    ) -> CheckInAnswer:
        """Register an offer for `ttl_ms`, or tell the selection that it led to.

        The verdict and the offer are one step: a device is never both selected and waiting. A
        check-in id that led to a selection gets that selection again, whatever happened since;
        a task that is finished or has spent its privacy budget takes no offer.

        Args:
            wanted: offers that are news for the driver once there are so many.
        """

    async def candidates(self, task: str) -> tuple[Candidate, ...]:
        """Return the devices whose offer stands, with what is known of their participation."""

    async def admit(self, submissions: Sequence[Submission]) -> list[Admission]:
        """Admit updates of one task, each at most once; verdicts come in order.

        Judging, storing the facts and a small payload, and counting are one step, so never more
        than the reporting goal are admitted. What is stored answers first: a retry gets its
        receipt also after the round has ended. Two submissions of one device in one call are
        judged one after the other. Refusals are verdicts; no update raises.
        """

    async def probe(self, submission: Submission) -> Admission:
        """Return the verdict that `admit` would give now; change nothing."""

    async def note_rejection(self, task: str, round_number: int, device_id: str) -> None:
        """Count a device with a refused update, once a round.

        Nothing happens where the round does not collect, or the device is not in its cohort.
        """

    async def contributions(self, task: str, round_number: int) -> tuple[Contribution, ...]:
        """Return what was admitted, sorted by device: the order does not tell who was first.

        Fixed from the commit on that ends collecting.
        """

    async def inline_payloads(
        self, task: str, round_number: int, device_ids: Sequence[str]
    ) -> list[bytes]:
        """Return the payloads that were stored with their admission, in the order asked.

        Read in several steps: one round's payloads do not change while there are any.

        Raises:
            BlobNotFound: if one is gone, as all are once the round has ended.
        """

    async def rejections(self, task: str, round_number: int) -> int:
        """Count the devices with a refused update in this round."""


class RoundStore(Protocol):
    """The state of each task's newest round, who may change it, and the rounds that ended.

    Every method is one atomic step, durable as admissions are. A transition compares and sets: it
    takes place only where `lease` is the newest of the task (else FENCED) and the version before
    `round_` is the one stored (else STALE); where it does not, nothing is changed. Repeated, it
    is refused as STALE, or as BASE_CHANGED where it published: whoever lost the first answer
    compares what is stored. All raise `StoreUnavailable` where the store does not answer.
    """

    async def snapshot(self, task: str) -> Snapshot:
        """Read clock, round and counters at one instant.

        Raises:
            UnknownTask: if the task was never created.
        """

    async def acquire_lease(self, task: str, *, owner: str, ttl_ms: int) -> Lease | None:
        """Take or prolong the lease; None while somebody else holds it.

        A new owner gets a higher fence than all before, one that comes back before anybody else
        keeps its own.
        """

    async def release_lease(self, task: str, lease: Lease) -> None:
        """Give the lease back, so that the next leader need not wait for its end.

        Nothing happens where somebody else holds it by now.
        """

    async def commit(self, round_: Round, *, lease: Lease) -> CommitResult:
        """Store the next version of a round."""

    async def open_round(
        self, round_: Round, *, ledger_revision: int, lease: Lease
    ) -> CommitResult:
        """Commit a new private round, and in the same step reserve its charge in the ledger.

        STALE also where the ledger is not at `ledger_revision` any more.

        Raises:
            ValueError: if the round is not private.
        """

    async def open_cohort(
        self, round_: Round, *, cohort: Sequence[str], lease: Lease
    ) -> CommitResult:
        """Commit, and in the same step make `cohort` the devices that may submit.

        Their offers are taken out, and each has one participation more.
        """

    async def finish(
        self, round_: Round, *, record: FinishedRound, model: ModelVersion | None, lease: Lease
    ) -> CommitResult:
        """Commit a terminal phase; in the same step publish `model`, keep `record` and settle.

        A reserved charge is committed where the round was aggregating or later, or collecting
        updates that are releases by themselves; else it is dropped. Small payloads are deleted,
        receipts answer for a while. STALE also where an update was admitted since `record` was
        made, BASE_CHANGED where a model is given and the round's base is not current any more.
        """

    async def exhaust(
        self, round_: Round, *, record: FinishedRound, ledger_revision: int, lease: Lease
    ) -> CommitResult:
        """Keep the record of a round that was refused; devices are told the budget is spent.

        STALE also where the ledger is not at `ledger_revision` any more. The next round that
        opens ends it.
        """

    async def finished_rounds(self, task: str, *, limit: int) -> tuple[FinishedRound, ...]:
        """Return the newest `limit` finished rounds, oldest first, without who took part."""

    async def unaudited(self, task: str) -> tuple[FinishedRound, ...]:
        """Return the finished rounds that no audit log has yet, whole and oldest first."""

    async def mark_audited(self, task: str, round_number: int) -> None:
        """Tell that the round's audit line is on disk; twice is once."""


class PrivacyLedger(Protocol):
    """What each task has spent of its privacy budget.

    Read here; written by the transitions of `RoundStore` alone, in the step of the round that
    spends. All methods raise `StoreUnavailable` where the store does not answer.
    """

    async def ledger(self, task: str) -> LedgerState:
        """Read the ledger at one instant.

        Raises:
            UnknownTask: if the task was never created.
        """

    async def noise_key(self, task: str) -> bytes:
        """Return the secret, of 32 bytes, that the noise of the task's rounds follows from.

        Made at the first call and the same ever after, whoever calls at the same time. Whoever
        has it can subtract the noise.
        """

    async def participations(self, task: str) -> dict[int, int]:
        """Return the number of rounds -> devices that were selected for so many; none for 0."""


class ModelRegistry(Protocol):
    """The versions of each task's model; their files lie in the blob store.

    Versions are published by `RoundStore.finish`, in the step that ends their round. Every method
    is one atomic step, safe to repeat. All raise `StoreUnavailable` where the store does not
    answer.
    """

    async def create_task(self, task: str, *, model: ModelVersion, num_rounds: int) -> None:
        """Make the task exist with `model` as version 1; keep the versions that are there already.

        The number of rounds is that of the last call.
        """

    async def model(self, task: str, version: int) -> ModelVersion:
        """Return the metadata of one version; they never change.

        Raises:
            UnknownModelVersion: if the task has no such version.
        """

    async def models(self, task: str) -> tuple[ModelVersion, ...]:
        """Return all versions, oldest first."""

    async def rollback(self, task: str, version: int) -> ModelVersion:
        """Make an earlier version current; a round that trains from another one is abandoned.

        Raises:
            UnknownModelVersion: if the task has no such version.
        """
