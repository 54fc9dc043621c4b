"""The loops over words, compiled. The same words as `plain_kernels`, bit for bit.

Written to be vectorised: no branch depends on data, and a remainder below p is the minimum of two
unsigned words. Every integer literal is a uint64 or an int64 on purpose: a sum of both would be a
float64. Arguments as in `kernels.Kernels`.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from security.secret_sharing.field import Words
from security.secret_sharing.kernels.compiler import inlined, kernel

NAME: Final = "numba"

_BLOCK_WORDS: Final = 512  # intermediate rows of a block stay in the first-level cache
_ONE: Final = np.uint64(1)
_THREE: Final = np.uint64(3)
_LOW: Final = np.uint64(0xFFFFFFFF)
_HALF: Final = np.uint64(32)
_HIGH_BITS: Final = np.uint64(29)
_HIGH: Final = np.uint64((1 << 29) - 1)


@inlined
def _modulus(bits: int) -> np.uint64:
    return np.uint64((_ONE << np.uint64(bits)) - _ONE)


@inlined
def _plus(a: np.uint64, b: np.uint64, p: np.uint64) -> np.uint64:
    # Below p the difference wraps round to something huge, so the minimum is the remainder.
    return min(a + b, a + b - p)


@inlined
def _minus(a: np.uint64, b: np.uint64, p: np.uint64) -> np.uint64:
    return min(a - b, a - b + p)


@inlined
def _product(a: np.uint64, b: np.uint64, bits: int) -> np.uint64:
    """Multiply to below 2^63, not reduced."""
    if bits <= 32:
        return a * b
    # 2^64 = 8 and 2^61 = 1: of 2^32 * middle the part above bit 29 comes back at the bottom.
    a_high, a_low, b_high, b_low = a >> _HALF, a & _LOW, b >> _HALF, b & _LOW
    middle = a_high * b_low + a_low * b_high
    low = a_low * b_low
    return np.uint64(
        ((a_high * b_high) << _THREE)
        + (middle >> _HIGH_BITS)
        + ((middle & _HIGH) << _HALF)
        + (low & _modulus(bits))
        + (low >> np.uint64(bits))
    )


@inlined
def _canonical(value: np.uint64, bits: int) -> np.uint64:
    """Reduce a value below 2^63, or below 2^(2 bits) in the small fields."""
    p, shift = _modulus(bits), np.uint64(bits)
    folded = (value & p) + (value >> shift)
    folded = (folded & p) + (folded >> shift)
    return min(folded, folded - p)


@inlined
def _joined(low: np.uint64, high: np.uint64, bits: int) -> np.uint64:
    """Reduce low + high * 2^32, for low < 2^63 and high < 2^60 (0 in the small fields)."""
    p, shift = _modulus(bits), np.uint64(bits)
    folded = (low & p) + (low >> shift)
    if bits <= 32:
        folded = (folded & p) + (folded >> shift)
    else:
        folded += ((high & _HIGH) << _HALF) + (high >> _HIGH_BITS)
    return _canonical(folded, bits)


@kernel
def add(total: Words, words: Words, bits: int) -> None:
    """Compute total += words."""
    p = _modulus(bits)
    for i in range(total.shape[0]):
        total[i] = _plus(total[i], words[i], p)


@kernel
def subtract(total: Words, words: Words, bits: int) -> None:
    """Compute total -= words."""
    p = _modulus(bits)
    for i in range(total.shape[0]):
        total[i] = _minus(total[i], words[i], p)


@kernel
def add_scaled(total: Words, words: Words, factor: np.uint64, bits: int) -> None:
    """Compute total += factor * words."""
    p = _modulus(bits)
    for i in range(total.shape[0]):
        total[i] = _plus(total[i], _canonical(_product(words[i], factor, bits), bits), p)


@kernel
def multiply(out: Words, a: Words, b: Words, bits: int) -> None:
    """Compute out = a * b, word by word; one word of `b` may serve for all."""
    if b.shape[0] == a.shape[0]:
        for i in range(out.shape[0]):
            out[i] = _canonical(_product(a[i], b[i], bits), bits)
    else:
        factor = b[0]
        for i in range(out.shape[0]):
            out[i] = _canonical(_product(a[i], factor, bits), bits)


@kernel
def dot(a: Words, b: Words, bits: int) -> tuple[int, int]:
    """Give (low, high): the inner product is low + high * 2^32 mod p."""
    low = np.uint64(0)
    high = np.uint64(0)
    for i in range(a.shape[0]):
        # Halves have room for 2^32 terms, and plain sums can be vectorised.
        product = _product(a[i], b[i], bits)
        low += product & _LOW
        high += product >> _HALF
    return low, high  # type: ignore[return-value]  # numba hands integers back


@kernel
def weighted_sum(out: Words, rows: Words, weights: NDArray[np.int64], bits: int) -> None:
    """Compute out = weights @ rows."""
    p = _modulus(bits)
    low = np.empty(_BLOCK_WORDS, np.uint64)
    high = np.empty(_BLOCK_WORDS, np.uint64)
    for start in range(0, out.shape[0], _BLOCK_WORDS):
        count = min(_BLOCK_WORDS, out.shape[0] - start)
        low[:count] = 0
        high[:count] = 0
        for j in range(rows.shape[0]):
            row = rows[j, start : start + count]
            # A negative weight is a positive one of the complement. The mask tells the compiler
            # that the weight is short: products of halves are one instruction.
            flip = p if weights[j] < 0 else np.uint64(0)
            weight = np.uint64(abs(weights[j])) & _LOW
            for i in range(count):
                word = row[i] ^ flip
                low[i] += weight * (word & _LOW)
                high[i] += weight * (word >> _HALF)
        for i in range(count):
            out[start + i] = _joined(low[i], high[i], bits)


@kernel
def mask(out: Words, raw: NDArray[np.unsignedinteger], bits: int) -> bool:
    """Compute out = raw mod 2^bits; tell whether a word came out as p."""
    p = _modulus(bits)
    has_modulus = False
    for i in range(out.shape[0]):
        word = np.uint64(raw[i]) & p
        out[i] = word
        has_modulus |= word == p
    return has_modulus


@kernel
def encode(out: Words, values: NDArray[np.float32], scale: float, bits: int) -> bool:
    """Compute out = rint(values * scale) mod p; tell whether all of them fit."""
    p = np.int64(_modulus(bits))
    limit = np.float64(_ONE << np.uint64(bits - 1))
    num_fitting = 0
    for i in range(out.shape[0]):
        rounded = np.rint(np.float64(values[i]) * scale)
        inside = abs(rounded) < limit
        num_fitting += inside
        integer = np.int64(rounded if inside else 0.0)
        out[i] = np.uint64(integer + (p & (integer >> np.int64(63))))
    return bool(num_fitting == out.shape[0])


@kernel
def extrapolate(
    out: NDArray[np.unsignedinteger], first: int, secret: Words, shares: Words, bits: int
) -> None:
    """Compute f(t), f(t+1), .. from f(0) = secret and the rows f(1) .. f(t-1) of `shares`."""
    if shares.shape[0] == 2 and out.shape[0] == 3:
        _extrapolate_to_five(out, first, secret, shares, bits)
    else:
        _extrapolate_any(out, first, secret, shares, bits)


@kernel
def _extrapolate_to_five(
    out: NDArray[np.unsignedinteger], first: int, secret: Words, shares: Words, bits: int
) -> None:
    """Carry the differences of a quadratic in registers: the usual case, t = 3 and n = 5."""
    p = _modulus(bits)
    count = secret.shape[0]
    one, two = shares[0, :count], shares[1, :count]
    three, four = out[0, first : first + count], out[1, first : first + count]
    five = out[2, first : first + count]
    for x in range(count):
        before = _minus(one[x], secret[x], p)
        slope = _minus(two[x], one[x], p)
        curve = _minus(slope, before, p)
        slope = _plus(slope, curve, p)
        value = _plus(two[x], slope, p)
        three[x] = value
        slope = _plus(slope, curve, p)
        value = _plus(value, slope, p)
        four[x] = value
        five[x] = _plus(value, _plus(slope, curve, p), p)


@kernel
def extrapolate_raw(
    out: NDArray[np.unsignedinteger],
    first: int,
    secret: Words,
    raw: NDArray[np.unsignedinteger],
    bits: int,
) -> bool:
    """Extrapolate from words that are not masked yet; tell whether one of them came out as p."""
    if raw.shape[0] == 2 and out.shape[0] == 3:
        return _extrapolate_raw_to_five(out, first, secret, raw, bits)
    shares = np.empty(raw.shape, np.uint64)
    has_modulus = False
    for i in range(raw.shape[0]):
        has_modulus |= mask(shares[i], raw[i], bits)
    _extrapolate_any(out, first, secret, shares, bits)
    return has_modulus


@kernel
def _extrapolate_raw_to_five(
    out: NDArray[np.unsignedinteger],
    first: int,
    secret: Words,
    raw: NDArray[np.unsignedinteger],
    bits: int,
) -> bool:
    """Mask in registers on the way: two passes over memory less in the usual case."""
    p = _modulus(bits)
    count = secret.shape[0]
    first_row, second_row = raw[0, :count], raw[1, :count]
    three, four = out[0, first : first + count], out[1, first : first + count]
    five = out[2, first : first + count]
    num_moduli = np.uint64(0)
    for x in range(count):
        one, two = np.uint64(first_row[x]) & p, np.uint64(second_row[x]) & p
        num_moduli |= np.uint64(one == p) | np.uint64(two == p)
        before = _minus(one, secret[x], p)
        slope = _minus(two, one, p)
        curve = _minus(slope, before, p)
        slope = _plus(slope, curve, p)
        value = _plus(two, slope, p)
        three[x] = value
        slope = _plus(slope, curve, p)
        value = _plus(value, slope, p)
        four[x] = value
        five[x] = _plus(value, _plus(slope, curve, p), p)
    return bool(num_moduli != 0)


@kernel
def _extrapolate_any(
    out: NDArray[np.unsignedinteger], first: int, secret: Words, shares: Words, bits: int
) -> None:
    """Carry the table of differences from point to point: additions only, whatever t."""
    p = _modulus(bits)
    t = shares.shape[0] + 1
    table = np.empty((t, _BLOCK_WORDS), np.uint64)
    for start in range(0, secret.shape[0], _BLOCK_WORDS):
        count = min(_BLOCK_WORDS, secret.shape[0] - start)
        table[0, :count] = secret[start : start + count]
        for i in range(1, t):
            table[i, :count] = shares[i - 1, start : start + count]
        # Backward differences at t - 1: row t - 1 - order ends as the difference of `order`.
        for order in range(1, t):
            for i in range(t - order):
                here, following = table[i], table[i + 1]
                for x in range(count):
                    here[x] = _minus(following[x], here[x], p)
        for k in range(out.shape[0]):
            for i in range(1, t):
                difference, raised = table[i - 1], table[i]
                for x in range(count):
                    raised[x] = _plus(raised[x], difference[x], p)
            row = out[k, first + start : first + start + count]
            for x in range(count):
                row[x] = table[t - 1, x]


@kernel
def fold_signed(
    state: Words, words: Words, rotation: tuple[NDArray[np.uint8], Words, int], bits: int
) -> None:
    """Add signed words into the rotated buckets of each row of a sketch."""
    signs, shifts, first = rotation
    p = _modulus(bits)
    buckets = state.shape[1]
    for copy in range(state.shape[0]):
        at, block, column = 0, 0, first
        while at < words.shape[0]:
            # A run ends with the block, or where the rotation wraps round to bucket 0.
            bucket = (column + np.int64(shifts[copy, block])) % buckets
            count = min(words.shape[0] - at, buckets - column, buckets - bucket)
            target = state[copy, bucket : bucket + count]
            run, run_signs = words[at : at + count], signs[at : at + count]
            for i in range(count):
                negative = (np.uint64(run_signs[i]) >> np.uint64(copy)) & _ONE
                target[i] = _plus(target[i], run[i] ^ (negative * p), p)
            at += count
            column += count
            if column == buckets:
                block, column = block + 1, 0
