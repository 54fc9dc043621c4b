"""Aegis: a mean weighted by distance, direction and reputation against a cleaned median."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from aggregators.config import AggregatorConfig
from aggregators.errors import AggregationError
from aggregators.rows.dense_rows import RowsLike, as_rows
from aggregators.rows.gram import Gram
from aggregators.rows.rows import Floats, Rows, Vector, canonical_order
from aggregators.rule import Combination, Context, RuleResult, combine_in_order
from aggregators.rules.hybrid import cap_by_median
from aggregators.rules.mean import require_weights
from aggregators.rules.reference import gram_with_reference

_VOLUME_CAP: Final = 2.0  # multiples of the median sample count
_LEAST_CREDIT: Final = 1e-9  # keeps the weight of a row that is the median finite


@dataclass(frozen=True, slots=True, kw_only=True)
class AegisState:
    """What Aegis remembers from round to round.

    Attributes:
        reputations: by device, the moving average of how far its updates pointed away from the
            median: 0 (never) to 2 (opposite). Devices not in it count as 0.
        round: rounds seen.
    """

    reputations: Mapping[str, float] = field(default_factory=dict)
    round: int = 0

    def __post_init__(self) -> None:
        """Refuse what no round can have led to.

        Raises:
            AggregationError: if a number is out of range.
        """
        for key, value in self.reputations.items():
            if not 0.0 <= value <= 2.0:
                message = f"reputation {value} of {key!r} in aegis must be in 0..2"
                raise AggregationError(message)
        if self.round < 0:
            message = f"round={self.round} of aegis must be at least 0"
            raise AggregationError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class AegisOptions:
    """Constants of Aegis; the defaults are its authors'.

    Attributes:
        least_cosine: tau; rows that point further away from the median do not enter the second.
        cosine_weight: alpha, what 1 - cosine counts against a row.
        reputation_weight: lambda, what its moving average counts.
        reputation_decay: gamma, the share of the average that is kept each round, in 0..1.
        first_deviations: K_MAX, median absolute deviations allowed at first.
        last_deviations: K_MIN, those aimed at after the warm-up.
        least_deviations: K_floor, those always allowed.
        warmup_rounds: rounds from the first to the last; above 0.
        variance_sensitivity: how much of the tightening a unit of std / mean of the distances
            undoes: in rounds of very different updates the gate stays wide.
    """

    least_cosine: float = -0.3
    cosine_weight: float = 30.0
    reputation_weight: float = 20.0
    reputation_decay: float = 0.95
    first_deviations: float = 6.0
    last_deviations: float = 2.0
    least_deviations: float = 4.0
    warmup_rounds: int = 300
    variance_sensitivity: float = 3.0

    def __post_init__(self) -> None:
        """Refuse numbers out of range.

        Raises:
            AggregationError: naming the number.
        """
        tops = {"least_cosine": 1.0, "reputation_decay": 1.0}
        bottoms = {"least_cosine": -1.0, "warmup_rounds": 1.0}
        for name in self.__slots__:
            value, top = getattr(self, name), tops.get(name, math.inf)
            bottom = bottoms.get(name, 0.0)
            if not bottom <= value <= top or not math.isfinite(value):
                message = f"{name}={value} of aegis must be finite and in {bottom}..{top}"
                raise AggregationError(message)
        if self.first_deviations < self.last_deviations:
            message = f"first_deviations={self.first_deviations} of aegis must be at least"
            message += f" last_deviations={self.last_deviations}"
            raise AggregationError(message)


DEFAULT_OPTIONS: Final = AegisOptions()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Positions:
    """Where n rows stand relative to a vector.

    Attributes:
        distances: (n,), float64: E.
        turns: (n,), float64: P, 1 - cosine; 1 where a length is 0.
    """

    distances: Floats
    turns: Floats


def aegis(
    rows: RowsLike,
    *,
    state: AegisState | None = None,
    num_samples: Floats | None = None,
    keys: Sequence[str] | None = None,
    options: AegisOptions = DEFAULT_OPTIONS,
) -> RuleResult:
    """Average rows by capped sample count over how far, how turned and how ill-reputed they are.

    The median m1 of the rows; the median m2 of those that do not point away from m1 (of all rows
    if fewer than half are left); rows further from m2 than the median distance and some median
    absolute deviations are dropped, with scales taken over all rows. The rest are weighted by
    n / (E / median(E) + alpha P + lambda R), with E the distance to m2, P one minus the cosine to
    it, R the moving average of P of that device.

    Args:
        rows: (n, d), float32, finite; row i is one device's update. Not modified.
        state: what the round before returned as state; None: the first round.
        num_samples: (n,), float64; each 0 or in 2**-512..2**53, not all 0; capped at twice the
            median. None: equal.
        keys: n distinct device ids, in the order of the rows; None: their positions, "0" to "n-1",
            which only means something if every device always stands in the same place.
        options: its constants.

    Returns:
        The average, what each weight was divided by as scores, and the new state: reputations of
        all devices ever seen, dropped rows included. Zeros if no kept row has a sample.

    Raises:
        AggregationError: if another argument is out of range or any entry is not finite.

    Guarantees:
        Invariant to row order, bit for bit, if keys go with the rows.
        Scaling all rows by one factor above 0 scales the result.
        A row kept is at most max(K_MAX, K_floor) median absolute deviations of E further from m2
        than the median row.
        New devices start with the best reputation: identities must not be free.

    Cost: O(n^2 d) time for the Gram matrices and O(n d log^2 n) for the medians, O(n^2 + block)
        memory.
    References: A. K. Tripathi, "Enhanced Aegis", M.Tech. thesis, IIT Delhi (2026). There E is not
        divided by its median, so that alpha and lambda depend on the unit of the updates. How the
        spread widens the gate is ours.
    """
    matrix = as_rows(rows)
    num_rows = matrix.num_rows
    before = AegisState() if state is None else state
    votes = np.ones(num_rows) if num_samples is None else num_samples
    require_weights(votes, num_rows)
    names = [str(place) for place in range(num_rows)] if keys is None else list(keys)
    if len(names) != num_rows or len(set(names)) != num_rows:
        message = f"keys of aegis must be one distinct key per row, n={num_rows}, got {names}"
        raise AggregationError(message)
    known = np.array([before.reputations.get(name, 0.0) for name in names])
    order = canonical_order(matrix, (votes, known))
    positions, gram = aegis_positions(matrix, order, options=options)
    decay = options.reputation_decay
    reputations = decay * known[order] + (1.0 - decay) * positions.turns
    combination = aegis_weights(
        positions, reputations, votes[order], round_number=before.round, options=options
    )
    result = combine_in_order(matrix, order, combination, gram=gram)
    learned = {names[row]: float(value) for row, value in zip(order, reputations, strict=True)}
    after = AegisState(reputations={**before.reputations, **learned}, round=before.round + 1)
    return replace(result, state=after)


def apply(rows: Rows, context: Context, _: AggregatorConfig) -> RuleResult:
    """Run the rule as the registry does."""
    state = context.state
    if state is not None and not isinstance(state, AegisState):
        message = f"state of type {type(state).__name__} must be what aegis returned"
        raise AggregationError(message)
    return aegis(rows, state=state, num_samples=context.weights, keys=context.keys)


def aegis_positions(
    rows: Rows, order: Sequence[int], *, options: AegisOptions = DEFAULT_OPTIONS
) -> tuple[Positions, Gram]:
    """Measure rows against the median of those that do not point away from the median of all.

    Returns:
        Positions in `order`; the Gram matrix of the rows in their own order.
    """
    positions, gram = _positions(rows, order, rows.median())
    pool = np.flatnonzero(1.0 - positions.turns >= options.least_cosine)
    if 2 * len(pool) < rows.num_rows or len(pool) == rows.num_rows:
        return positions, gram
    center = rows.take([order[place] for place in pool.tolist()]).median()
    return _positions(rows, order, center)


def aegis_weights(
    positions: Positions,
    reputations: Floats,
    num_samples: Floats,
    *,
    round_number: int,
    options: AegisOptions = DEFAULT_OPTIONS,
) -> Combination:
    """Weigh the rows near enough to the median.

    Args:
        positions: of n rows.
        reputations: (n,), float64, this round's included: R.
        num_samples: (n,), float64, finite, not negative.
        round_number: rounds before this one: t.
        options: its constants.
    """
    distances = positions.distances
    middle = float(np.median(distances))
    spread = float(np.median(np.abs(distances - middle)))
    kept = distances <= middle + _deviations(distances, round_number, options) * spread
    # With a middle of 0 the rows kept are at 0, so the unit does not touch their weights.
    unit = middle or float(distances.max()) or 1.0
    credits_lost: Floats = (
        distances / unit
        + options.cosine_weight * positions.turns
        + options.reputation_weight * reputations
    )
    volumes = cap_by_median(num_samples, _VOLUME_CAP)
    weights: Floats = np.where(kept, volumes / (credits_lost + _LEAST_CREDIT), 0.0)
    return Combination(
        weights=weights, total=math.fsum(weights.tolist()) or 1.0, scores=credits_lost
    )


def _deviations(distances: Floats, round_number: int, options: AegisOptions) -> float:
    """Find k_t, how many median absolute deviations beyond the median distance are allowed."""
    mean = float(distances.mean())
    variation = float(distances.std()) / mean if mean > 0.0 else 0.0
    tightened = min(1.0, round_number / options.warmup_rounds)
    tightened *= max(0.0, 1.0 - options.variance_sensitivity * variation)
    allowed = options.first_deviations
    allowed -= (options.first_deviations - options.last_deviations) * tightened
    return max(options.least_deviations, allowed)


def _positions(rows: Rows, order: Sequence[int], center: Vector) -> tuple[Positions, Gram]:
    gram, own = gram_with_reference(rows, order, center, "median")
    lengths = gram.norms
    products = lengths[:-1] * lengths[-1]
    cosines: Floats = np.divide(
        gram.inner[:-1, -1], products, out=np.zeros(rows.num_rows), where=products > 0.0
    )
    positions = Positions(
        distances=np.sqrt(gram.squared_distances[:-1, -1]),
        turns=1.0 - np.clip(cosines, -1.0, 1.0),
    )
    return positions, own
