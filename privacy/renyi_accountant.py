"""How much privacy releases have cost: epsilon at a delta, by Renyi and loss-distribution bounds.

For zero-out adjacency, as `privacy.divergences` says. Two bounds, both sound:
- "rdp": Renyi divergences at fixed orders, added up. Microseconds.
- "pld": privacy loss distributions, 7 to 9 % tighter in noise as a rule. Tenths of a second.

Charges without sampling are per participation: `privacy.participation` says how many rounds count
for one device.
"""

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Final

import numpy as np

from privacy.budget import ACCOUNTANTS, MAX_RELEASES, Accountant
from privacy.charge import Charge
from privacy.divergences import ORDERS, Floats, pld_epsilon, rdp_vector
from privacy.errors import PrivacyError

MAX_PLD_EPSILON: Final = 100.0
"""Where the Renyi bound is above, loss distributions grow too large and it stands alone."""

_ORDERS: Final = np.array(ORDERS, dtype=np.float64)
_ORDERS.setflags(write=False)


class RenyiPrivacyAccountant:
    """Adds up what releases cost, one at a time.

    Not safe for use by several threads at once.

    Guarantees:
        `epsilon` is that of dp-accounting's `RdpAccountant` on the same events and orders.
        `pld_epsilon` is that of its `PLDAccountant`.
        The order in which releases are composed makes no difference, bit for bit.
        Composing more never lowers an epsilon.

    Cost: `compose` about a microsecond once a charge is known, `fits` about two, `epsilon` tens.
        A charge seen for the first time takes tens of milliseconds, once in a process.
    """

    def __init__(self) -> None:
        """Start with nothing spent."""
        self._counts: dict[Charge, int] = {}
        self._place = 0  # where in ORDERS the bound was least when it was last computed

    @property
    def counts(self) -> dict[Charge, int]:
        """How many releases of each charge were composed."""
        return dict(self._counts)

    def compose(self, charge: Charge, count: int = 1) -> None:
        """Add releases.

        Raises:
            PrivacyError: if `count` is below 0, or of one charge more than `MAX_RELEASES` would be
                counted.
        """
        require_count("count", count)
        total = self._counts.get(charge, 0) + count
        require_count("count of one charge", total)
        if total == count:
            rdp_vector(charge)  # the first of its kind pays for the divergences
        if total:
            self._counts[charge] = total

    def epsilon(self, delta: float) -> float:
        """Compute the Renyi bound on what was spent.

        Raises:
            PrivacyError: if `delta` is not in (0, 1).
        """
        require_delta(delta)
        bounds = _bounds(_total(self._counts), delta)
        self._place = int(np.argmin(bounds))
        return max(0.0, float(bounds[self._place]))

    def pld_epsilon(self, delta: float) -> float:
        """Compute the bound by loss distributions; infinite if `epsilon` is above 1e2.

        Raises:
            PrivacyError: if `delta` is not in (0, 1).
        """
        if self.epsilon(delta) > MAX_PLD_EPSILON:
            return math.inf
        return _pld_epsilon(_frozen(self._counts), delta)

    def fits(self, charge: Charge, *, epsilon: float, delta: float) -> bool:
        """Tell whether one more release keeps the Renyi bound within a budget.

        Any single order gives a sound bound, so the one that was best last time is asked first;
        only where it says no are all of them.

        Raises:
            PrivacyError: if `delta` is not in (0, 1).

        Guarantees:
            True exactly if `epsilon(delta)` would be at most `epsilon` after it, up to rounding.
        """
        require_delta(delta)
        if _bound_at(self._place, self._counts, charge, delta) <= epsilon:
            return True
        bounds = _bounds(_total(self._counts) + rdp_vector(charge), delta)
        self._place = int(np.argmin(bounds))
        return max(0.0, float(bounds[self._place])) <= epsilon


def epsilon_of(counts: Mapping[Charge, int], delta: float, accountant: Accountant = "pld") -> float:
    """Compute what releases cost together.

    Args:
        counts: how many releases of each charge, 0 to `MAX_RELEASES`.
        delta: in (0, 1).
        accountant: "rdp": the Renyi bound. "pld": the lesser of it and the bound by loss
            distributions, which is not computed where the Renyi bound is above
            `MAX_PLD_EPSILON`.

    Returns:
        The epsilon; 0 for no releases, infinite where there is no bound.

    Raises:
        PrivacyError: if an argument is out of range.

    Guarantees:
        The same on every call, whatever the order of the counts. Monotone in every count.

    Cost: "rdp": microseconds; "pld": tenths of a second, once for each argument of the last 256.
    """
    require_delta(delta)
    for count in counts.values():
        require_count("count", count)
    used = _frozen(counts)
    if not used:
        return 0.0
    renyi = max(0.0, float(_bounds(_total(dict(used)), delta).min()))
    if _known(accountant) == "rdp" or renyi > MAX_PLD_EPSILON:
        return renyi
    return min(renyi, _pld_epsilon(used, delta))


