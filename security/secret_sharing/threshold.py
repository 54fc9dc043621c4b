"""How many share holders there are, how many open a secret, and who holds which piece."""

from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Final

from security.errors import SharingError

MIN_THRESHOLD: Final = 2
MAX_HOLDERS: Final = 7
"""Pieces are C(n, t - 1): more holders would make them too many."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """Any `threshold` of `holders` share holders open a secret; fewer learn nothing.

    Raises:
        SharingError: unless 2 <= threshold <= holders <= 7.
    """

    threshold: int
    holders: int

    def __post_init__(self) -> None:
        """Refuse sharing that hides nothing, or that nobody could open."""
        if not MIN_THRESHOLD <= self.threshold <= self.holders <= MAX_HOLDERS:
            message = (
                f"threshold={self.threshold} and holders={self.holders} must satisfy "
                f"{MIN_THRESHOLD} <= threshold <= holders <= {MAX_HOLDERS}"
            )
            raise SharingError(message)

    @property
    def points(self) -> range:
        """The holders' numbers, at which polynomials are evaluated: 1 to n."""
        return range(1, self.holders + 1)

    @property
    def excluded_sets(self) -> tuple[tuple[int, ...], ...]:
        """The sets A of t - 1 holders, in lexicographic order: piece A is with everybody else."""
        return _excluded_sets(self)

    @property
    def num_pieces(self) -> int:
        """The number of pieces, C(n, t - 1)."""
        return len(self.excluded_sets)

    def pieces_of(self, holder: int) -> tuple[int, ...]:
        """Give the indices, ascending, of the pieces that a holder has.

        Raises:
            SharingError: if there is no such holder.
        """
        self.check_holder(holder)
        return tuple(i for i, lacking in enumerate(self.excluded_sets) if holder not in lacking)

    @property
    def product_shares(self) -> int:
        """Shares that open a product of two shared secrets: 2t - 1."""
        return 2 * self.threshold - 1

    @property
    def default_quorum(self) -> int:
        """Holders that must agree so that two quorums share an honest one: ceil((n + t) / 2)."""
        return (self.holders + self.threshold + 1) // 2

    def check_holder(self, holder: int) -> None:
        """Refuse a number that names no holder.

        Raises:
            SharingError: if `holder` is not in 1 .. n.
        """
        if not 1 <= holder <= self.holders:
            message = f"holder={holder} must be in 1..{self.holders}"
            raise SharingError(message)


@cache
def _excluded_sets(scheme: Threshold) -> tuple[tuple[int, ...], ...]:
    return tuple(combinations(scheme.points, scheme.threshold - 1))
