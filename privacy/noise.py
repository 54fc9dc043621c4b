"""How much noise each mechanism adds, and the noise: discrete Gaussian integers on a grid.

Who adds it, with which standard deviation in units of 2^-f, and what that protects:

- the coordinator, z S, once, to the exact sum: what is published;
- each of D share holders, z S / sqrt(D - t + 1), into the shared sum: what is published, as long as
  at most t - 1 holders pool what they know;
- each device, z Q, to its own update: the update itself, from everyone.

z is the noise multiplier, S = factor Q the sensitivity of the sum, Q the norm of one update on the
grid (`privacy.fixed_point.grid_norm`). Sums of discrete Gaussians are so nearly discrete Gaussian
that at a standard deviation of 4 nobody can tell (Kairouz, Liu and Steinke 2021,
arXiv:2102.06387, Theorem 9 and after).
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from privacy.clipping import Vector, clip_by_norm
from privacy.discrete_gaussian import MAX_STDDEV, MIN_STDDEV, discrete_gaussian
from privacy.errors import PrivacyError
from privacy.fixed_point import (
    check_fraction_bits,
    fine_fraction_bits,
    from_grid,
    grid_norm,
    to_grid,
)
from privacy.keystream import derive_key

_ROUND_LABEL: Final = b"round noise"
_DEVICE_LABEL: Final = b"device noise"
_DIGEST_BYTES: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class GridNoise:
    """Discrete Gaussian noise on the grid 2^-f.

    Attributes:
        stddev: in units of 2^-f, 2^-4 to 2^48.
        fraction_bits: f, 0 to 52.

    Raises:
        PrivacyError: if one is out of range.
    """

    stddev: float
    fraction_bits: int

    def __post_init__(self) -> None:
        if not MIN_STDDEV <= self.stddev <= MAX_STDDEV:
            message = f"stddev={self.stddev} must be in {MIN_STDDEV}..2^48 units"
            raise PrivacyError(message)
        check_fraction_bits(self.fraction_bits)

    def draw(self, key: bytes, dim: int) -> NDArray[np.int64]:
        """Draw the noise of one vector, (dim,), int64; see `discrete_gaussian`."""
        return discrete_gaussian(key, stddev=self.stddev, size=dim)

    @property
    def real_stddev(self) -> float:
        """The standard deviation as a real number."""
        return math.ldexp(self.stddev, -self.fraction_bits)


def central_noise(
    *, noise_multiplier: float, sensitivity: float, clip_norm: float, fraction_bits: int, dim: int
) -> GridNoise:
    """Size the noise that is added once to a sum of clipped vectors.

    Args:
        noise_multiplier: z, above 0.
        sensitivity: of the sum, in units of C; from 1.
        clip_norm: C.
        fraction_bits: f.
        dim: d.

    Returns:
        Noise of standard deviation z * sensitivity * Q: rounding to the grid is part of Q.

    Raises:
        PrivacyError: if an argument is out of range.
    """
    _require_multiplier(noise_multiplier)
    if not 1.0 <= sensitivity < math.inf:
        message = f"sensitivity={sensitivity} must be finite and at least 1"
        raise PrivacyError(message)
    norm = grid_norm(clip_norm, fraction_bits=fraction_bits, dim=dim)
    return GridNoise(stddev=noise_multiplier * sensitivity * norm, fraction_bits=fraction_bits)


def device_noise(*, noise_multiplier: float, clip_norm: float, dim: int) -> GridNoise:
    """Size the noise that a device adds to its own update.

    Returns:
        Noise of standard deviation z Q, on a grid so fine that Q 2^-f is at most
        (1 + 2^-9) C for d up to 2^60 C^2.

    Raises:
        PrivacyError: if an argument is out of range.
    """
    fraction_bits = fine_fraction_bits(clip_norm, dim=dim)
    return central_noise(
        noise_multiplier=noise_multiplier,
        sensitivity=1.0,
        clip_norm=clip_norm,
        fraction_bits=fraction_bits,
        dim=dim,
    )


def add_device_noise(
    vector: Vector, key: bytes, *, noise_multiplier: float, clip_norm: float
) -> Vector:
    """Make an update private by itself: clip it, round it to a grid, add noise.

    Args:
        vector: (d,), float32, finite: what the device would send. Not modified.
        key: 32 fresh secret bytes, as of `secrets.token_bytes`; never used again.
        noise_multiplier: z, above 0.
        clip_norm: C.

    Returns:
        (d,), float32.

    Raises:
        PrivacyError: if an argument is out of range or an entry is not finite.

    Guarantees:
        Whatever the vector, the result is the Gaussian mechanism with noise multiplier z or more
        on a vector of norm at most C, then rounded to float32. Whoever sees it, and whatever
        happens to it after, learns no more.
        The noise has standard deviation z C (1 + 2^-9) at most, for d up to 2^60 C^2.
    """
    noise = device_noise(noise_multiplier=noise_multiplier, clip_norm=clip_norm, dim=len(vector))
    integers = to_grid(clip_by_norm(vector, clip_norm), fraction_bits=noise.fraction_bits)
    integers += noise.draw(derive_key(key, _DEVICE_LABEL), len(vector))
    return from_grid(integers, fraction_bits=noise.fraction_bits).astype(np.float32)


def round_key(noise_key: bytes, *, round_number: int, manifest_sha256: bytes) -> bytes:
    """Derive the key of one round's central noise.

    Args:
        noise_key: the task's, 32 secret bytes.
        round_number: of the round, from 0.
        manifest_sha256: 32 bytes naming the contributions that are summed.

    Returns:
        32 bytes.

    Raises:
        PrivacyError: if an argument is out of range.

    Guarantees:
        The same contributions of the same round get the same noise: a coordinator that takes
        over computes the same bytes, and nothing is published twice with two noises. Any other
        set of contributions gets independent noise: two results never differ by a plain update.
    """
    if len(manifest_sha256) != _DIGEST_BYTES:
        message = f"manifest_sha256 must have 32 bytes, got {len(manifest_sha256)}"
        raise PrivacyError(message)
    return derive_key(noise_key, _ROUND_LABEL, round_number, manifest_sha256)


def _require_multiplier(noise_multiplier: float) -> None:
    if not 0.0 < noise_multiplier < math.inf:
        message = f"noise_multiplier={noise_multiplier} must be finite and above 0"
        raise PrivacyError(message)
