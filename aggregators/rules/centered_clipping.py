"""Centred clipping: updates pull at the last aggregate, none harder than a radius allows."""

import math

import numpy as np

from aggregators.config import AggregatorConfig
from aggregators.errors import AggregationError
from aggregators.rows.dense_rows import RowsLike, as_rows
from aggregators.rows.gram import Gram
from aggregators.rows.rows import Rows, Vector, canonical_order
from aggregators.rule import Combination, Context, RuleResult, combine_in_order
from aggregators.rules.center_distances import distances_to_center
from aggregators.rules.reference import gram_with_reference


def centered_clipping(
    rows: RowsLike,
    *,
    center: Vector | None = None,
    radius: float | None = None,
    max_steps: int = 1,
) -> RuleResult:
    """Move a centre v by the average of the rows' differences from it, each clipped to a radius.

    Args:
        rows: (n, d), float32, finite; row i is one device's update. Not modified.
        center: where v starts, (d,), float32, finite; usually the aggregate of the round before.
            None: zeros.
        radius: tau, the length differences are shrunk to; finite and above 0. None: in each step
            the median distance of the rows to v.
        max_steps: L, steps, from 1.

    Returns:
        v after the last step. Rows' weights sum to at most 1: the rest is the first centre's.
        The score of a row is its distance to the centre before the last step.

    Raises:
        AggregationError: if an argument is out of range or any entry is not finite.

    Guarantees:
        Invariant to row order, bit for bit.
        Within the convex hull of the rows and `center`.
        One step moves v by at most the radius, whatever the rows.
        With radius=None and fewer than half of the rows arbitrary, stays within a bound set by
        the others and `center`.

    Cost: O(n^2 d) time, O(n^2 + block) memory.
    References: Karimireddy, He and Jaggi (2021), arXiv:2012.10333, Algorithm 2. An attacker who
    knows `center` can aim at it: Ozfatura et al. (2022), arXiv:2208.09894.
    """
    matrix = as_rows(rows)
    order = canonical_order(matrix)
    if center is None:
        own = matrix.gram()
        found = centered_clipping_weights(
            with_origin(own.take(order)), radius=radius, max_steps=max_steps
        )
        # The origin adds nothing to the sum.
        return combine_in_order(matrix, order, _of_rows(found), gram=own)
    gram, own = gram_with_reference(matrix, order, center, "center of centered-clipping")
    found = centered_clipping_weights(gram, radius=radius, max_steps=max_steps)
    whole = combine_in_order(matrix.extended(center), [*order, matrix.num_rows], found)
    return RuleResult(
        vector=whole.vector,
        weights=whole.weights[:-1],
        selected=whole.selected[:-1],
        scores=None if whole.scores is None else whole.scores[:-1],
        gram=own,
    )


def apply(rows: Rows, context: Context, config: AggregatorConfig) -> RuleResult:
    """Run the rule as the registry does."""
    return centered_clipping(
        rows,
        center=context.center,
        radius=config.clipping_radius,
        max_steps=1 if config.max_steps is None else config.max_steps,
    )


def centered_clipping_weights(
    gram: Gram, *, radius: float | None = None, max_steps: int = 1
) -> Combination:
    """Express the centre after the last step as a convex combination.

    Args:
        gram: of n + 1 rows, n >= 1, the first centre last.
        radius: as in `centered_clipping`.
        max_steps: as in `centered_clipping`.

    Returns:
        Weights of all n + 1 rows, which sum to 1.

    Raises:
        AggregationError: if an argument is out of range.
    """
    num_rows = gram.num_rows - 1
    _require(num_rows, radius, max_steps)
    weights = np.zeros(num_rows + 1)
    weights[-1] = 1.0
    distances = weights
    for _ in range(max_steps):
        distances = distances_to_center(gram, weights)
        bound = float(np.median(distances[:-1])) if radius is None else radius
        beyond = distances[:-1] > bound
        factors = np.where(beyond, bound / np.where(beyond, distances[:-1], 1.0), 1.0)
        weights = weights * (1.0 - float(factors.sum()) / num_rows)
        weights[:-1] += factors / num_rows
    return Combination(weights=weights, scores=distances)


def with_origin(gram: Gram) -> Gram:
    """Append a row of zeros to those the Gram matrix was computed from."""
    squares = np.maximum(np.diagonal(gram.inner), 0.0)
    distances = np.pad(gram.squared_distances, (0, 1))
    distances[-1, :-1] = distances[:-1, -1] = squares
    return Gram(inner=np.pad(gram.inner, (0, 1)), squared_distances=distances)


def _of_rows(combination: Combination) -> Combination:
    """Leave out the last row."""
    scores = combination.scores
    return Combination(
        weights=combination.weights[:-1], scores=None if scores is None else scores[:-1]
    )


def _require(num_rows: int, radius: float | None, max_steps: int) -> None:
    if num_rows < 1:
        message = "gram of centered-clipping must hold at least one row beside the centre, got none"
        raise AggregationError(message)
    if radius is not None and not 0.0 < radius < math.inf:
        message = f"radius={radius} of centered-clipping must be finite and above 0"
        raise AggregationError(message)
    if max_steps < 1:
        message = f"max_steps={max_steps} of centered-clipping must be at least 1"
        raise AggregationError(message)
