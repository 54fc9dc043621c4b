"""FedMI: the mean of the updates whose models agree with the others as much as usual."""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from aggregators.config import AggregatorConfig
from aggregators.errors import AggregationError
from aggregators.rows.dense_rows import RowsLike, as_rows
from aggregators.rows.rows import Floats, Rows, canonical_order
from aggregators.rule import Combination, Context, RuleResult, combine_in_order, needed
from aggregators.rules.mutual_information import information_scores, require_outputs

GAUSSIAN_MAD: Final = 1.4826
"""Standard deviations per median absolute deviation of a Gaussian: 1 / quantile(3/4)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviationGate:
    """How far from the median a score may lie.

    Attributes:
        max_deviations: k, at least 1: how many deviations. Three keep 99.7 % of Gaussian scores.
        scaled: whether a deviation is 1.4826 median absolute deviations, the standard deviation
            of Gaussian scores, rather than 1.
        floor: least median absolute deviation, in nats, so that scores that agree almost
            perfectly do not make outliers of each other.
        two_sided: whether scores above the median are bounded too: colluding copies know too much
            about each other.
    """

    max_deviations: float = 3.0
    scaled: bool = True
    floor: float = 0.05
    two_sided: bool = True

    def __post_init__(self) -> None:
        """Refuse a gate that could shut out every score.

        Raises:
            AggregationError: if a number is out of range.
        """
        if not 1.0 <= self.max_deviations < math.inf:
            message = f"max_deviations={self.max_deviations} of fedmi must be finite, at least 1"
            raise AggregationError(message)
        if not 0.0 <= self.floor < math.inf:
            message = f"floor={self.floor} of fedmi must be finite and at least 0"
            raise AggregationError(message)


DEFAULT_GATE: Final = DeviationGate()


def fedmi(
    rows: RowsLike,
    *,
    probe_outputs: Floats,
    gate: DeviationGate = DEFAULT_GATE,
    signed: bool = False,
) -> RuleResult:
    """Average the rows whose model shares about the median information with the other models.

    Args:
        rows: (n, d), float32, finite; row i is one device's update. Not modified.
        probe_outputs: (n, S, K), float64: what the model with row i applied answers on S probe
            samples, as K logits each; see `pairwise_information`.
        gate: which scores are kept.
        signed: see `pairwise_information`.

    Returns:
        The average of the kept rows with equal weights, and how far every score lies from the
        median, in nats; below the median only if the gate is one-sided.

    Raises:
        AggregationError: if `probe_outputs` has another shape or any entry of a row is not finite.

    Guarantees:
        Invariant to row order, bit for bit.
        Keeps at least one row; keeps every row if all scores are equal.
        Not robust: one kept row can move the result anywhere.

    Cost: O(n^2 S K + n d) time, O(n^2 + block) memory, beside what the models' answers cost.
    References: github.com/ashim9788/agmami. There copies of a model are left out of each other's
        score; here only the row itself is, so that copies stand out.
    """
    matrix = as_rows(rows)
    require_outputs(probe_outputs, matrix.num_rows)
    scores = information_scores(probe_outputs, signed=signed)
    order = canonical_order(matrix, (scores,))
    return combine_in_order(matrix, order, fedmi_weights(scores[order], gate=gate))


def apply(rows: Rows, context: Context, _: AggregatorConfig) -> RuleResult:
    """Run the rule as the registry does."""
    return fedmi(rows, probe_outputs=needed(context.probe_outputs, "probe_outputs"))


def fedmi_weights(scores: Floats, *, gate: DeviationGate = DEFAULT_GATE) -> Combination:
    """Give the rows whose information score the gate lets through equal weights.

    Args:
        scores: (n,), float64, finite, nats: see `information_scores`.
        gate: which scores are kept.
    """
    offsets = scores - np.median(scores)
    spread = float(np.median(np.abs(offsets)))
    unit = GAUSSIAN_MAD if gate.scaled else 1.0
    bound = gate.max_deviations * unit * max(spread, gate.floor)
    deviations = np.abs(offsets) if gate.two_sided else np.maximum(-offsets, 0.0)
    weights = (deviations <= bound).astype(np.float64)
    return Combination(weights=weights, total=float(weights.sum()), scores=deviations)
