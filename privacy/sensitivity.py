"""The L2 sensitivity of every sum that the server releases, for zero-out adjacency.

Zero-out: two fleets are neighbours if they differ in one device, all of whose contributions are
zero in one of them. What a device sends besides its update, and when, is not hidden by this.
"""

import math
from dataclasses import dataclass

from privacy.clipping import MIN_CLIP_NORM
from privacy.errors import PrivacyError
from privacy.fixed_point import grid_norm
from privacy.rule_sensitivity import RuleSensitivity


@dataclass(frozen=True, slots=True, kw_only=True)
class SensitivityCalibrator:
    """How far one device moves the sums of a task.

    What is added up are decoded updates that the server has clipped to C itself, one a device, so
    neither top-k nor quantization nor error feedback adds anything: an update counts as what it
    was decoded to. A common map is applied before the clipping; expanding the sum is computed from
    what was released and costs nothing.

    Attributes:
        clipping_norm: C; finite, at least `MIN_CLIP_NORM`.
        rule: how far the rule lets one device move its sum, and what it divides that by.
        largest_weight: that a clipped update is multiplied by, finite, above 0. Weights of
            staleness count; capped sample counts count where they are applied after the clipping.
            1 where weights are at most 1, or are applied before the clipping.

    Raises:
        PrivacyError: if a number is out of range.

    Guarantees:
        No two neighbours' sums are farther apart than `sum_sensitivity`, nor those of updates on a
        grid than `integer_sensitivity`.
    """

    clipping_norm: float
    rule: RuleSensitivity
    largest_weight: float = 1.0

    def __post_init__(self) -> None:
        _require_clip_norm(self.clipping_norm)
        if not 0 < self.largest_weight < math.inf:
            message = f"largest_weight={self.largest_weight} must be finite and above 0"
            raise PrivacyError(message)

    @property
    def factor(self) -> float:
        """The sensitivity of the sum in units of C."""
        return self.largest_weight * self.rule.factor

    @property
    def num_terms(self) -> int:
        """What the rule divides its sum by, when all updates come in."""
        return self.rule.num_terms

    @property
    def sum_sensitivity(self) -> float:
        """The sensitivity of the sum."""
        return self.factor * self.clipping_norm

    def integer_sensitivity(self, *, fraction_bits: int, dim: int) -> float:
        """Bound the sum of updates that were rounded to multiples of 2^-f, in those units.

        Args:
            fraction_bits: f, 0 to 52.
            dim: k, numbers of an update; from 1.

        Raises:
            PrivacyError: if an argument is out of range, or the norm is not below 2^62.
        """
        norm = grid_norm(self.clipping_norm, fraction_bits=fraction_bits, dim=dim)
        return self.factor * norm


def _require_clip_norm(clip_norm: float) -> None:
    if not MIN_CLIP_NORM <= clip_norm < math.inf:
        message = f"clipping_norm={clip_norm} must be finite and at least {MIN_CLIP_NORM}"
        raise PrivacyError(message)
