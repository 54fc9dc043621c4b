"""Numeric bounds of a shared round: what keeps every opened number below half the field.

Notation, in units of 2^-f: Q bounds an honest encoded update's L2 norm, p = 2^61 - 1 is the field,
g the members of a group of the wrap-around test, K its scalars, s_m its masks' standard deviation
over Q, k the buckets of a sketch. D holders deal noise of standard deviation sigma_d each.
"""

import math
from fractions import Fraction
from typing import Final

MAX_EXACT_SUM: Final = 2**53
"""Sums stay below it, so that their division by 2^f in float64 is exact."""

SKETCH_COPIES: Final = 2
"""Independent sketches of every update."""

MIN_NOISE_STDDEV: Final = 4
"""Of a dealer. From there the sum of several discrete Gaussians is one but for 1e-60."""

NOISE_TAIL: Final = 12.0
"""A noised coordinate is off by more standard deviations with probability below 1e-32."""

_CLIP_SLACK: Final = 1.0 + 2.0**-22  # a clipped float32 vector's own norm is off by so much
_SIGN_TAIL: Final = 5.5  # a +-1 sum of norm 1 exceeds it with probability 2e-13
_GROUP_MASK_TAIL: Final = 7.0
_BLAME_MASK_TAIL: Final = 6.5
_SOUND_RATIO: Final = 11.0
_SKETCH_SIGMAS: Final = 6.0
_MAX_SKETCH_ERROR: Final = 0.75  # above it the Gaussian tail no longer describes small sketches


def norm_bound(clip_norm: float, *, fraction_bits: int, dim: int) -> int:
    """Compute Q, the largest L2 norm of a clipped and encoded update.

    Q = C 2^f + sqrt(d) / 2, rounded up: rounding to integers moves each of the d elements by at
    most a half, float32 clipping the norm by some 2^-24 of itself.

    Args:
        clip_norm: C, the norm that updates are clipped to; above 0.
        fraction_bits: f.
        dim: d, elements of an update.
    """
    return math.ceil(math.ldexp(clip_norm, fraction_bits) * _CLIP_SLACK + math.sqrt(dim) / 2.0)


def sketch_error(sketch_dim: int, dim: int) -> float:
    """Bound the relative error of a squared norm seen through one sketch.

    Var(|Sx|^2) <= (2 / k) |x|^4 (count-sketch), taken at six standard deviations; none where the
    update has no more elements than the sketch has buckets.
    """
    if dim <= sketch_dim:
        return 0.0
    return min(_SKETCH_SIGMAS * math.sqrt(2.0 / sketch_dim), _MAX_SKETCH_ERROR)


def group_wrap_bound(q: int, *, group: int, mask_scale: int, error: float) -> int:
    """Compute B_w, the largest scalar that an honest group of `group` members opens.

    B_w = (5.5 sqrt((1 + eps) g) + 7 s_m) Q: <R, y> is sub-Gaussian with parameter |y|^2 / 2 and
    the masks' sum is Gaussian; each is exceeded less than once in 10^11 scalars.
    """
    signs = _SIGN_TAIL * math.sqrt((1.0 + error) * group)
    return math.ceil((signs + _GROUP_MASK_TAIL * mask_scale) * q)


def blame_wrap_bound(
    q: int, *, nominal_group: int, wrap_tests: int, mask_scale: int, error: float
) -> int:
    """Compute B_b, the largest scalar that an honest member opens by itself.

    B_b = (5.5 sqrt(1 + eps) + 6.5 s_m sqrt(1 + K / g)) Q: besides its own mask at s_m Q, a scalar
    holds a signed sum of up to K group masks at s_m Q / sqrt(g).
    """
    masks = _BLAME_MASK_TAIL * mask_scale * math.sqrt(1.0 + wrap_tests / nominal_group)
    return math.ceil((_SIGN_TAIL * math.sqrt(1.0 + error) + masks) * q)


def sound_wrap_bound(modulus: int, *, error: float) -> int:
    """Compute the largest bound that still catches a vector of squared norm p or more.

    Seen without error, sqrt(p) / 9 gives each scalar a probability of at most a half to pass;
    through a sketch the norm may look sqrt(1 - eps) of what it is. Never above sqrt(p) / 11.

    References: Rothblum et al. (2023), arXiv:2311.10237 (PINE), for the test; its bound here is
    smaller, because a bound near sqrt(p) proves nothing.
    """
    seen = 9.0 / math.sqrt(1.0 - error)
    return math.floor(math.sqrt(modulus) / max(_SOUND_RATIO, seen))


def distance_bound(q: int) -> int:
    """Bound an opened distance of two members whose norms hold: the sum over both sketches.

    |y_a - y_b|^2 <= 4 (2Q)^2 in each sketch. Four, not 1 + eps: for a sparse vector the sketch has
    no Gaussian tail, two equal elements in one bucket double the square, and a value above the
    bound is taken as proof that a holder lied.
    """
    return SKETCH_COPIES * 4 * (2 * q) ** 2


def dealer_stddev(noise_stddev: Fraction, *, dealers: int, threshold: int) -> int:
    """Compute sigma_d, what each dealer adds so that t - 1 of them cannot take out too much.

    sigma_d = sigma / sqrt(D - t + 1), rounded up: t - 1 colluding dealers subtract their own noise,
    and that of the others has a standard deviation of at least sigma together.

    Args:
        noise_stddev: sigma, what a sum must have against them, in units of 2^-f.
        dealers: D.
        threshold: t.

    Guarantees:
        The smallest integer for which `has_noise` is true.
    """
    square = noise_stddev**2 / unknown_dealers(dealers, threshold)
    return math.isqrt(math.ceil(square) - 1) + 1 if square > 0 else 0


def has_noise(stddev: int, *, dealers: int, threshold: int, least: Fraction) -> bool:
    """Tell whether dealers of that much noise leave at least `least` against t - 1 of them.

    Exact: no rounding decides.
    """
    return stddev**2 * unknown_dealers(dealers, threshold) >= least**2


def unknown_dealers(dealers: int, threshold: int) -> int:
    """Count the dealers whose noise t - 1 colluding holders do not know: D - t + 1, at least 1."""
    return max(1, dealers - threshold + 1)


def noise_tail(noise_stddev: int, *, dealers: int) -> int:
    """Bound the noise of all dealers in one coordinate of a sum: 12 sqrt(D) sigma_d."""
    return math.ceil(NOISE_TAIL * math.sqrt(dealers) * noise_stddev)


def noise_norm(noise_stddev: int, *, dealers: int, dim: int) -> int:
    """Bound the L2 norm of all dealers' noise in a sum: (sqrt(d) + 12) sqrt(D) sigma_d.

    Discrete Gaussians are sub-Gaussian with their own variance, so it is exceeded with probability
    below e^-72.

    References: Hsu, Kakade and Zhang (2012), arXiv:1110.2842, theorem 2.1; Canonne, Kamath and
        Steinke (2020), arXiv:2004.00010, corollary 17.
    """
    return math.ceil((math.sqrt(dim) + NOISE_TAIL) * math.sqrt(dealers) * noise_stddev)
