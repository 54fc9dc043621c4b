"""What a task has spent of its privacy budget, and whether one more round fits.

A ledger holds what happened: for each charge, how many rounds were charged with it, and which
rounds are open. An accountant scores it (`Scorer`; `privacy.renyi_accountant` is one). The bound
holds for the device that took part the most:

- A round that claims amplification by sampling counts for every device, in the cohort or not.
- Of the rounds without such a claim, a device is charged for as many as it was selected for, and
  for the most expensive of them.

Nothing is ever counted less than it cost: an open round counts as charged, and as one that the
busiest device takes part in.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal, Protocol

from privacy.charge import Charge
from privacy.errors import PrivacyError
from privacy.participation import participation_counts

Accountant = Literal["pld", "rdp"]
MAX_RELEASES: Final = 1_000_000
"""Most releases that are counted of one charge."""

ACCOUNTANTS: Final[tuple[Accountant, ...]] = ("pld", "rdp")


class Scorer(Protocol):
    """Scores charges; a module with these functions is one."""

    def epsilon_of(
        self, counts: Mapping[Charge, int], delta: float, accountant: Accountant
    ) -> float:
        """Compute epsilon at `delta` of so many releases of each charge; rises with every count."""
        ...

    def within(
        self, counts: Mapping[Charge, int], *, epsilon: float, delta: float, accountant: Accountant
    ) -> bool:
        """Tell whether `epsilon_of` is at most `epsilon`, as cheaply as that can be told."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What the published models of a task may cost one device.

    Attributes:
        epsilon: of the guarantee, finite and above 0.
        delta: of the guarantee, in (0, 1).
        accountant: whose epsilon must not exceed `epsilon`.
        max_participations: rounds that selection gives one device at most; None: no such cap.

    Raises:
        PrivacyError: if a field is out of range.
    """

    epsilon: float
    delta: float
    accountant: Accountant = "pld"
    max_participations: int | None = None

    def __post_init__(self) -> None:
        _require(0 < self.epsilon < math.inf, "epsilon", self.epsilon, "finite and above 0")
        _require(0 < self.delta < 1, "delta", self.delta, "in (0, 1)")
        known = self.accountant in ACCOUNTANTS
        _require(known, "accountant", self.accountant, f"one of {', '.join(ACCOUNTANTS)}")
        cap = self.max_participations
        _require(cap is None or cap >= 1, "max_participations", cap, "at least 1 or None")


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerState:
    """One consistent reading of a task's ledger.

    Attributes:
        committed: charge, as `Charge.to_text` writes it -> rounds charged with it.
        reserved: number of each open round -> its charge.
        max_participations: rounds that the busiest device was selected for, whatever came of them.
        uncharged: model versions that were published without any charge.
        revision: changes with every change of the ledger.
        is_exhausted: whether a round was refused, and none was opened since.
        clipping_norm: where the latest published round moved the clipping norm to; None: nowhere.

    Raises:
        PrivacyError: if a count is negative or a charge is none.
    """

    committed: Mapping[str, int] = field(default_factory=dict)
    reserved: Mapping[int, str] = field(default_factory=dict)
    max_participations: int = 0
    uncharged: int = 0
    revision: int = 0
    is_exhausted: bool = False
    clipping_norm: float | None = None

    def __post_init__(self) -> None:
        for text in {*self.committed, *self.reserved.values()}:
            Charge.from_text(text)
        least = min((*self.committed.values(), self.max_participations, self.uncharged))
        _require(least >= 0, "committed, max_participations, uncharged", least, "at least 0")

    @property
    def rounds_committed(self) -> int:
        """Rounds that were charged."""
        return sum(self.committed.values())

    def reserve(self, round_number: int, charge: Charge) -> "LedgerState":
        """Return the ledger with one more open round.

        Raises:
            PrivacyError: if the round is open already.
        """
        is_new = round_number not in self.reserved
        _require(is_new, "round_number", round_number, "one that is not reserved")
        return replace(self, reserved={**self.reserved, round_number: charge.to_text()})

    def settle(self, round_number: int, *, charged: bool) -> "LedgerState":
        """Return the ledger after the end of an open round, `charged` or released.

        Raises:
            PrivacyError: if the round is not open.
        """
        is_open = round_number in self.reserved
        _require(is_open, "round_number", round_number, "one that is reserved")
        text = self.reserved[round_number]
        others = {
            number: charge for number, charge in self.reserved.items() if number != round_number
        }
        committed = dict(self.committed)
        if charged:
            committed[text] = committed.get(text, 0) + 1
        return replace(self, reserved=others, committed=committed)


def charged_counts(
    ledger: LedgerState, *, max_participations: int | None = None
) -> dict[Charge, int]:
    """Return releases of each charge that count for the device that took part the most.

    Args:
        ledger: what happened.
        max_participations: rounds that selection gives one device at most; None: no such cap.

    Returns:
        Charges with their counts, each above 0.

    Guarantees:
        A committed or reserved round with a claim of sampling counts once.
        Of the others as many count as any device can have been selected for, those with the least
        noise first; each open round may be one more for the busiest device, within the cap.
    """
    return _counts(ledger, Counter(ledger.reserved.values()), max_participations)


def spent(ledger: LedgerState, budget: Budget, scorer: Scorer) -> float:
    """Return epsilon, at the budget's delta, of everything charged or open.

    Infinite where a version was published without a charge: nothing can be said of it.
    """
    if ledger.uncharged:
        return math.inf
    counts = charged_counts(ledger, max_participations=budget.max_participations)
    return scorer.epsilon_of(counts, budget.delta, budget.accountant) if counts else 0.0


def allows(ledger: LedgerState, charge: Charge, budget: Budget, scorer: Scorer) -> bool:
    """Tell whether one more round with this charge keeps within the budget.

    Guarantees:
        True only where `spent` of the ledger with the round reserved is at most the budget.
    """
    return _fits(ledger, charge, budget, scorer, more=1)


def remaining_rounds(
    ledger: LedgerState, charge: Charge, budget: Budget, scorer: Scorer, *, limit: int
) -> int:
    """Return the most further rounds with this charge that the budget allows, up to `limit`.

    Without a claim of sampling the busiest device is taken to be in each, up to the cap.

    Cost: about log2(limit) calls of the scorer's `within`.
    """
    if limit < 1 or _fits(ledger, charge, budget, scorer, more=limit):
        return max(limit, 0)
    fit, over = 0, limit
    while over - fit > 1:
        middle = (fit + over) // 2
        if _fits(ledger, charge, budget, scorer, more=middle):
            fit = middle
        else:
            over = middle
    return fit


def _fits(
    ledger: LedgerState, charge: Charge, budget: Budget, scorer: Scorer, *, more: int
) -> bool:
    if ledger.uncharged:
        return False
    open_rounds = Counter(ledger.reserved.values()) + Counter({charge.to_text(): more})
    counts = _counts(ledger, open_rounds, budget.max_participations)
    if max(counts.values(), default=0) > MAX_RELEASES:
        return False
    return scorer.within(
        counts, epsilon=budget.epsilon, delta=budget.delta, accountant=budget.accountant
    )


def _counts(
    ledger: LedgerState, open_rounds: Mapping[str, int], cap: int | None
) -> dict[Charge, int]:
    rounds = Counter(ledger.committed) + Counter(open_rounds)
    # The busiest device may be in each open round. A cap below what has happened undoes nothing.
    most = ledger.max_participations + sum(open_rounds.values())
    if cap is not None:
        most = max(ledger.max_participations, min(cap, most))
    return participation_counts({Charge.from_text(text): n for text, n in rounds.items()}, most)


def _require(condition: bool, name: str, value: object, rule: str) -> None:
    if not condition:
        message = f"{name}={value!r} must be {rule}"
        raise PrivacyError(message)
