"""What the admin API says, and what it asks of the server.

Times are milliseconds since the Unix epoch by the store's clock. Device ids do not appear: rounds
are told by their counts.
"""

from collections.abc import AsyncIterator
from typing import Protocol

from pydantic import Field

from server.wire.probes import _Answer


class ErrorAnswer(_Answer):
    """Why a request was refused."""

    reason: str = Field(description="stable name, as in the device API's ErrorReason")
    message: str = Field(description="for a person")


class TaskSummary(_Answer):
    """A task in a list."""

    task: str
    phase: str | None = Field(description="phase of the latest round; null before the first")
    published_rounds: int = Field(ge=0)
    num_rounds: int = Field(ge=1, description="rounds after which the task is finished")
    model_version: int = Field(ge=1, description="current version")
    budget_exhausted: bool = Field(
        default=False, description="the privacy budget allows no further round: the task has ended"
    )


class ModelInfo(_Answer):
    """One published model version."""

    version: int = Field(ge=1)
    parent: int | None = Field(description="version it was trained from; null: the initial model")
    round_number: int | None = Field(description="round that made it; null: the initial model")
    sha256: str
    size_bytes: int = Field(ge=1)
    dim: int = Field(ge=1, description="elements of an update")
    created_at_ms: int = Field(ge=0)
    metrics: dict[str, float] = Field(description="of the round that made it")
    state_sha256: str = Field(
        default="", description="of the aggregator's state that belongs to it; empty: none"
    )


class TaskStatus(TaskSummary):
    """A task with its latest round."""

    round_number: int | None = Field(description="latest round; null before the first")
    cohort_size: int = Field(ge=0, description="devices selected for the round")
    accepted: int = Field(ge=0, description="contributions so far")
    waiting: int = Field(ge=0, description="devices that offer themselves for selection")
    model: ModelInfo


class RoundSummary(_Answer):
    """One finished round."""

    number: int = Field(ge=1)
    decision: str = Field(description="published or abandoned")
    reason: str = Field(description="why it was abandoned; empty otherwise")
    base_version: int = Field(ge=1)
    model_version: int | None = Field(description="version published; null: none")
    cohort_size: int = Field(ge=0)
    accepted: int = Field(ge=0, description="contributions")
    rejected: int = Field(ge=0, description="updates refused")
    excluded: int = Field(ge=0, description="contributions the rule gave no weight")
    started_at_ms: int = Field(ge=0)
    finished_at_ms: int = Field(ge=0)
    bytes_up: int = Field(ge=0, description="payload bytes of the contributions")
    traceparent: str = Field(description="W3C trace of the round; empty: not traced")
    metrics: dict[str, float]


class ReplayedRound(_Answer):
    """A round's version, and what came of building it again."""

    round_number: int = Field(ge=1)
    model_version: int = Field(ge=1)
    base_version: int = Field(ge=1)
    contributions: int = Field(ge=0, description="updates it was built from")
    sha256: str = Field(description="of the published model")
    rebuilt_sha256: str = Field(description="of the model built again")
    state_sha256: str = Field(description="of the published aggregator state")
    rebuilt_state_sha256: str = Field(description="of the state built again")
    is_same: bool = Field(description="whether all of these are as they were published")
    problem: str = Field(default="", description="why not; empty: they are")


class PrivacyStatus(_Answer):
    """What a task may spend of its devices' privacy, and what it has spent."""

    task: str
    noise: str = Field(description="who adds it: none, central, holders or device")
    mechanism: str
    sampling: str = Field(description="what amplification is claimed")
    noise_multiplier: float | None = Field(description="z of the next round; null: not private")
    clipping_norm: float | None = Field(description="C of the next round; null: not private")
    charge: str | None = Field(description="what the next round costs; null: not private")
    accountant: str = Field(description="what enforces the budget: pld or rdp")
    delta: float
    epsilon_budget: float
    epsilon_spent: float | None = Field(
        description="by charged and open rounds, as the enforcing accountant says; null: no bound"
    )
    epsilon_by_accountant: dict[str, float | None] = Field(description="the same by each of them")
    rounds_committed: int = Field(ge=0, description="rounds charged")
    rounds_reserved: int = Field(ge=0, description="open rounds")
    rounds_remaining: int = Field(
        ge=0, description="further rounds that the budget and num-rounds allow"
    )
    uncharged_versions: int = Field(ge=0, description="versions published without any charge")
    budget_exhausted: bool
    max_participations: int | None = Field(description="cap of one device; null: none")
    participations: dict[int, int] = Field(
        description="rounds selected for -> devices selected for so many; none for 0"
    )


class AdminBackend(Protocol):
    """What the admin API asks of the server; refusals are raised as `ServiceError`.

    A task that is not configured raises `UnknownTask`, a version that was never published
    `UnknownModelVersion`.
    """

    async def list_tasks(self) -> list[TaskSummary]:
        """Return every task, in the order of the configuration."""
        ...

    async def task_status(self, task: str) -> TaskStatus:
        """Return one task and its latest round."""
        ...

    async def privacy(self, task: str) -> PrivacyStatus:
        """Return budget, ledger and participations of one task, private or not."""
        ...

    async def finished_rounds(self, task: str, *, limit: int) -> list[RoundSummary]:
        """Return the latest finished rounds, newest first, at most `limit`."""
        ...

    async def list_models(self, task: str) -> list[ModelInfo]:
        """Return every published version, newest first."""
        ...

    async def model(self, task: str, version: int) -> ModelInfo:
        """Return one published version."""
        ...

    async def model_file(self, task: str, version: int) -> tuple[int, AsyncIterator[bytes]]:
        """Return the size of one published version's file, and the file in parts."""
        ...

    async def replay(self, task: str, round_number: int) -> ReplayedRound:
        """Build a finished round's version again from what was kept, and compare.

        Raises `UnknownRound` for a round that published nothing, `RoundPurged` where its
        contributions were not kept.
        """
        ...

    async def rollback(self, task: str, version: int) -> ModelInfo:
        """Make an earlier version current and return it; repeating it changes nothing."""
        ...
