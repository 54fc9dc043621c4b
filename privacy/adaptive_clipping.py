"""Moves the clipping norm to a quantile of the updates' norms, privately.

Each device tells one bit, whether its update is within the clipping norm C. The noisy share of
such devices moves C: up where it is below the target, down where it is above.

References: Andrew et al. (2021), arXiv:1905.03871, Algorithm 1 and Theorem 1.
"""

import math
from dataclasses import dataclass
from decimal import Context, Decimal
from typing import Final

from privacy.clipping import MIN_CLIP_NORM
from privacy.discrete_gaussian import MAX_STDDEV, MIN_STDDEV, discrete_gaussian
from privacy.errors import PrivacyError

DEFAULT_QUANTILE: Final = 0.9
DEFAULT_LEARNING_RATE: Final = 0.2

_COHORT_PER_STDDEV: Final = 20.0
_DECIMAL: Final = Context(prec=30)  # its exponential is correctly rounded, unlike that of libm


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveClipping:
    """How the clipping norm moves.

    Attributes:
        count_stddev: sigma_b, standard deviation of the noise on the sum of the bits, each +-1/2;
            2^-5 to 2^47.
        target_quantile: gamma, share of updates that shall be within the norm; above 0, below 1.
        learning_rate: eta, above 0, at most 10.
        min_norm, max_norm: bounds of C, from `MIN_CLIP_NORM`.

    Raises:
        PrivacyError: if one is out of range.
    """

    count_stddev: float
    target_quantile: float = DEFAULT_QUANTILE
    learning_rate: float = DEFAULT_LEARNING_RATE
    min_norm: float = 1e-6
    max_norm: float = 1e6

    def __post_init__(self) -> None:
        if not MIN_STDDEV <= 2.0 * self.count_stddev <= MAX_STDDEV:
            message = f"count_stddev={self.count_stddev} must be in 2^-5..2^47"
            raise PrivacyError(message)
        if not 0.0 < self.target_quantile < 1.0:
            message = f"target_quantile={self.target_quantile} must be above 0 and below 1"
            raise PrivacyError(message)
        if not 0.0 < self.learning_rate <= 10.0:
            message = f"learning_rate={self.learning_rate} must be above 0 and at most 10"
            raise PrivacyError(message)
        if not MIN_CLIP_NORM <= self.min_norm <= self.max_norm < math.inf:
            message = (
                f"min_norm={self.min_norm}, max_norm={self.max_norm} must satisfy"
                f" {MIN_CLIP_NORM} <= min_norm <= max_norm < inf"
            )
            raise PrivacyError(message)

    def noisy_fraction(
        self, *, num_within: int, num_updates: int, expected_updates: float, key: bytes
    ) -> float:
        """Estimate the share of updates within the norm: (sum (b_i - 1/2) + noise) / m + 1/2.

        Args:
            num_within: updates within C.
            num_updates: n, all of them.
            expected_updates: m, fixed in advance; above 0.
            key: 32 secret bytes that serve nothing else.

        Returns:
            A number in 0..1.

        Raises:
            PrivacyError: if an argument is out of range.

        Guarantees:
            Depends on the bits through an integer sum with discrete Gaussian noise only. One device
            moves that sum by 1/2, in units of 1/(2 sigma_b) standard deviations.
        """
        if not 0 <= num_within <= num_updates:
            message = f"num_within={num_within} must be in 0..num_updates={num_updates}"
            raise PrivacyError(message)
        if not 0.0 < expected_updates < math.inf:
            message = f"expected_updates={expected_updates} must be finite and above 0"
            raise PrivacyError(message)
        # In halves: every bit is +-1.
        halves = 2 * num_within - num_updates
        halves += int(discrete_gaussian(key, stddev=2.0 * self.count_stddev, size=1)[0])
        return min(max(halves / (2.0 * expected_updates) + 0.5, 0.0), 1.0)

    def next_norm(self, clip_norm: float, fraction: float) -> float:
        """Move the norm: C e^(-eta (fraction - gamma)), kept within its bounds.

        Args:
            clip_norm: C, finite and at least `MIN_CLIP_NORM`.
            fraction: what `noisy_fraction` gave.

        Raises:
            PrivacyError: if an argument is out of range.

        Guarantees:
            Within min_norm..max_norm, and the same on every machine.
        """
        if not MIN_CLIP_NORM <= clip_norm < math.inf:
            message = f"clip_norm={clip_norm} must be finite and at least {MIN_CLIP_NORM}"
            raise PrivacyError(message)
        if not 0.0 <= fraction <= 1.0:
            message = f"fraction={fraction} must be in 0..1"
            raise PrivacyError(message)
        exponent = -self.learning_rate * (fraction - self.target_quantile)
        moved = clip_norm * float(_DECIMAL.exp(Decimal(exponent)))
        return min(max(moved, self.min_norm), self.max_norm)


def default_count_stddev(expected_updates: float) -> float:
    """Give sigma_b = m / 20: the share of devices is then known to 0.05, round by round."""
    return max(expected_updates / _COHORT_PER_STDDEV, MIN_STDDEV / 2.0)


def update_noise_multiplier(noise_multiplier: float, *, count_stddev: float) -> float:
    """Split a round's noise multiplier between the updates and the count.

    Both sums together are one Gaussian mechanism of multiplier z on the vector (x / C, b - 1/2),
    if the updates' noise has multiplier z' = (z^-2 - (2 sigma_b)^-2)^-1/2.

    Args:
        noise_multiplier: z, what the round is charged for; above 0.
        count_stddev: sigma_b; above z / 2.

    Returns:
        z', above z.

    Raises:
        PrivacyError: if the count alone would cost the round's budget or more.
    """
    if not 0.0 < noise_multiplier < math.inf:
        message = f"noise_multiplier={noise_multiplier} must be finite and above 0"
        raise PrivacyError(message)
    if not 2.0 * count_stddev > noise_multiplier:
        message = (
            f"count_stddev={count_stddev} must be above noise_multiplier / 2 ="
            f" {noise_multiplier / 2.0}: the count alone would use up what the round may cost"
        )
        raise PrivacyError(message)
    ratio = noise_multiplier / (2.0 * count_stddev)
    split = noise_multiplier / math.sqrt((1.0 - ratio) * (1.0 + ratio))
    return math.nextafter(split, math.inf)
