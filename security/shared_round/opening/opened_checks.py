"""The values that holders' openings give, and which shares of them are wrong."""

from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from security.errors import EvidenceInsufficientError, SharingError
from security.secret_sharing.field import Words
from security.secret_sharing.reconstruction import OpenedEach, open_each
from security.shared_round.opening.openings import OpeningValues, member_pairs
from security.shared_round.terms.parameters import RoundParameters

Flags = NDArray[np.bool_]


class OpenedChecks:
    """What some holders' rows open to.

    Args:
        params: a round with checks.
        rows: by holder, of the right lengths.
        num_members: m.
        with_products: also open norms and distances.

    Attributes:
        num_members: m.
        consistency: (m,); None without the mask.
        wraps: (groups * wrap_tests,).
        norms: (m,); None without products.
        distances: (pairs,); None without them.

    Raises:
        EvidenceInsufficientError: if there are too few rows.
    """

    def __init__(
        self,
        params: RoundParameters,
        rows: Mapping[int, OpeningValues],
        num_members: int,
        *,
        with_products: bool,
    ) -> None:
        """Open everything, position by position."""
        self.num_members = num_members

        def opened(of: Callable[[OpeningValues], Words], factors: int) -> OpenedEach:
            return open_values(params, {j: of(row) for j, row in rows.items()}, factors=factors)

        self.consistency = (
            opened(lambda row: row.consistency, 1) if params.has_consistency_mask else None
        )
        self.wraps = opened(lambda row: row.wraps, 1)
        self.norms = opened(lambda row: row.norms, 2) if with_products else None
        has_distances = with_products and params.has_distances
        self.distances = opened(lambda row: row.distances, 2) if has_distances else None

    @property
    def inconsistent(self) -> Flags:
        """Whose own shares do not all lie on one polynomial, (m,)."""
        if self.consistency is None:
            return np.zeros(self.num_members, dtype=np.bool_)
        flags = ~self.consistency.consistent
        for wrong in self.consistency.wrong.values():
            flags = flags | wrong
        return flags

    def outliers(self) -> set[int]:
        """Name the holders that are wrong at more than half of the members.

        Raises:
            EvidenceInsufficientError: if more than half of the members' values do not open, which
                is one holder's doing rather than all of theirs.
        """
        every = np.ones(self.num_members, dtype=np.bool_)
        found: set[int] = set()
        if self.consistency is not None:
            found = outliers(self.consistency, every)
        if not found and self.norms is not None:
            found = outliers(self.norms, ~self.inconsistent)
        return found

    def disputed(self) -> set[int]:
        """Name the holders whose share of any member's own value was corrected."""
        if self.consistency is None:
            return set()
        every = np.ones(self.num_members, dtype=np.bool_)
        return wrong_holders(self.consistency, every)

    def liars(self, groups: Iterable[tuple[int, ...]]) -> set[int]:
        """Name the holders that are wrong where the members' own shares are right."""
        right = ~self.inconsistent
        found: set[int] = set()
        if self.norms is not None:
            found |= wrong_holders(self.norms, right)
        if self.distances is not None:
            earlier, later = member_pairs(self.num_members)
            found |= wrong_holders(self.distances, right[earlier] & right[later])
        is_right = np.array([right[list(members)].all() for members in groups])
        tests = len(self.wraps.values) // len(is_right)
        return found | wrong_holders(self.wraps, np.repeat(is_right, tests))


def open_values(
    params: RoundParameters, values: Mapping[int, Words], *, factors: int
) -> OpenedEach:
    """Open values that are products of so many shared numbers.

    Raises:
        EvidenceInsufficientError: if there are too few shares.
    """
    degree, scale = factors * (params.threshold - 1), params.sharing.share_scale**factors
    try:
        return open_each(params.field, values, degree=degree, scale=scale)
    except SharingError as error:
        message = f"the openings do not open: {error}"
        raise EvidenceInsufficientError(message) from error


def outliers(opened: OpenedEach, among: Flags) -> set[int]:
    """Name the holders whose shares are wrong at more than half of some positions.

    Raises:
        EvidenceInsufficientError: if no holder is, but more than half of the positions do not open.
    """
    half = np.count_nonzero(among) / 2
    found = {
        holder for holder, wrong in opened.wrong.items() if np.count_nonzero(wrong & among) > half
    }
    if not found and np.count_nonzero(~opened.consistent & among) > half:
        message = "the openings contradict each other, and which holder is wrong cannot be told"
        raise EvidenceInsufficientError(message)
    return found


def wrong_holders(opened: OpenedEach, among: Flags) -> set[int]:
    """Name the holders whose shares are wrong at any of some positions."""
    return {holder for holder, wrong in opened.wrong.items() if (wrong & among).any()}
