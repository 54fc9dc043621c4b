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
        rule: a name of `aggregators.registry.RULES`, after any number of names of
            `aggregators.pipeline.STEPS`: "multi-krum", "nnm+trimmed-mean", "arc+nnm+median".
        num_malicious_nodes: f, the number of Byzantine updates to tolerate; from 0.
        num_to_select: m, the number of updates multi-krum averages; from 1 to n - f.
            None: n - f.
        trim: values trimmed-mean drops at each end of every coordinate; from 0. None: f.
        max_num_samples: cap on one update's weight, from 1 to 2**29. Sample counts are
            self-reported: without a cap one device could claim the whole aggregate.
        clipping_norm: C, L2 norm every update is shrunk to before anything else. None: no
            clipping.
        norm_factor: bound of "clip" and "norm-threshold", in median norms; from 1.
        bucket_size: s, updates "bucketing" averages in a bucket; from 1.
        clipping_radius: tau of centered-clipping; above 0. None: the median distance.
        max_steps: steps of geometric-median and centered-clipping; from 1. None: the rule's own.

    Raises:
        AggregationError: if a number is out of range.
    """

    rule: str = "mean"
    num_malicious_nodes: int = 0
    num_to_select: int | None = None
    trim: int | None = None
    max_num_samples: int = 1_000
    clipping_norm: float | None = None
    norm_factor: float = 1.5
    bucket_size: int = 2
    clipping_radius: float | None = None
    max_steps: int | None = None

    def __post_init__(self) -> None:
        """Refuse settings that no number of updates could satisfy."""
        for name, least in (
            ("num_malicious_nodes", 0),
            ("num_to_select", 1),
            ("trim", 0),
            ("norm_factor", 1),
            ("bucket_size", 1),
            ("max_steps", 1),
        ):
            value = getattr(self, name)
            if value is not None and not least <= value < math.inf:
                message = f"{name}={value} must be at least {least}"
                raise AggregationError(message)
        if not 1 <= self.max_num_samples <= MAX_SAMPLE_CAP:
            message = f"max_num_samples={self.max_num_samples} must be in 1..{MAX_SAMPLE_CAP}"
            raise AggregationError(message)
        if self.clipping_norm is not None and not MIN_CLIP_NORM <= self.clipping_norm < math.inf:
            message = (
                f"clipping_norm={self.clipping_norm} must be finite and at least {MIN_CLIP_NORM}"
            )
            raise AggregationError(message)
        if self.clipping_radius is not None and not 0.0 < self.clipping_radius < math.inf:
            message = f"clipping_radius={self.clipping_radius} must be finite and above 0"
            raise AggregationError(message)
