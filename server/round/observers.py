"""What is told of rounds, of devices and of what is shared: ports, no implementation.

Observers are told after the fact, some of it twice where an answer was lost. They decide nothing,
return at once and must not fail.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from privacy.budget import Budget, LedgerState
from server.round.ports import FinishedRound, Submission
from server.round.state import Round


class RoundObserver(Protocol):
    """Told of a task's rounds: who drives them, how they go, what they cost."""

    def leading(self, task: str, *, leads: bool) -> None:
        """Note that this process drives a task now, or does not any more."""

    def new_traceparent(self, task: str, round_number: int) -> str:
        """Start the trace of a round; everything the round does, anywhere, becomes its child.

        Returns:
            The W3C `traceparent` of the trace; "" where nothing is traced.
        """

    def span(self, name: str, round_: Round) -> AbstractContextManager[object]:
        """Return a span of the round's trace, around something this process does for it."""

    def phase_entered(self, round_: Round, *, before: Round | None) -> None:
        """Note a committed change of phase.

        Args:
            round_: as it was committed.
            before: the round before that; None: it is new.
        """

    def aggregated(
        self, round_: Round, *, rule: str, seconds: float, metrics: Mapping[str, float]
    ) -> None:
        """Note that a candidate was built, in so many seconds, with these metrics of it."""

    def round_finished(self, record: FinishedRound) -> None:
        """Note what is kept of a round that ended."""

    def ledger_changed(self, task: str, ledger: LedgerState) -> None:
        """Note what a private task has spent, round by round."""

    def privacy_spent(self, task: str, *, epsilon: float, budget: Budget) -> None:
        """Note what a private task has spent of its budget, as epsilon."""

    def tick_failed(self, task: str, error: Exception) -> None:
        """Note that the driver could not go on; it tries again."""


class DeviceObserver(Protocol):
    """Told of what devices ask for and send. Devices are counted, never named."""

    def checked_in(self, task: str, outcome: str) -> None:
        """Count an answer to a check-in."""

    def model_sent(self, task: str, num_bytes: int) -> None:
        """Count bytes of model files on their way to a device."""

    def upload_started(self) -> None:
        """Count a chunked upload as under way."""

    def upload_ended(self) -> None:
        """Count a chunked upload as over, whatever came of it."""

    def accepted(self, submission: Submission, *, dense_bytes: int) -> None:
        """Count an admitted update, and the bytes it would have taken as dense float32."""

    def refused(self, task: str, reason: str) -> None:
        """Count a refused update by the reason that its device was told."""


class SharingObserver(Protocol):
    """Told of everything that passes between the coordinator and the share holders."""

    def holder_reachable(self, task: str, holder: int, *, reachable: bool) -> None:
        """Note whether a holder answered the last call."""

    def holder_refused(self, task: str, holder: int, reason: str) -> None:
        """Count a call that a holder refused."""

    def share_relayed(self, task: str, holder: int, outcome: str) -> None:
        """Count a share that found its holder, or was refused there."""

    def opened(self, task: str, holder: int, kind: str) -> None:
        """Count a statement of a holder that was checked and taken."""
