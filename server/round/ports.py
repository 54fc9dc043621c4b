"""What the server needs of its stores: values and ports, no implementation.

Two stores hold everything: the *round store* (Redis: control state and small payloads) and the
*blob store* (files or objects: models and large payloads).
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


class RoundStore(Protocol):
    """Durable control state of every task. Every method is one atomic step, safe to repeat."""

    async def create_task(self, task: str, *, model: ModelVersion, num_rounds: int) -> None: ...

    async def snapshot(self, task: str) -> Snapshot: ...

    async def acquire_lease(self, task: str, *, owner: str, ttl_ms: int) -> Lease | None: ...

    async def release_lease(self, task: str, lease: Lease) -> None: ...

    async def commit(self, round_: Round, *, lease: Lease) -> CommitResult: ...

    async def open_round(
        self, round_: Round, *, ledger_revision: int, lease: Lease
    ) -> CommitResult: ...

    async def open_cohort(
        self, round_: Round, *, cohort: Sequence[str], lease: Lease
    ) -> CommitResult: ...

    async def finish(
        self, round_: Round, *, record: FinishedRound, model: ModelVersion | None, lease: Lease
    ) -> CommitResult: ...

    async def exhaust(
        self, round_: Round, *, record: FinishedRound, ledger_revision: int, lease: Lease
    ) -> CommitResult: ...

    async def ledger(self, task: str) -> LedgerState: ...

    async def noise_key(self, task: str) -> bytes: ...

    async def participations(self, task: str) -> dict[int, int]: ...

    async def candidates(self, task: str) -> tuple[Candidate, ...]: ...

    async def check_in(
        self, task: str, *, device_id: str, check_in_id: str, ttl_ms: int, wanted: int
    ) -> CheckInAnswer: ...

    async def admit(self, submissions: Sequence[Submission]) -> list[Admission]: ...

    async def probe(self, submission: Submission) -> Admission: ...

    async def note_rejection(self, task: str, round_number: int, device_id: str) -> None: ...

    async def contributions(self, task: str, round_number: int) -> tuple[Contribution, ...]: ...

    async def inline_payloads(
        self, task: str, round_number: int, device_ids: Sequence[str]
    ) -> list[bytes]: ...

    async def rejections(self, task: str, round_number: int) -> int: ...

    async def model(self, task: str, version: int) -> ModelVersion: ...

    async def models(self, task: str) -> tuple[ModelVersion, ...]: ...

    async def rollback(self, task: str, version: int) -> ModelVersion: ...

    async def finished_rounds(self, task: str, *, limit: int) -> tuple[FinishedRound, ...]: ...

    async def unaudited(self, task: str) -> tuple[FinishedRound, ...]: ...

    async def mark_audited(self, task: str, round_number: int) -> None: ...

    async def claim_installation(self, candidate: str) -> str: ...

    async def remember_enrollment(
        self, token_id: str, *, csr_sha256: str, chain_pem: bytes, ttl_s: int
    ) -> tuple[str, bytes]: ...

    async def ping(self) -> None: ...
