"""Words that a device shares after its update, so that the update can be checked in shares.

In order, for rounds with checks:

    slack bits       B, that fill the squared norm up to Q^2: |x|^2 + sum w_b bit_b = Q^2
    consistency mask 1, uniform; only where shares are checked to be of one vector
    group masks      K, Gaussian, standard deviation s_m Q / sqrt(g)
    blame masks      K, Gaussian, standard deviation s_m Q
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from security.errors import SharingError
from security.secret_sharing.field import MersenneField, Words
from security.shared_round.terms.parameters import RoundParameters

RandomBytes = Callable[[int], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtrasLayout:
    """Where each kind of extra stands in a vector of `params.length` words.

    Attributes:
        consistency_mask: its index; None without it.
    """

    slack_bits: slice
    consistency_mask: int | None
    group_masks: slice
    blame_masks: slice


def extras_layout(params: RoundParameters) -> ExtrasLayout:
    """Lay out the extras of a round with checks."""
    bits_end = params.dim + params.num_slack_bits
    masks = bits_end + int(params.has_consistency_mask)
    blame = masks + params.wrap_tests
    return ExtrasLayout(
        slack_bits=slice(params.dim, bits_end),
        consistency_mask=bits_end if params.has_consistency_mask else None,
        group_masks=slice(masks, blame),
        blame_masks=slice(blame, blame + params.wrap_tests),
    )


def slack_weights(norm_bound: int) -> tuple[int, ...]:
    """Give the weights of the slack bits: 1, 2, 4, ... and a last one.

    Guarantees:
        Sums of weights are exactly the integers 0..norm_bound^2.
    """
    most = norm_bound**2
    powers = [1 << bit for bit in range(most.bit_length() - 1)]
    return (*powers, most - sum(powers))


def slack_bits(norm_bound: int, squared_norm: int) -> list[int]:
    """Write norm_bound^2 - squared_norm in bits of `slack_weights`.

    Raises:
        SharingError: if the squared norm is above norm_bound^2.
    """
    left = norm_bound**2 - squared_norm
    if left < 0 or squared_norm < 0:
        message = f"squared_norm={squared_norm} must be in 0..norm_bound**2={norm_bound**2}"
        raise SharingError(message)
    *powers, last = slack_weights(norm_bound)
    has_last = left >= last
    if has_last:
        left -= last
    return [left >> bit & 1 for bit in range(len(powers))] + [int(has_last)]


def make_extras(params: RoundParameters, squared_norm: int, random_bytes: RandomBytes) -> Words:
    """Make the words that follow a device's encoded update.

    Args:
        params: the round.
        squared_norm: sum of the squares of the encoded integers, exact.
        random_bytes: gives that many bytes, secure and secret.

    Returns:
        (num_extras,), elements of the round's field; empty in rounds without checks.

    Raises:
        SharingError: if the update is longer than the round's norm bound.
    """
    if not params.is_checked:
        return np.zeros(0, dtype=np.uint64)
    bits = np.array(slack_bits(params.norm_bound, squared_norm), dtype=np.uint64)
    mask = np.zeros(0, dtype=np.uint64)
    if params.has_consistency_mask:
        mask = _uniform(params.field, random_bytes)
    deviation = params.mask_scale * params.norm_bound
    drawn = gaussians(2 * params.wrap_tests, random_bytes) * deviation
    drawn[: params.wrap_tests] /= math.sqrt(params.wrap_group)
    masks = np.rint(drawn).astype(np.int64)
    modulus = np.int64(params.field.modulus)
    return np.concatenate((bits, mask, np.where(masks < 0, masks + modulus, masks).view(np.uint64)))


def gaussians(count: int, random_bytes: RandomBytes) -> NDArray[np.float64]:
    """Draw standard Gaussian numbers from secure bytes, (count,).

    Box and Muller's transform of uniform numbers of 53 bits: no magnitude is above
    sqrt(2 ln 2^53) = 8.6. Fit for masks whose low bits are below the secret's rounding, not as the
    noise of differential privacy.
    """
    pairs = -(-count // 2)
    words = np.frombuffer(random_bytes(16 * pairs), dtype="<u8") >> np.uint64(11)
    uniform = (words.astype(np.float64) + 1.0) * 2.0**-53  # in (0, 1]
    radius = np.sqrt(-2.0 * np.log(uniform[:pairs]))
    angle = 2.0 * math.pi * uniform[pairs:]
    return np.concatenate((radius * np.cos(angle), radius * np.sin(angle)))[:count]


def _uniform(field: MersenneField, random_bytes: RandomBytes) -> Words:
    """Draw one uniform field element, (1,)."""
    while True:
        word = int.from_bytes(random_bytes(8), "little") & field.modulus
        if word != field.modulus:  # it would be 0 again, twice as likely as others
            return np.array([word], dtype=np.uint64)
