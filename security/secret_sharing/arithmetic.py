"""Sums, products and inner products of vectors over a field, exact and reduced.

Arguments are canonical words; so are results. Long loops release the interpreter lock where they
are compiled. Results do not depend on the backend.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from security.errors import SharingError
from security.secret_sharing.field import MersenneField, Words
from security.secret_sharing.kernels.choice import kernels
from security.secret_sharing.modular_products import products

__all__ = [
    "add_into",
    "backend",
    "dot",
    "multiply",
    "nonzero_sums",
    "products",
    "signed_sum",
    "subtract",
    "weighted_sum",
]

_WEIGHT_LIMIT: Final = 1 << 31  # of the magnitudes of integer weights together
_STEP_WORDS: Final = 1 << 14  # rows gathered at a time: a few hundred kB, within the cache


def backend() -> str:
    """Name what runs the loops: `numba` or `numpy`."""
    return kernels().NAME


def add_into(field: MersenneField, total: Words, words: Words, weight: int = 1) -> None:
    """Add `weight` times `words` to `total`, in place.

    Args:
        field: of all words.
        total: (d,), overwritten.
        words: (d,).
        weight: any integer, taken mod p; a negative one subtracts.

    Raises:
        SharingError: if the lengths differ.

    Cost: O(d); 1 and -1 are one addition a word, anything else a product.
    """
    _check_lengths(total, words)
    reduced = field.reduce(weight)
    if reduced == 1:
        kernels().add(total, words, field.bits)
    elif reduced == field.modulus - 1:
        kernels().subtract(total, words, field.bits)
    else:
        kernels().add_scaled(total, words, np.uint64(reduced), field.bits)


def subtract(field: MersenneField, a: Words, b: Words) -> Words:
    """Give a - b, (d,)."""
    _check_lengths(a, b)
    difference = a.copy()
    kernels().subtract(difference, b, field.bits)
    return difference


def multiply(field: MersenneField, a: Words, b: Words) -> Words:
    """Give the products word by word, (d,)."""
    _check_lengths(a, b)
    product = np.empty_like(a)
    kernels().multiply(product, a, b, field.bits)
    return product


def dot(field: MersenneField, a: Words, b: Words) -> int:
    """Give the inner product of two vectors, a canonical integer."""
    _check_lengths(a, b)
    low, high = kernels().dot(a, b, field.bits)
    return field.reduce(int(low) + (int(high) << 32))


def weighted_sum(
    field: MersenneField, rows: Sequence[Words], weights: Sequence[int], factor: int = 1
) -> Words:
    """Add rows under integer weights, and multiply the sum by one factor.

    Args:
        field: of all words.
        rows: at least one, each (d,).
        weights: one for each row, any integers. Small ones, of at most 2^31 together, need no full
            product.
        factor: any integer, taken mod p: 1 / D where weights are fractions over D.

    Returns:
        (d,).

    Raises:
        SharingError: if there is no row, or the numbers or lengths differ.
    """
    if len(rows) == 0 or len(rows) != len(weights):
        message = f"rows must be as many as weights, at least one; got {len(rows)}, {len(weights)}"
        raise SharingError(message)
    for row in rows:
        _check_lengths(rows[0], row)
    small = _small_weights(field, weights)
    if small is None:
        return _sum_of_products(field, rows, [weight * factor for weight in weights])
    factors = np.array([field.reduce(factor)], dtype=np.uint64)
    total = np.empty(len(rows[0]), np.uint64)
    # A product onto its own argument could not be vectorised.
    sums = np.empty(min(_STEP_WORDS, len(total)), np.uint64)
    for part, gathered in _gather(rows):
        target = total[part]
        if factors[0] == 1:
            kernels().weighted_sum(target, gathered, small, field.bits)
        else:
            kernels().weighted_sum(sums[: len(target)], gathered, small, field.bits)
            kernels().multiply(target, sums[: len(target)], factors, field.bits)
    return total


def nonzero_sums(
    field: MersenneField, rows: Sequence[Words], weights: Sequence[Sequence[int]]
) -> NDArray[np.bool_]:
    """Tell where any of several weighted sums of the same rows is not 0.

    Args:
        field: of all words.
        rows: at least one, each (d,).
        weights: for each sum, one integer for each row.

    Returns:
        (d,).

    Raises:
        SharingError: as `weighted_sum`.
    """
    nonzero = np.zeros(len(rows[0]), np.bool_)
    small = [found for row in weights if (found := _small_weights(field, row)) is not None]
    if len(small) < len(weights) or any(len(row) != len(rows) for row in small):
        for row in weights:
            nonzero |= weighted_sum(field, rows, row) != 0
        return nonzero
    sums = np.empty(min(_STEP_WORDS, len(nonzero)), np.uint64)
    for part, gathered in _gather(rows) if small else ():
        target = sums[: part.stop - part.start]
        for integers in small:
            kernels().weighted_sum(target, gathered, integers, field.bits)
            nonzero[part] |= target != 0
    return nonzero


def signed_sum(field: MersenneField, rows: Words, signs: NDArray[np.int8]) -> Words:
    """Add and subtract words as rows of signs say.

    Args:
        field: of all words.
        rows: (m, k).
        signs: (T, m * k), each -1, 0 or 1, for the words in C order.

    Returns:
        (T,).

    Raises:
        SharingError: if the shapes do not fit.
    """
    flat = rows.reshape(-1)
    if signs.ndim != 2 or signs.shape[1] != len(flat):
        message = f"signs must have shape (T, {len(flat)}), got {signs.shape}"
        raise SharingError(message)
    sums = [0] * len(signs)
    for start in range(0, len(flat), _STEP_WORDS):
        part = flat[start : start + _STEP_WORDS]
        # Halves and signs are exact in float64, and so are sums of 2^14 of their products.
        halves = np.stack((part & np.uint64(0xFFFFFFFF), part >> np.uint64(32)), axis=1)
        block = signs[:, start : start + _STEP_WORDS].astype(np.float64) @ halves.astype(np.float64)
        for row, (low, high) in enumerate(block):
            sums[row] += int(low) + (int(high) << 32)
    return np.array([field.reduce(total) for total in sums], dtype=np.uint64)


def _check_lengths(a: Words, b: Words) -> None:
    if a.shape != b.shape or a.ndim != 1:
        message = f"vectors must have one length, got shapes {a.shape} and {b.shape}"
        raise SharingError(message)


def _gather(rows: Sequence[Words]) -> Iterator[tuple[slice, Words]]:
    """Copy rows into one matrix, as many columns at a time as stay in the cache."""
    count = len(rows[0])
    gathered = np.empty((len(rows), min(_STEP_WORDS, count)), np.uint64)
    for start in range(0, count, _STEP_WORDS):
        part = slice(start, min(start + _STEP_WORDS, count))
        for row, target in zip(rows, gathered, strict=True):
            target[: part.stop - start] = row[part]
        yield part, gathered


def _sum_of_products(field: MersenneField, rows: Sequence[Words], factors: Sequence[int]) -> Words:
    total = np.zeros(len(rows[0]), np.uint64)
    for row, factor in zip(rows, factors, strict=True):
        add_into(field, total, row, factor)
    return total


def _small_weights(field: MersenneField, weights: Sequence[int]) -> NDArray[np.int64] | None:
    """Give weights as integers of the least magnitudes; none if together they are too large."""
    centred = [_centred(field, weight) for weight in weights]
    return None if sum(map(abs, centred)) >= _WEIGHT_LIMIT else np.array(centred, dtype=np.int64)


def _centred(field: MersenneField, value: int) -> int:
    """Give the integer of the smallest magnitude that is `value` mod p."""
    reduced = field.reduce(value)
    return reduced - field.modulus if reduced > field.modulus // 2 else reduced