def within(
    counts: Mapping[Charge, int], *, epsilon: float, delta: float, accountant: Accountant = "pld"
) -> bool:
    """Tell whether releases fit a budget: `epsilon_of(...) <= epsilon`, as cheaply as can be told.

    Raises:
        PrivacyError: if an argument is out of range.

    Guarantees:
        The same answer as the comparison.

    Cost: microseconds where the Renyi bound fits, or all releases are of one charge whose
        `max_releases` is known; else as `epsilon_of`.
    """
    _require_epsilon(epsilon)
    if epsilon_of(counts, delta, "rdp") <= epsilon:
        return True
    if _known(accountant) == "rdp":
        return False
    used = _frozen(counts)
    if len(used) == 1:
        ((charge, count),) = used
        most = max_releases(charge, epsilon=epsilon, delta=delta, accountant=accountant)
        return count <= most
    return epsilon_of(counts, delta, accountant) <= epsilon


@lru_cache(maxsize=1024)
def max_releases(
    charge: Charge, *, epsilon: float, delta: float, accountant: Accountant = "pld"
) -> int:
    """Find how many releases of one charge fit a budget.

    Args:
        charge: of each release. Without sampling: of each participation of one device.
        epsilon: the budget, above 0.
        delta: in (0, 1).
        accountant: as `epsilon_of`.

    Returns:
        The largest count whose `epsilon_of` is at most `epsilon`, at most `MAX_RELEASES`.

    Raises:
        PrivacyError: if an argument is out of range.

    Cost: about a dozen calls of `epsilon_of`, once for each argument of the last 1024.
    """
    _require_epsilon(epsilon)

    def fits(count: int, by: Accountant) -> bool:
        return epsilon_of({charge: count}, delta, by) <= epsilon

    fit = _largest(lambda count: fits(count, "rdp"), 0)
    return fit if accountant == "rdp" else _largest(lambda count: fits(count, accountant), fit)


@lru_cache(maxsize=256)
def _pld_epsilon(used: frozenset[tuple[Charge, int]], delta: float) -> float:
    return pld_epsilon(dict(used), delta)


def _frozen(counts: Mapping[Charge, int]) -> frozenset[tuple[Charge, int]]:
    return frozenset((charge, count) for charge, count in counts.items() if count)


def _total(counts: Mapping[Charge, int]) -> Floats:
    total = np.zeros(len(ORDERS))
    for charge in sorted(counts, key=_rank):  # rounding must not depend on the order
        if counts[charge]:
            total += counts[charge] * rdp_vector(charge)
    return total


def _rank(charge: Charge) -> tuple[float, float, int, int, int, str]:
    return (
        charge.noise_multiplier,
        charge.sampling_probability,
        charge.population,
        charge.cohort,
        charge.bands,
        charge.mechanism.value,
    )


def _bounds(divergences: Floats, delta: float) -> Floats:
    """Turn divergences at every order into epsilons, each of them sound.

    Canonne, Kamath and Steinke (2020), arXiv:2004.00010, Proposition 12; and 0 where the
    divergence alone keeps the total variation distance within delta.
    """
    bounds: Floats = (
        divergences + np.log1p(-1.0 / _ORDERS) - np.log(delta * _ORDERS) / (_ORDERS - 1.0)
    )
    bounds[delta**2 + np.expm1(-divergences) > 0.0] = 0.0
    return bounds


def _bound_at(place: int, counts: Mapping[Charge, int], charge: Charge, delta: float) -> float:
    order = ORDERS[place]
    divergence = float(rdp_vector(charge)[place])
    for known, count in counts.items():
        divergence += count * float(rdp_vector(known)[place])
    return divergence + math.log1p(-1.0 / order) - math.log(delta * order) / (order - 1.0)


def _largest(fits: Callable[[int], bool], start: int) -> int:
    """Find the largest count that fits, given one that does and that larger ones fit less."""
    low, step = start, max(1, start // 4)
    while low + step <= MAX_RELEASES and fits(low + step):
        low, step = low + step, 2 * step
    high = min(low + step, MAX_RELEASES + 1)  # does not fit, or is not counted
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low


def _known(accountant: Accountant) -> Accountant:
    if accountant not in ACCOUNTANTS:
        message = f"accountant={accountant!r} must be one of {', '.join(ACCOUNTANTS)}"
        raise PrivacyError(message)
    return accountant


def require_delta(delta: float) -> None:
    """Refuse what is no delta."""
    if not 0 < delta < 1:
        message = f"delta={delta} must be above 0 and below 1"
        raise PrivacyError(message)


def _require_epsilon(epsilon: float) -> None:
    if not 0 < epsilon < math.inf:
        message = f"epsilon={epsilon} must be finite and above 0"
        raise PrivacyError(message)


def require_count(name: str, count: int) -> None:
    """Refuse what is no number of releases."""
    if not 0 <= count <= MAX_RELEASES:
        message = f"{name}={count} must be in 0..{MAX_RELEASES}"
        raise PrivacyError(message)
