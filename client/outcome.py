"""How one participation ended."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from client.errors import (
    ErrorReason,
    FedaggError,
    RefusedError,
    RoundClosedError,
    RoundDeadlineError,
    ServiceUnavailableError,
    TransportError,
)
from client.transport.messages import Receipt, RetryLaterReason


class Outcome(Enum):
    """What became of one offer of the device."""

    ACCEPTED = "accepted"  # The update counts; there is a receipt.
    NOT_SELECTED = "not-selected"
    NO_OPEN_ROUND = "no-open-round"
    NOT_ELIGIBLE = "not-eligible"
    FINISHED = "finished"  # The task has published all its rounds.
    BUDGET_EXHAUSTED = "budget-exhausted"  # Its privacy budget allows no further round.
    ROUND_CLOSED = "round-closed"  # The round took its last update before this one.
    DEADLINE_MISSED = "deadline-missed"  # The device saw that it would be too late.
    REFUSED = "refused"  # The server does not take this update.
    FAILED = "failed"  # Training failed, or what was announced is not what the device accepts.
    UNREACHABLE = "unreachable"  # No answer, or a busy server, until the retries were used up.


OUTCOME_OF_ANSWER: Final[dict[RetryLaterReason, Outcome]] = {
    RetryLaterReason.NOT_SELECTED: Outcome.NOT_SELECTED,
    RetryLaterReason.NO_OPEN_ROUND: Outcome.NO_OPEN_ROUND,
    RetryLaterReason.NOT_ELIGIBLE: Outcome.NOT_ELIGIBLE,
    RetryLaterReason.TASK_FINISHED: Outcome.FINISHED,
    RetryLaterReason.BUDGET_EXHAUSTED: Outcome.BUDGET_EXHAUSTED,
}


def outcome_of_error(error: FedaggError) -> Outcome:
    """Return how a participation ends that `error` stopped."""
    match error:
        case RoundClosedError():
            return Outcome.ROUND_CLOSED
        case RoundDeadlineError():
            return Outcome.DEADLINE_MISSED
        case TransportError() | ServiceUnavailableError():
            return Outcome.UNREACHABLE
        case RefusedError(reason=ErrorReason.WEAKER_THAN_POLICY):
            return Outcome.FAILED  # the device's own no: the server would have taken its update
        case RefusedError():
            return Outcome.REFUSED
        case _:
            return Outcome.FAILED


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundMetrics:
    """Numbers of one participation; None where it did not come that far.

    Attributes:
        num_samples: training samples behind the update.
        loss_before: mean local loss of the received model, where the trainer tells it.
        loss_after: mean local loss of the trained model, where the trainer tells it.
        update_norm: L2 norm of the update before clipping.
        fetch_s: seconds until the model was there; 0 when it was cached.
        train_s: seconds of training.
        submit_s: seconds from the first byte sent to the receipt.
        staleness: model versions by which the submitted update was behind its round; above 0
            where it had missed an earlier round and was kept.
        payload_bytes: bytes of the update that left the device, whoever got them.
        dense_bytes: bytes of the same update as dense float32.
    """

    num_samples: int | None = None
    loss_before: float | None = None
    loss_after: float | None = None
    update_norm: float | None = None
    fetch_s: float | None = None
    train_s: float | None = None
    submit_s: float | None = None
    staleness: int | None = None
    payload_bytes: int | None = None
    dense_bytes: int | None = None

    @property
    def compression_ratio(self) -> float | None:
        """How many times fewer bytes left than dense float32 has; None: nothing was sent."""
        if self.payload_bytes is None or self.dense_bytes is None:
            return None
        return self.dense_bytes / self.payload_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundOutcome:
    """The result of one `MobileClient.participate_once`.

    Attributes:
        outcome: how it ended.
        round: the round's number; None when the device was in no cohort.
        model_version: the version trained from; None when the device was in no cohort.
        submission_id: id under which the update was, or would have been, sent.
        receipt: present exactly when `outcome` is ACCEPTED.
        metrics: what was measured on the way.
        share_receipts: by share holder, its signed receipt, a serialized SignedStatement; for
            rounds in which the device delivers to them directly.
        bytes_up: update payload bytes sent, repeated ones included.
        bytes_down: model bytes received; 0 when the model was cached.
        retry_after_s: seconds the server asks to wait before the next offer; None: no hint.
        detail: why, in words; may be empty.
        error: the error that ended it; None when there was none.
    """

    outcome: Outcome
    round: int | None = None
    model_version: int | None = None
    submission_id: str | None = None
    receipt: Receipt | None = None
    metrics: RoundMetrics = field(default_factory=RoundMetrics)
    share_receipts: Mapping[int, bytes] = field(default_factory=dict, repr=False)
    bytes_up: int = 0
    bytes_down: int = 0
    retry_after_s: float | None = None
    detail: str = ""
    error: FedaggError | None = None
