"""All inner products of a few vectors mod p, through exact matrix products of float64.

Words are cut into limbs of at most 21 bits. A product of two limbs is below 2^42, and a sum of
2048 of them below 2^53, so that no product of two matrices rounds anything.
"""

from itertools import pairwise
from typing import Final

import numpy as np

from security.errors import SharingError
from security.secret_sharing.field import MersenneField, Words
from security.secret_sharing.kernels.choice import kernels

_BLOCK_COLUMNS: Final = 2048
_LIMB_BITS: Final = 21
_BLOCKS_PER_FOLD: Final = 512  # sums of pairs of limbs, each below 2^54, stay below 2^63


def products(field: MersenneField, rows: Words) -> Words:
    """Multiply each row with each.

    Args:
        field: of the words.
        rows: (m, k), canonical.

    Returns:
        (m, m), symmetric: the inner products mod p.

    Raises:
        SharingError: if `rows` is no matrix.

    Cost: six float64 products of (m, k) by (k, m) for 61 bits, three for 31.
    """
    if rows.ndim != 2:
        message = f"rows must be a matrix, got shape {rows.shape}"
        raise SharingError(message)
    shifts = _limb_shifts(field.bits)
    gram = np.zeros((len(rows), len(rows)), np.uint64)
    for start in range(0, rows.shape[1], _BLOCK_COLUMNS * _BLOCKS_PER_FOLD):
        part = rows[:, start : start + _BLOCK_COLUMNS * _BLOCKS_PER_FOLD]
        for shift, total in _limb_products(part, shifts).items():
            reduced = total % np.uint64(field.modulus)
            factor = np.uint64(pow(2, shift, field.modulus))
            kernels().add_scaled(gram.reshape(-1), reduced.reshape(-1), factor, field.bits)
    return gram


def _limb_shifts(bits: int) -> tuple[int, ...]:
    """Cut `bits` into limbs of nearly equal width; give where each begins, and where all end."""
    limbs = -(-bits // _LIMB_BITS)
    width, wider = divmod(bits, limbs)
    shifts = [0]
    for limb in range(limbs):
        shifts.append(shifts[-1] + width + (limb < wider))
    return tuple(shifts)


def _limb_products(rows: Words, shifts: tuple[int, ...]) -> dict[int, Words]:
    """Sum the products of each pair of limbs: power of two -> (m, m), below 2^63."""
    m = len(rows)
    totals: dict[int, Words] = {}
    for start in range(0, rows.shape[1], _BLOCK_COLUMNS):
        part = rows[:, start : start + _BLOCK_COLUMNS]
        limbs = [
            ((part >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)).astype(np.float64)
            for low, high in pairwise(shifts)
        ]
        for i, left in enumerate(limbs):
            for j in range(i, len(limbs)):
                block = (left @ limbs[j].T).astype(np.uint64)
                total = totals.setdefault(shifts[i] + shifts[j], np.zeros((m, m), np.uint64))
                total += block if i == j else block + block.T
    return totals
