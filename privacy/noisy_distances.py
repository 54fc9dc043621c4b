"""What norms and distances of updates mean where every device has added noise to its own.

Notation: s, the standard deviation of the noise in each of the d coordinates of one update.
"""

import math
from typing import Final

from privacy.errors import PrivacyError

MAX_VISIBLE_MULTIPLIER: Final = 0.1 / math.sqrt(50.0)
"""Most noise of one device, over C, at which Multi-Krum was seen to keep attackers out.

Measured with 50 updates of `MEASURED_DIM` coordinates that agree as little as a cosine of 0.1, 10
of them malicious: with 0.1 as the noise multiplier of the whole sum none is kept, with 0.3 a fifth
or more, with 1 nearly as many as by chance.
"""

MEASURED_DIM: Final = 1024

_TAIL: Final = 4.0  # standard deviations that an honest update's norm may lie off


def norm_gate(clip_norm: float, *, stddev: float, dim: int, tail: float = _TAIL) -> float:
    """Give the norm that a clipped and then noised update does not exceed.

    T^2 = C^2 + d s^2 + t sqrt(2 d s^4 + 4 C^2 s^2): the mean of |x + noise|^2 for |x| = C plus t of
    its standard deviations. For large d that is C^2 + d s^2 (1 + t sqrt(2 / d)).

    Args:
        clip_norm: C, above 0.
        stddev: s, from 0.
        dim: d, from 1.
        tail: t; 4: an honest update fails about once in 10,000 for large d.

    Returns:
        T.

    Raises:
        PrivacyError: if an argument is out of range.
    """
    _require(stddev, dim)
    if not 0.0 < clip_norm < math.inf:
        message = f"clip_norm={clip_norm} must be finite and above 0"
        raise PrivacyError(message)
    square, noise = clip_norm * clip_norm, stddev * stddev
    deviation = math.sqrt(2.0 * dim * noise * noise + 4.0 * square * noise)
    return math.sqrt(square + dim * noise + tail * deviation)


def max_visible_multiplier(dim: int) -> float:
    """Give the most noise of one device, over C, under which distances still tell attackers apart.

    The noise of a squared distance grows with s^2 sqrt(d), so the limit shrinks with the fourth
    root of d; below `MEASURED_DIM` it is not raised.

    Raises:
        PrivacyError: if `dim` is below 1.
    """
    _require(0.0, dim)
    return MAX_VISIBLE_MULTIPLIER * min(1.0, math.sqrt(math.sqrt(MEASURED_DIM / dim)))


def comparison_problem(
    rule: str, *, noise_multiplier: float, dim: int, num_updates: int
) -> str | None:
    """Tell why a rule that compares updates cannot do so once devices have noised them.

    Args:
        rule: as in `aggregators.config.AggregatorConfig.rule`.
        noise_multiplier: z of one device: its noise has standard deviation z C; from 0.
        dim: d, coordinates that are compared: of the compressed vector if there is one.
        num_updates: n, from 1.

    Returns:
        None where the noise is little; else why, and what to do instead.

    Raises:
        PrivacyError: if a number is out of range.
    """
    _require(noise_multiplier, dim)
    if num_updates < 1:
        message = f"num_updates={num_updates} must be at least 1"
        raise PrivacyError(message)
    limit = max_visible_multiplier(dim)
    if noise_multiplier <= limit:
        return None
    total = noise_multiplier * math.sqrt(num_updates)
    return (
        f"rule {rule!r} compares updates, and cannot tell attackers apart under the noise of"
        f" devices: noise-multiplier={noise_multiplier:g} ({total:.3g} in the sum of"
        f" {num_updates}) is above the measured limit of {limit:.3g} at {dim} coordinates. Let"
        f" the coordinator or the share holders add the noise (noise = 'central' or 'holders'):"
        f" they compare updates without it. Or choose rule = 'mean': clipping bounds what one"
        f" update can do"
    )


def _require(stddev: float, dim: int) -> None:
    if not 0.0 <= stddev < math.inf:
        message = f"stddev={stddev} must be finite and at least 0"
        raise PrivacyError(message)
    if dim < 1:
        message = f"dim={dim} must be at least 1"
        raise PrivacyError(message)
