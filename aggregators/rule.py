"""What every aggregation rule takes and returns."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from aggregators.rows import Rows


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RuleResult:
    """One vector made of n rows, and what each row had to do with it.

    Attributes:
        vector: (d,), float64.
        weights: (n,), float64, sums to 1: each row's weight in the vector, 0 where excluded. For
            rules that work by coordinate: each row's weight before values are dropped.
        selected: (n,), bool: rows that were not excluded as a whole.
        scores: (n,), float64: what the rule ranked rows by, less is better; None where it does
            not rank rows.
    """

    vector: NDArray[np.float64]
    weights: NDArray[np.float64]
    selected: NDArray[np.bool_]
    scores: NDArray[np.float64] | None = None


class Rule(Protocol):
    """A configured rule."""

    def __call__(self, rows: Rows, weights: NDArray[np.float64]) -> RuleResult:
        """Combine rows; a rule that cannot trust self-reported weights ignores them."""
        ...


def equal_votes(num_rows: int) -> NDArray[np.float64]:
    """Give every row the same weight."""
    return np.full(num_rows, 1.0 / num_rows)


def all_selected(num_rows: int) -> NDArray[np.bool_]:
    """Mark every row as selected."""
    return np.ones(num_rows, dtype=np.bool_)
