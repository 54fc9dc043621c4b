"""L2 norms and norm clipping of update vectors."""

import math
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from privacy.errors import PrivacyError

Vector: TypeAlias = NDArray[np.float32]

MIN_CLIP_NORM: Final = 1e-30
"""Smallest clip norm: below it float32 subnormals round by more than the margin taken here."""

_NORM_CHUNK: Final = 1 << 14  # coordinates squared at a time: 128 KiB of float64, fits in L2

# Rounding to float32 grows a coordinate by a factor of at most 1 + 2**-24; taking twice that off
# the factor keeps the norm of the rounded vector at or below the clip norm.
_ROUNDING_MARGIN: Final = 1.0 - 2.0**-23


def l2_norm(vector: Vector) -> float:
    """Measure the Euclidean norm of a vector.

    Args:
        vector: (d,), float32. Not modified.

    Returns:
        The norm; inf or NaN if any entry is not finite, finite otherwise.

    Guarantees:
        Does not overflow or underflow: squares of float32 are exact in float64.
        Relative error below 1e-12 for every d that fits in memory.

    Cost: O(d) time, O(1) memory beyond the input.
    """
    total = 0.0
    for start in range(0, vector.shape[0], _NORM_CHUNK):
        with np.errstate(invalid="ignore"):  # widening a signalling NaN warns
            chunk = vector[start : start + _NORM_CHUNK].astype(np.float64)
        np.multiply(chunk, chunk, out=chunk)
        # Not `dot`: the sum of a BLAS kernel depends on the processor, that of numpy does not.
        total += float(np.add.reduce(chunk))
    return math.sqrt(total)


def clip_scale(norm: float, clip_norm: float) -> float:
    """Compute the factor that brings a vector of norm `norm` within `clip_norm`.

    Args:
        norm: the vector's L2 norm, finite.
        clip_norm: C, the bound; finite and at least `MIN_CLIP_NORM`.

    Returns:
        Exactly 1.0 if the vector is within the bound, else slightly below C / norm.

    Raises:
        PrivacyError: if `norm` is not finite or `clip_norm` is out of range.
    """
    if not MIN_CLIP_NORM <= clip_norm < math.inf:
        message = f"clip_norm={clip_norm} must be finite and at least {MIN_CLIP_NORM}"
        raise PrivacyError(message)
    if not math.isfinite(norm):
        message = f"norm={norm} must be finite: the vector holds NaN or infinity"
        raise PrivacyError(message)
    return 1.0 if norm <= clip_norm else clip_norm / norm * _ROUNDING_MARGIN


def scale_vector(vector: Vector, scale: float) -> Vector:
    """Multiply in float64 and round once to float32; a scale of 1.0 returns `vector` itself."""
    if scale == 1.0:
        return vector
    # Widening first is twice as fast as a product of mixed types.
    widened = vector.astype(np.float64)
    widened *= scale
    return widened.astype(np.float32)


def clip_by_norm(vector: Vector, clip_norm: float) -> Vector:
    """Shrink a vector to an L2 norm of at most `clip_norm`, keeping its direction.

    Args:
        vector: (d,), float32, finite. Not modified.
        clip_norm: C, the bound; finite and at least `MIN_CLIP_NORM`.

    Returns:
        `vector` itself if it is within the bound, else a new float32 vector.

    Raises:
        PrivacyError: if `clip_norm` is out of range or any entry is not finite.

    Guarantees:
        The norm of the result, as `l2_norm` measures it, is at most `clip_norm`.
        Every coordinate keeps its sign and its share of the norm up to float32 rounding.

    Cost: O(d) time and, when it clips, O(d) memory.
    References: Abadi et al. (2016), arXiv:1607.00133, Algorithm 1, "Clip gradient".
    """
    return scale_vector(vector, clip_scale(l2_norm(vector), clip_norm))
