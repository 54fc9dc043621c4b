"""What every aggregation rule takes and returns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from aggregators.errors import AggregationError
from aggregators.rows.dense_rows import RowsLike, as_rows
from aggregators.rows.gram import Gram
from aggregators.rows.rows import Rows, Vector, canonical_order

Floats = NDArray[np.float64]
Known = TypeVar("Known")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Combination:
    """A rule's verdict on n rows: the aggregate is sum_i weights_i x_i / total.

    Attributes:
        weights: (n,), float64, finite, not negative.
        total: what the sum is divided by; kept apart because whole weights make every product
            exact. Above 0.
        scores: (n,), float64: what the rule ranked rows by, less is better; None where it does
            not rank them.
    """

    weights: Floats
    total: float = 1.0
    scores: Floats | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RuleResult:
    """One vector made of n rows, and what each row had to do with it.

    Attributes:
        vector: (d,), float32: computed in float64, rounded once.
        weights: (n,), float64: each row's weight in the vector, 0 where excluded. They sum to 1
            except where a rule shrinks rows (clipping, trust), then to at most 1 for rows of
            equal length. For rules that work by coordinate: each row's weight before values are
            dropped.
        selected: (n,), bool: rows that were not excluded as a whole.
        scores: (n,), float64: what the rule ranked rows by, less is better; None where it does
            not rank rows.
        gram: inner products and distances of the rows where the rule computed them, in the order
            of the rows; for detection and for people.
        state: what the rule wants back in the next round; None for rules without memory.
    """

    vector: Vector
    weights: Floats
    selected: NDArray[np.bool_]
    scores: Floats | None = None
    gram: Gram | None = None
    state: object | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Context:
    """What a rule may know beside the rows. Arrays of length n are in the order of the rows.

    Attributes:
        weights: (n,), float64: capped sample counts. Most robust rules ignore them: devices
            report them themselves.
        trust: (n,), float64, in 0..1: what earlier rounds taught about each device.
        root_update: (d,), float32: an update the server computed on data of its own.
        center: (d,), float32: the aggregate of the round before.
        probe_outputs: (n, S, K), float64: what each row's model answers on S probe samples, as K
            logits each.
        keys: (n,): the devices, for rules that remember them.
        seed: decides whatever a rule draws; secret from devices until the deadline has passed.
        state: what the rule returned in the round before.
    """

    weights: Floats
    trust: Floats | None = None
    root_update: Vector | None = None
    center: Vector | None = None
    probe_outputs: Floats | None = None
    keys: tuple[str, ...] | None = None
    seed: int = 0
    state: object | None = None

    def take(self, indices: Sequence[int]) -> "Context":
        """Select what is known about some rows, in the order given."""
        picked = list(indices)
        return replace(
            self,
            weights=self.weights[picked],
            trust=None if self.trust is None else self.trust[picked],
            probe_outputs=None if self.probe_outputs is None else self.probe_outputs[picked],
            keys=None if self.keys is None else tuple(self.keys[index] for index in picked),
        )

    def row_keys(self) -> list[Floats]:
        """List what tells rows of equal values apart."""
        return [self.weights] if self.trust is None else [self.weights, self.trust]


class Rule(Protocol):
    """A configured rule."""

    def __call__(self, rows: Rows, context: Context) -> RuleResult:
        """Combine rows; a rule that has no use for something in the context ignores it."""
        ...


def needed(value: Known | None, name: str) -> Known:
    """Give what the rule cannot work without.

    Raises:
        AggregationError: if it is not known.
    """
    if value is None:
        message = f"the rule needs {name}, which is missing"
        raise AggregationError(message)
    return value


def equal_votes(num_rows: int) -> Floats:
    """Give every row the same weight."""
    return np.full(num_rows, 1.0 / num_rows)


def all_selected(num_rows: int) -> NDArray[np.bool_]:
    """Mark every row as selected."""
    return np.ones(num_rows, dtype=np.bool_)


def by_coordinate(rows: Rows, vector: Vector) -> RuleResult:
    """Make the result of a rule that gives every row an equal vote in every coordinate."""
    return RuleResult(
        vector=vector, weights=equal_votes(rows.num_rows), selected=all_selected(rows.num_rows)
    )


def combine_by_gram(
    rows: RowsLike,
    weigh: Callable[[Gram, Sequence[int]], Combination],
    *,
    keys: Sequence[Floats] = (),
) -> RuleResult:
    """Run a rule whose weights follow from the Gram matrix alone, then read the rows once.

    Args:
        rows: n rows.
        weigh: from the Gram matrix in canonical order, and that order (indices into `rows`), to
            weights in the same order. Ties it breaks by position are thereby broken by value.
        keys: (n,) arrays, in the order of `rows`, that tell equal rows apart, such as weights.

    Returns:
        The combination, everything in the order of `rows`.

    Guarantees:
        Invariant to row order, bit for bit.
    """
    matrix = as_rows(rows)
    order = canonical_order(matrix, keys)
    gram = matrix.gram()
    return combine_in_order(matrix, order, weigh(gram.take(order), order), gram=gram)


def combine_in_order(
    rows: Rows, order: Sequence[int], combination: Combination, *, gram: Gram | None = None
) -> RuleResult:
    """Apply weights given in canonical order; sum in that order; answer in the order of `rows`."""
    weights = np.empty(rows.num_rows)
    weights[order] = combination.weights
    kept = [index for index in order if weights[index] != 0.0]
    if len(kept) == 1 and gram is not None and weights[kept[0]] == combination.total:
        # The products have shown that it is finite.
        (vector,) = rows.take(kept).read(0, rows.dim)
    elif kept:
        vector = rows.take(kept).combine(weights[kept], combination.total)
    else:
        vector = np.zeros(rows.dim, dtype=np.float32)
    scores = None
    if combination.scores is not None:
        scores = np.empty(rows.num_rows)
        scores[order] = combination.scores
    return RuleResult(
        vector=vector,
        weights=weights / combination.total,
        selected=weights != 0.0,
        scores=scores,
        gram=gram,
    )
