"""What the aggregator for differential privacy is configured with."""

import math
from dataclasses import dataclass

from aggregators.config import AggregatorConfig
from aggregators.errors import AggregationError
from aggregators.private_rules import private_rules
from aggregators.registry import RULES
from privacy.adaptive_clipping import AdaptiveClipping, update_noise_multiplier
from privacy.banded_noise import BandedNoise
from privacy.charge import Mechanism
from privacy.errors import PrivacyError
from privacy.fixed_point import DEFAULT_FRACTION_BITS
from privacy.noise import GridNoise, central_noise


@dataclass(frozen=True, slots=True, kw_only=True)
class DPConfig:
    """How updates become one private aggregate.

    Attributes:
        clipping_norm: C.
        noise_multiplier: z, of the whole release; above 0.
        expected_updates: m, what the sum is divided by, whatever came in; above 0.
        sensitivity: of the sum to one device, in units of C; from 1. For "multi-krum" it is more:
            one device can change which others are selected.
        rule: one of `private_rules()`.
        num_malicious_nodes, num_to_select: f and m of "multi-krum".
        max_num_samples: cap; an update weighs min(num_samples, cap) / cap. 1: all weigh the same.
            Of no meaning for "multi-krum".
        fraction_bits: f of the grid 2^-f.
        mechanism: independent noise each round, or banded.
        bands: of banded noise; 1 otherwise.
        adaptive_clipping: how C moves; None: it stays. Not with banded noise, and for "mean" only.

    Raises:
        AggregationError: if the rule is none of them, or a number of it is out of range.
        PrivacyError: if another setting is out of range, or does not go with the others.
    """

    clipping_norm: float
    noise_multiplier: float
    expected_updates: float
    sensitivity: float = 1.0
    rule: str = "mean"
    num_malicious_nodes: int = 0
    num_to_select: int | None = None
    max_num_samples: int = 1
    fraction_bits: int = DEFAULT_FRACTION_BITS
    mechanism: Mechanism = Mechanism.GAUSSIAN
    bands: int = 1
    adaptive_clipping: AdaptiveClipping | None = None

    def __post_init__(self) -> None:
        if self.rule not in private_rules():
            message = f"rule={self.rule!r} must be one of {', '.join(private_rules())}: the"
            message += " sensitivity of its aggregate to one update has no useful bound otherwise"
            raise AggregationError(message)
        _ = self.aggregator
        # Refuses whatever the noise cannot be sized for.
        _ = self.noise(dim=1)
        if not 0.0 < self.expected_updates < math.inf:
            message = f"expected_updates={self.expected_updates} must be finite and above 0"
            raise PrivacyError(message)
        if self.mechanism is not Mechanism.BANDED and self.bands != 1:
            message = f"bands={self.bands} must be 1 without banded noise"
            raise PrivacyError(message)
        if self.adaptive_clipping is not None and (
            self.mechanism is Mechanism.BANDED or not RULES[self.rule].is_linear
        ):
            message = (
                f"adaptive_clipping must go with rule 'mean' and independent noise, got"
                f" {self.rule!r} and {self.mechanism.value}: banded noise needs one clipping norm"
            )
            raise PrivacyError(message)
        BandedNoise(self.bands)

    @property
    def aggregator(self) -> AggregatorConfig:
        """The rule and its settings, as `GradientAggregator` takes them."""
        return AggregatorConfig(
            rule=self.rule,
            num_malicious_nodes=self.num_malicious_nodes,
            num_to_select=self.num_to_select,
            max_num_samples=self.max_num_samples,
            clipping_norm=self.clipping_norm,
        )

    def noise(self, *, dim: int) -> GridNoise:
        """Give the noise on the sum; banded: of one innovation over the column's norm."""
        multiplier = self.noise_multiplier
        if self.adaptive_clipping is not None:
            count_stddev = self.adaptive_clipping.count_stddev
            multiplier = update_noise_multiplier(multiplier, count_stddev=count_stddev)
        return central_noise(
            noise_multiplier=multiplier,
            sensitivity=self.sensitivity,
            clip_norm=self.clipping_norm,
            fraction_bits=self.fraction_bits,
            dim=dim,
        )
