"""The loops over words in numpy: for devices without a compiler, and to check the compiled ones.

Long vectors are taken in blocks that stay in the cache. Arguments as in `kernels.Kernels`.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from security.secret_sharing.field import Words

NAME: Final = "numpy"

_BLOCK_WORDS: Final = 1 << 14
_LOW: Final = np.uint64(0xFFFFFFFF)
_HALF: Final = np.uint64(32)
_HIGH_BITS: Final = np.uint64(29)  # of a 61-bit word, above its low half
_HIGH: Final = np.uint64((1 << 29) - 1)
_THREE: Final = np.uint64(3)


def add(total: Words, words: Words, bits: int) -> None:
    """Compute total += words."""
    p = _modulus(bits)
    for part in _blocks(len(total)):
        raised = total[part] + words[part]
        # Below p the difference wraps round to something huge, so the minimum is the remainder.
        np.minimum(raised, raised - p, out=total[part])


def subtract(total: Words, words: Words, bits: int) -> None:
    """Compute total -= words."""
    p = _modulus(bits)
    for part in _blocks(len(total)):
        lowered = total[part] - words[part]
        np.minimum(lowered, lowered + p, out=total[part])


def add_scaled(total: Words, words: Words, factor: np.uint64, bits: int) -> None:
    """Compute total += factor * words."""
    p = _modulus(bits)
    for part in _blocks(len(total)):
        raised = total[part] + _canonical(_product(words[part], factor, bits), bits)
        np.minimum(raised, raised - p, out=total[part])


def multiply(out: Words, a: Words, b: Words, bits: int) -> None:
    """Compute out = a * b, word by word; one word of `b` may serve for all."""
    for part in _blocks(len(out)):
        factor = b[part] if len(b) == len(a) else b
        out[part] = _canonical(_product(a[part], factor, bits), bits)


def dot(a: Words, b: Words, bits: int) -> tuple[int, int]:
    """Give (low, high): the inner product is low + high * 2^32 mod p."""
    low = high = 0
    for part in _blocks(len(a)):
        products = _product(a[part], b[part], bits)
        low += int((products & _LOW).sum())
        high += int((products >> _HALF).sum())
    return low, high


def weighted_sum(out: Words, rows: Words, weights: NDArray[np.int64], bits: int) -> None:
    """Compute out = weights @ rows."""
    for part in _blocks(len(out)):
        low = np.zeros(part.stop - part.start, np.int64)
        high = np.zeros_like(low)
        for row, weight in zip(rows[:, part], weights, strict=True):
            low += weight * (row & _LOW).astype(np.int64)
            high += weight * (row >> _HALF).astype(np.int64)
        out[part] = _signed_canonical(low, high, bits)


def mask(out: Words, raw: NDArray[np.unsignedinteger], bits: int) -> bool:
    """Compute out = raw mod 2^bits; tell whether a word came out as p."""
    p = _modulus(bits)
    has_modulus = False
    for part in _blocks(len(out)):
        np.bitwise_and(raw[part], p, out=out[part])
        has_modulus |= bool((out[part] == p).any())
    return has_modulus


def encode(out: Words, values: NDArray[np.float32], scale: float, bits: int) -> bool:
    """Compute out = rint(values * scale) mod p; tell whether all of them fit."""
    limit = float(1 << (bits - 1))
    p = np.int64((1 << bits) - 1)
    fits = True
    for part in _blocks(len(out)):
        rounded = np.rint(values[part].astype(np.float64) * scale)
        inside = np.abs(rounded) < limit
        if not inside.all():
            fits = False
            rounded = np.where(inside, rounded, 0.0)
        integers = rounded.astype(np.int64)
        out[part] = (integers + p * (integers < 0)).astype(np.uint64)
    return fits


def extrapolate(
    out: NDArray[np.unsignedinteger], first: int, secret: Words, shares: Words, bits: int
) -> None:
    """Compute f(t), f(t+1), .. from f(0) = secret and the rows f(1) .. f(t-1) of `shares`."""
    t = len(shares) + 1
    for part in _blocks(len(secret)):
        # Backward differences at t - 1: table[t - 1 - order] ends as the difference of `order`.
        table = np.concatenate((secret[None, part], shares[:, part]))
        for order in range(1, t):
            for i in range(t - order):
                following = table[i + 1].copy()
                subtract(following, table[i], bits)
                table[i] = following
        for row in out:
            for i in range(1, t):
                add(table[i], table[i - 1], bits)
            row[first + part.start : first + part.stop] = table[t - 1]


def extrapolate_raw(
    out: NDArray[np.unsignedinteger],
    first: int,
    secret: Words,
    raw: NDArray[np.unsignedinteger],
    bits: int,
) -> bool:
    """Extrapolate from words that are not masked yet; tell whether one of them came out as p."""
    shares = np.empty(raw.shape, np.uint64)
    has_modulus = False
    for row, words in zip(shares, raw, strict=True):
        has_modulus |= mask(row, words, bits)
    extrapolate(out, first, secret, shares, bits)
    return has_modulus


def fold_signed(
    state: Words, words: Words, rotation: tuple[NDArray[np.uint8], Words, int], bits: int
) -> None:
    """Add signed words into the rotated buckets of each row of a sketch.

    Args:
        state: (copies, buckets).
        words: (count,).
        rotation: sign bytes (count,), bit c for copy c; shifts (copies, blocks); the first column.
        bits: of the field.
    """
    signs, shifts, first = rotation
    copies, buckets = state.shape
    p = _modulus(bits)
    blocks = -(-(first + len(words)) // buckets)
    columns = np.arange(buckets, dtype=np.uint64)
    for copy in range(copies):
        table = np.zeros(blocks * buckets, np.uint64)
        negative = ((signs >> np.uint8(copy)) & np.uint8(1)).astype(np.uint64)
        table[first : first + len(words)] = words ^ (negative * p)
        source = (columns + np.uint64(buckets) - shifts[copy, :blocks, None]) % np.uint64(buckets)
        turned = np.take_along_axis(table.reshape(blocks, buckets), source.astype(np.intp), axis=1)
        low = (turned & _LOW).sum(axis=0, dtype=np.uint64)
        high = (turned >> _HALF).sum(axis=0, dtype=np.uint64)
        folded = _signed_canonical(low.astype(np.int64), high.astype(np.int64), bits)
        add(state[copy], folded, bits)


def _modulus(bits: int) -> np.uint64:
    return np.uint64((1 << bits) - 1)


def _blocks(count: int) -> Iterator[slice]:
    for start in range(0, count, _BLOCK_WORDS):
        yield slice(start, min(start + _BLOCK_WORDS, count))


def _product(a: Words, b: Words | np.uint64, bits: int) -> Words:
    """Multiply to below 2^63, not reduced."""
    if bits <= 32:
        product: Words = a * b
        return product
    # 2^64 = 8 and 2^61 = 1: of 2^32 * middle the part above bit 29 comes back at the bottom.
    a_high, a_low, b_high, b_low = a >> _HALF, a & _LOW, b >> _HALF, b & _LOW
    middle = a_high * b_low + a_low * b_high
    low = a_low * b_low
    p = _modulus(bits)
    total: Words = ((a_high * b_high) << _THREE) + (middle >> _HIGH_BITS)
    total += (middle & _HIGH) << _HALF
    total += (low & p) + (low >> np.uint64(bits))
    return total


def _canonical(values: Words, bits: int) -> Words:
    """Reduce values below 2^63, or below 2^(2 bits) for the small fields."""
    p, shift = _modulus(bits), np.uint64(bits)
    folded: Words = (values & p) + (values >> shift)
    folded = (folded & p) + (folded >> shift)
    np.minimum(folded, folded - p, out=folded)
    return folded


def _signed_canonical(low: NDArray[np.int64], high: NDArray[np.int64], bits: int) -> Words:
    """Reduce low + high * 2^32, for |low| < 2^63 and |high| < 2^60 (0 in the small fields)."""
    p, shift = np.int64((1 << bits) - 1), np.int64(bits)
    folded = (low & p) + (low >> shift)
    if bits <= 32:
        # Each fold takes `bits` off the length; three are enough for every field and weight.
        for _ in range(2):
            folded = (folded & p) + (folded >> shift)
    else:
        lifted = high + p * (high < 0)
        folded += ((lifted & np.int64(_HIGH)) << np.int64(32)) + (lifted >> np.int64(29))
    return _canonical((folded + p).astype(np.uint64), bits)
