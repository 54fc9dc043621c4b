"""Which coordinates of a vector are the largest: one answer, whatever machine computes it."""

from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from updates.errors import CompressionError

Indices: TypeAlias = NDArray[np.int64]
Vector: TypeAlias = NDArray[np.float32]
Keys: TypeAlias = NDArray[np.uint32]

_MAGNITUDE_BITS: Final = np.uint32(0x7FFF_FFFF)
_INFINITY: Final = np.uint32(0x7F80_0000)  # as float32; what is above are NaNs
_DIGIT_MASK: Final = (1 << 11) - 1
_SHIFTS: Final = (22, 11, 0)  # of three digits of 11 bits
_CHUNK: Final = 1 << 18  # keys counted at a time: their digits as int64 fit in L2


def top_k(vector: Vector, num_values: int) -> Indices:
    """Choose the coordinates with the largest magnitudes.

    Args:
        vector: (d,), float32, finite. Not modified; need not be contiguous.
        num_values: k, from 1. A vector with fewer than k nonzero coordinates gives all of those.

    Returns:
        Their positions, increasing.

    Raises:
        CompressionError: if `vector` is not one-dimensional float32 or holds NaN or infinity, or
            if `num_values` is below 1.

    Guarantees:
        Of equal magnitudes the lower positions are chosen, so the result depends on the values
        alone. Zeros, of either sign, are never chosen; subnormal numbers are, like any others.
        No coordinate left out is larger than one that is chosen.

    Cost: O(d) time whatever the values are, 5 d bytes of memory. It works on the bits, whose order
        as integers is that of the magnitudes.
    """
    if num_values < 1:
        message = f"num_values={num_values} must be at least 1"
        raise CompressionError(message)
    keys = magnitude_keys(vector)
    nonzero = int(np.count_nonzero(keys))
    if nonzero <= num_values:
        return np.flatnonzero(keys).astype(np.int64, copy=False)
    return largest_keys(keys, num_values)


def magnitude_keys(vector: Vector) -> Keys:
    """Give each coordinate's magnitude as an integer: equal ones are equal, larger ones larger.

    Raises:
        CompressionError: if `vector` is not one-dimensional float32 or holds NaN or infinity.
    """
    if vector.ndim != 1 or vector.dtype != np.float32:
        message = f"vector of {vector.dtype}{vector.shape} must be float32 of shape (d,)"
        raise CompressionError(message)
    keys: Keys = np.ascontiguousarray(vector).view(np.uint32) & _MAGNITUDE_BITS
    if keys.size and keys.max() >= _INFINITY:
        position = int(np.argmax(keys >= _INFINITY))
        message = f"vector[{position}]={vector[position]} must be finite"
        raise CompressionError(message)
    return keys


def largest_keys(keys: Keys, num_keys: int) -> Indices:
    """Choose the `num_keys` largest of some integers; of equal ones those at lower positions.

    Args:
        keys: (d,), uint32. Not modified.
        num_keys: 0 to d.

    Returns:
        (num_keys,), increasing positions.

    Raises:
        CompressionError: if `num_keys` is out of range.

    Cost: O(d) time whatever the keys are, d bytes of memory and 4 for each key that shares its
        highest bits with the last one chosen.
    """
    if not 0 <= num_keys <= len(keys):
        message = f"num_keys={num_keys} must be in 0..{len(keys)}"
        raise CompressionError(message)
    if num_keys == 0:
        return np.zeros(0, np.int64)
    threshold = _threshold(keys, num_keys)
    chosen = keys >= threshold
    surplus = int(np.count_nonzero(chosen)) - num_keys
    if surplus:
        # The last of those that equal the threshold give way.
        equal = np.flatnonzero(keys == threshold)
        chosen[equal[len(equal) - surplus :]] = False
    return np.flatnonzero(chosen).astype(np.int64, copy=False)


def _threshold(keys: Keys, num_keys: int) -> np.uint32:
    """Give the `num_keys`-th largest key, digit by digit, the highest first.

    numpy's `partition` is quicker on shuffled keys, but takes several times as long on updates
    whose zeros form patterns, as those of layers do; `argpartition` takes far longer still.
    """
    candidates, missing, threshold = keys, num_keys, 0
    for shift in _SHIFTS:
        counts = _histogram(candidates, shift)
        at_least = np.cumsum(counts[::-1])[::-1]
        digit = int(np.count_nonzero(at_least >= missing)) - 1
        missing -= int(at_least[digit] - counts[digit])
        threshold |= digit << shift
        candidates = candidates[_digits(candidates, shift) == digit]
    return np.uint32(threshold)


def _histogram(keys: Keys, shift: int) -> Indices:
    counts = np.zeros(_DIGIT_MASK + 1, np.int64)
    for start in range(0, len(keys), _CHUNK):
        digits = _digits(keys[start : start + _CHUNK], shift)
        counts += np.bincount(digits, minlength=len(counts))
    return counts


def _digits(keys: Keys, shift: int) -> Keys:
    return (keys >> np.uint32(shift)) & np.uint32(_DIGIT_MASK)
