"""What the devices know: what they sent, what was acknowledged. The independent count.

Every (round, device, payload) has a coordinate of its own in the model, which starts at zero. So
the published models alone tell which updates went into which round, and how often, and can be
compared with the acknowledgements; no counter of the server is asked.
"""

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protos.fedagg.v1 import federation_pb2 as pb
from tests.chaos.operations import DEVICES, QUORUM
from tests.chaos.promise import require

MAX_ROUNDS: Final = 40
PAYLOADS: Final = 2
DIM: Final = MAX_ROUNDS * DEVICES * PAYLOADS
# One float32 rounding of 1/n for n <= 5, next to the 1/n it would take to hide a contribution.
TOLERANCE: Final = 1e-5

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Attempt:
    """One update a device may send: the same fields, the same bytes."""

    round: int
    device: int
    submission: int
    payload: int

    @property
    def coordinate(self) -> int:
        return ((self.round - 1) * DEVICES + self.device) * PAYLOADS + self.payload

    @property
    def vector(self) -> Vector:
        if self.round > MAX_ROUNDS:
            msg = f"the simulation has coordinates for {MAX_ROUNDS} rounds, not {self.round}"
            raise ValueError(msg)
        vector = np.zeros(DIM, dtype=np.float32)
        vector[self.coordinate] = 1
        return vector


@dataclass(slots=True, kw_only=True)
class Fate:
    """What became of an attempt, as far as its device knows."""

    model_version: int
    first_sent_ms: int
    forbidden: bool  # the device had no assignment
    receipt: bytes | None = None


@dataclass(slots=True)
class Ledger:
    """Everything the devices were told."""

    model_versions: dict[int, int] = field(default_factory=dict)  # round -> base version
    deadlines: dict[int, int] = field(default_factory=dict)
    assigned: list[list[int]] = field(default_factory=lambda: [[] for _ in range(DEVICES)])
    fates: dict[Attempt, Fate] = field(default_factory=dict)
    rolled_back: set[int] = field(default_factory=set)  # rounds that were open at a rollback

    def note_assignment(self, device: int, assignment: pb.Assignment, *, now_ms: int) -> None:
        round_ = assignment.round
        known = self.model_versions.setdefault(round_, assignment.model_version)
        require(known == assignment.model_version, f"round {round_} has two base versions")
        if assignment.ttl_ms:
            deadline = self.deadlines.setdefault(round_, now_ms + assignment.ttl_ms)
            require(deadline == now_ms + assignment.ttl_ms, f"round {round_} has two deadlines")
        if round_ not in self.assigned[device]:
            self.assigned[device].append(round_)

    def note_sent(self, attempt: Attempt, *, forbidden: bool, now_ms: int) -> Fate:
        return self.fates.setdefault(
            attempt,
            Fate(
                model_version=self.model_versions[attempt.round],
                first_sent_ms=now_ms,
                forbidden=forbidden,
            ),
        )

    def note_receipt(self, attempt: Attempt, receipt: pb.SubmissionReceipt, *, now_ms: int) -> None:
        """Check an acknowledgement against all that came before, and keep it."""
        fate = self.fates[attempt]
        answer = receipt.SerializeToString(deterministic=True)
        require(not fate.forbidden, f"{attempt} was accepted without an assignment")
        require(fate.receipt in {None, answer}, f"{attempt} got two different receipts")
        fate.receipt = answer
        at_ms = receipt.accepted_at_ms
        deadline = self.deadlines.get(attempt.round)
        late = deadline is not None and at_ms >= deadline
        require(not late, f"{attempt} was admitted at {at_ms}, after its deadline {deadline}")
        require(fate.first_sent_ms <= at_ms <= now_ms, f"{attempt} was admitted at {at_ms}")
        rivals = self.acknowledged(attempt.round) - {attempt}
        same_device = [rival for rival in rivals if rival.device == attempt.device]
        require(not same_device, f"{attempt} and {same_device} are both acknowledged")

    def rival(self, attempt: Attempt) -> Attempt | None:
        """What is acknowledged for the attempt's device and round."""
        for other in self.acknowledged(attempt.round):
            if other.device == attempt.device:
                return other
        return None

    def acknowledged(self, round_: int) -> set[Attempt]:
        return {a for a, fate in self.fates.items() if a.round == round_ and fate.receipt}

    def check_models(self, versions: list[Vector]) -> set[int]:
        """Compare all published models with the acknowledgements.

        Args:
            versions: model version 1 first, which is zero.

        Returns:
            The rounds that were published.
        """
        by_round = [_rounds_in(version) for version in versions]
        require(by_round[0] == set(), "the first model is not the initial one")
        for version, rounds in zip(versions, by_round, strict=True):
            for round_ in rounds:
                self._check_round(round_, version)
        for number, rounds in enumerate(by_round[1:], start=1):
            new = [rounds - parent for parent in by_round[:number] if parent < rounds]
            require(
                any(len(rounds_) == 1 for rounds_ in new),
                f"version {number + 1} with {rounds} is no earlier version and one more round",
            )
        published: set[int] = set().union(*by_round)
        require(
            len(published) == len(versions) - 1,
            f"rounds {published} gave {len(versions) - 1} versions",
        )
        return published

    def check_unpublished(self, finished: int, published: set[int]) -> None:
        """No acknowledged update may be missing without a reason its device can understand."""
        for round_ in range(1, finished + 1):
            enough = len(self.acknowledged(round_)) >= QUORUM
            lost = round_ not in published and enough and round_ not in self.rolled_back
            require(not lost, f"round {round_} lost {self.acknowledged(round_)}")

    def _check_round(self, round_: int, version: Vector) -> None:
        acknowledged = self.acknowledged(round_)
        expected = np.zeros(DEVICES * PAYLOADS)
        for attempt in acknowledged:
            expected[attempt.coordinate % (DEVICES * PAYLOADS)] = 1 / len(acknowledged)
        counted = version.reshape(MAX_ROUNDS, -1)[round_ - 1]
        require(
            bool(np.allclose(counted, expected, rtol=0, atol=TOLERANCE)),
            f"round {round_} counted {counted}, acknowledged was {sorted(acknowledged)}",
        )


def _rounds_in(version: Vector) -> set[int]:
    rows = version.reshape(MAX_ROUNDS, -1).any(axis=1)
    return {int(row) + 1 for row in np.flatnonzero(rows)}
