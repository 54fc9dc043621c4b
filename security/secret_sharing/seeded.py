"""Shamir's sharing with t - 1 of the shares chosen, as expansions of seeds.

The polynomial through the secret at 0 and the chosen shares at 1 .. t - 1 is unique, and its
differences of order t vanish. So the other shares follow by additions alone; for t = 3
f(k) = 3 (f(k-1) - f(k-2)) + f(k-3).
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from security.errors import SharingError
from security.secret_sharing.expansion import Expansion
from security.secret_sharing.field import MersenneField, Words
from security.secret_sharing.kernels.choice import kernels
from security.secret_sharing.threshold import Threshold

_STEP_WORDS: Final = 1 << 14  # shares chosen at a time: they stay in the cache until they are used


def explicit_shares(
    field: MersenneField, threshold: Threshold, secret: Words, seed_shares: Sequence[Words]
) -> list[Words]:
    """Compute the shares that do not come from seeds.

    Args:
        field: of the words.
        threshold: (t, n).
        secret: (d,), canonical.
        seed_shares: the shares of holders 1 .. t - 1, each (d,).

    Returns:
        The shares of holders t .. n, each (d,).

    Raises:
        SharingError: if the numbers or lengths do not fit.

    Guarantees:
        All n shares lie on one polynomial of degree t - 1 through the secret at 0.
        For uniform seed shares, any t - 1 of the n shares are uniform, whatever the secret.
    """
    t, n = threshold.threshold, threshold.holders
    if len(seed_shares) != t - 1 or any(row.shape != secret.shape for row in seed_shares):
        message = f"seed_shares must be {t - 1} vectors of {len(secret)} words"
        raise SharingError(message)
    out = np.empty((n - t + 1, len(secret)), np.uint64)
    for start in range(0, len(secret), _STEP_WORDS):
        part = slice(start, start + _STEP_WORDS)
        chosen = np.stack([row[part] for row in seed_shares])
        kernels().extrapolate(out, start, secret[part], chosen, field.bits)
    return list(out)


def share_chunk(
    threshold: Threshold,
    secret: Words,
    expansions: Sequence[Expansion],
    start: int,
    out: NDArray[np.unsignedinteger],
) -> None:
    """Compute a chunk of the explicit shares while its seeds expand.

    Args:
        threshold: (t, n).
        secret: (count,), words start .. start + count - 1 of the vector, canonical.
        expansions: of the seeds of holders 1 .. t - 1, all of one field and length.
        start: position of the chunk in the vector.
        out: (n - t + 1, count), contiguous, overwritten with the shares of holders t .. n. Its
            type is uint64 or the field's `wire_dtype`: rows are then the bytes to send.

    Raises:
        SharingError: if shapes do not fit, or the chunk is not within the vector.

    Cost: 4 ms for a million words of (3, 5) where it is compiled, mostly AES.
    """
    t, n = threshold.threshold, threshold.holders
    if len(expansions) != t - 1 or out.shape != (n - t + 1, len(secret)):
        message = (
            f"expansions must be {t - 1} and out {(n - t + 1, len(secret))}, "
            f"got {len(expansions)} and {out.shape}"
        )
        raise SharingError(message)
    field = expansions[0].field
    readers = [expansion.raw_reader(start) for expansion in expansions]
    raw = np.empty((t - 1, min(_STEP_WORDS, len(secret))), field.wire_dtype)
    for at in range(0, len(secret), _STEP_WORDS):
        stop = min(at + _STEP_WORDS, len(secret))
        rows = raw[:, : stop - at]
        for row, read in zip(rows, readers, strict=True):
            read(row)
        part = secret[at:stop]
        if kernels().extrapolate_raw(out, at, part, rows, field.bits):
            chosen = rows.astype(np.uint64) & np.uint64(field.modulus)
            for row, expansion in zip(chosen, expansions, strict=True):
                expansion.replace_modulus(row, start + at)
            kernels().extrapolate(out, at, part, chosen, field.bits)
