"""What an aggregator is configured with."""

import math
from dataclasses import dataclass
from typing import Final

from aggregators.errors import AggregationError
from privacy.clipping import MIN_CLIP_NORM

MAX_SAMPLE_CAP: Final = 1 << 29
"""Largest weight cap: a float32 times an integer below 2**29 is exact in float64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregatorConfig:
    """How updates become one aggregate. A rule ignores the settings it has no use for.

    Attributes:
        rule: a name of `aggregators.registry.RULES`.
        num_malicious_nodes: f, the number of Byzantine updates to tolerate; from 0.
            Used by krum and multi-krum, and by trimmed-mean where `trim` is None.
        num_to_select: m, the number of updates multi-krum averages; from 1 to n - f.
            None: n - f.
        trim: values trimmed-mean drops at each end of every coordinate; from 0. None: f.
        max_num_samples: cap on one update's weight in mean, from 1 to 2**29. Sample counts are
            self-reported: without a cap one device could claim the whole aggregate.
        clipping_norm: C, L2 norm every update is shrunk to before the rule. None: no clipping.

    Raises:
        AggregationError: if a number is out of range.
    """

    rule: str = "mean"
    num_malicious_nodes: int = 0
    num_to_select: int | None = None
    trim: int | None = None
    max_num_samples: int = 1_000
    clipping_norm: float | None = None

    def __post_init__(self) -> None:
        """Refuse settings that no number of updates could satisfy."""
        _require_at_least("num_malicious_nodes", self.num_malicious_nodes, least=0)
        if self.num_to_select is not None:
            _require_at_least("num_to_select", self.num_to_select, least=1)
        if self.trim is not None:
            _require_at_least("trim", self.trim, least=0)
        if not 1 <= self.max_num_samples <= MAX_SAMPLE_CAP:
            message = f"max_num_samples={self.max_num_samples} must be in 1..{MAX_SAMPLE_CAP}"
            raise AggregationError(message)
        if self.clipping_norm is not None and not MIN_CLIP_NORM <= self.clipping_norm < math.inf:
            message = (
                f"clipping_norm={self.clipping_norm} must be finite and at least {MIN_CLIP_NORM}"
            )
            raise AggregationError(message)


def _require_at_least(name: str, value: int, *, least: int) -> None:
    if value < least:
        message = f"{name}={value} must be at least {least}"
        raise AggregationError(message)
