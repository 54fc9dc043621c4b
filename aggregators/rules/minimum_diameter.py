"""Minimum-diameter averaging (MDA): the mean of the n - f updates closest together."""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aggregators.config import AggregatorConfig
from aggregators.errors import AggregationError
from aggregators.registry import require_tolerated
from aggregators.rows.dense_rows import RowsLike
from aggregators.rows.gram import Gram
from aggregators.rows.rows import Rows
from aggregators.rule import Combination, Context, RuleResult, combine_by_gram

MAX_SUBSETS: Final = 1_000_000


def minimum_diameter(
    rows: RowsLike, *, num_byzantine: int, max_subsets: int = MAX_SUBSETS
) -> RuleResult:
    """Average the n - f rows whose largest distance from each other is least.

    Args:
        rows: (n, d), float32, finite; row i is one device's update. Not modified.
        num_byzantine: f, rows that may be arbitrary; n >= 2 f + 1.
        max_subsets: limit on C(n, f), the number of candidates. They are not enumerated, but the
            time grows exponentially with f in the worst case.

    Returns:
        The average of the selected rows with equal weights. Self-reported sample counts play no
        part.

    Raises:
        TooFewUpdatesError: if n < 2 f + 1.
        AggregationError: if another argument is out of range, C(n, f) exceeds `max_subsets` or
            any entry is not finite.

    Guarantees:
        Invariant to row order, bit for bit: of subsets of equal diameter the lexicographically
        first one in the order of the rows' values is taken.
        No other n - f rows have a lesser diameter.
        With at most f arbitrary rows, the result is no farther from the nearest of the others
        than the farthest two of those are apart.

    Cost: O(n^2 d) for the distances; for the selection O(n^2 log n) and at most O(1.62^f n^2), as
        a rule O(n^2); O(n^2 + block) memory.
    References: El Mhamdi et al. (2020), arXiv:1905.03853, "minimum-diameter averaging"; Rousseeuw
        (1985), "Multivariate estimation with high breakdown point".
    """
    return combine_by_gram(
        rows,
        lambda gram, _: minimum_diameter_weights(
            gram, num_byzantine=num_byzantine, max_subsets=max_subsets
        ),
    )


def apply(rows: Rows, _: Context, config: AggregatorConfig) -> RuleResult:
    """Run the rule as the registry does."""
    return minimum_diameter(rows, num_byzantine=config.num_malicious_nodes)


def minimum_diameter_weights(
    gram: Gram, *, num_byzantine: int, max_subsets: int = MAX_SUBSETS
) -> Combination:
    """Give the n - f rows of least diameter equal weights.

    Rows farther apart than some diameter are in conflict. Subsets of n - f rows within that
    diameter exist if and only if f rows can be dropped such that no conflict is left: a vertex
    cover. So the least diameter is found by bisection over the distances.
    """
    num_rows = gram.num_rows
    require_tolerated("minimum-diameter", num_rows, num_byzantine)
    require_few_subsets(num_rows, num_byzantine, max_subsets=max_subsets)
    distances = gram.squared_distances
    diameters = np.unique(distances)
    low, high = 0, len(diameters) - 1
    while low < high:
        middle = (low + high) // 2
        if _can_be_covered(_conflicts(distances, diameters[middle]), num_byzantine):
            high = middle
        else:
            low = middle + 1
    conflicts = _conflicts(distances, diameters[high])
    weights = np.zeros(num_rows)
    weights[_first_independent(conflicts, num_byzantine)] = 1.0
    return Combination(weights=weights, total=float(num_rows - num_byzantine))


def require_few_subsets(
    num_rows: int, num_byzantine: int, *, max_subsets: int = MAX_SUBSETS
) -> None:
    """Refuse numbers that make the rule take too long.

    Raises:
        AggregationError: if C(n, f) exceeds `max_subsets`.
    """
    num_subsets = math.comb(num_rows, num_byzantine)
    if num_subsets > max_subsets:
        message = f"num_byzantine={num_byzantine} of minimum-diameter among n={num_rows} gives"
        message += f" C(n, f)={num_subsets} subsets, more than max_subsets={max_subsets}"
        raise AggregationError(message)


def _conflicts(distances: NDArray[np.float64], diameter: float) -> list[int]:
    """Give every row the bit set of the rows farther from it than `diameter`."""
    packed = np.packbits(distances > diameter, axis=1, bitorder="little")
    return [int.from_bytes(row.tobytes(), "little") for row in packed]


def _first_independent(conflicts: Sequence[int], num_dropped: int) -> list[int]:
    """List the lexicographically first n - f rows without conflicts among them.

    Including the earliest row that can be completed is always best in lexicographic order.
    """
    left = list(conflicts)
    budget = num_dropped
    chosen: list[int] = []
    dropped = 0
    for row in range(len(conflicts)):
        if len(chosen) == len(conflicts) - num_dropped:
            break
        if dropped >> row & 1:
            continue
        against = left[row]
        without = _without(left, against)
        if not against or _can_be_covered(without, budget - against.bit_count()):
            chosen.append(row)
            dropped |= against
            budget -= against.bit_count()
            left = without
        else:
            left = _without(left, 1 << row)
            budget -= 1
    return chosen


def _can_be_covered(conflicts: list[int], budget: int) -> bool:
    """Tell whether dropping at most `budget` rows removes every conflict.

    Either the row with the most conflicts is dropped or all rows it conflicts with are.
    """
    if budget < 0:
        return False
    degrees = [against.bit_count() for against in conflicts]
    most = max(degrees)
    if sum(degrees) > 2 * budget * most:
        return False  # even dropping the worst rows leaves conflicts
    if most <= 1:
        return True  # separate pairs, no more of them than the budget
    row = degrees.index(most)
    return _can_be_covered(_without(conflicts, 1 << row), budget - 1) or _can_be_covered(
        _without(conflicts, conflicts[row]), budget - most
    )


def _without(conflicts: list[int], dropped: int) -> list[int]:
    """Remove the conflicts of the rows in a bit set."""
    if not dropped:
        return conflicts
    return [
        0 if dropped >> row & 1 else against & ~dropped for row, against in enumerate(conflicts)
    ]
