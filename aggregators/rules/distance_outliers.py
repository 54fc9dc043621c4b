"""Distance outliers: average the updates that are not much farther from the others than usual."""

from collections.abc import Sequence
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from aggregators.config import AggregatorConfig
from aggregators.errors import TooFewUpdatesError
from aggregators.rows.dense_rows import RowsLike
from aggregators.rows.gram import Gram
from aggregators.rows.rows import Rows
from aggregators.rule import Combination, Context, RuleResult, combine_by_gram

Number = TypeVar("Number", np.float64, np.int64)

_OUTLIER_RATIO: Final = 3  # of squared distances
_LEAST_TO_PICK: Final = 3


def distance_outliers(rows: RowsLike) -> RuleResult:
    """Average the rows whose median squared distance to the others is at most 3 medians of those.

    Of an even number, the lower of the middle two is the median.

    Args:
        rows: (n, d), float32, finite; row i is one device's update. Not modified.

    Returns:
        The average with equal weights, and every row's median as its score. Self-reported sample
        counts play no part. With two rows or one: of all.

    Raises:
        AggregationError: if any entry is not finite.

    Guarantees:
        Invariant to row order, bit for bit.
        With fewer than half of the rows arbitrary, a row that stays is within twice the others'
        diameter of one of them, or nearer.

    Cost: O(n^2 d) time, O(n^2 + block) memory.
    """
    return combine_by_gram(rows, lambda gram, _: distance_outliers_weights(gram))


def apply(rows: Rows, _context: Context, _config: AggregatorConfig) -> RuleResult:
    """Run the rule as the registry does."""
    return distance_outliers(rows)


def pick(
    distances: NDArray[np.int64], _num_byzantine: int, _num_to_select: int | None
) -> Sequence[int]:
    """Pick members of a shared round by their opened squared distances, in integers.

    Raises:
        TooFewUpdatesError: if there are fewer than three: none can be called far out.
    """
    count = len(distances)
    if count < _LEAST_TO_PICK:
        message = f"distance-outliers must have at least {_LEAST_TO_PICK} updates, got n={count}"
        raise TooFewUpdatesError(message)
    medians = _medians(distances)
    return [int(place) for place in np.flatnonzero(medians <= _limit(medians))]


def distance_outliers_weights(gram: Gram) -> Combination:
    """Give the rows that stay equal weights; scores are the medians."""
    medians = _medians(gram.squared_distances)
    weights = (medians <= _limit(medians)).astype(np.float64)
    return Combination(weights=weights, total=float(weights.sum()), scores=medians)


def _medians(distances: NDArray[Number]) -> NDArray[Number]:
    """Give each row's median squared distance to the others; its own zero comes first in it."""
    count = len(distances)
    middle = min(count - 1, 1 + (count - 2) // 2)
    medians: NDArray[Number] = np.sort(distances, axis=1)[:, middle]
    return medians


def _limit(medians: NDArray[Number]) -> Number:
    middle: Number = np.sort(medians)[(len(medians) - 1) // 2]
    return middle * medians.dtype.type(_OUTLIER_RATIO)
