"""Shamir's secret sharing as published: random coefficients, one explicit share for each holder."""

from collections.abc import Callable, Sequence

import numpy as np

from security.errors import SharingError
from security.secret_sharing.arithmetic import add_into
from security.secret_sharing.expansion import SEED_BYTES, expand_words
from security.secret_sharing.field import MersenneField, Words
from security.secret_sharing.threshold import Threshold


def share(
    field: MersenneField,
    threshold: Threshold,
    secret: Words,
    random_bytes: Callable[[int], bytes],
) -> tuple[Words, ...]:
    """Share a vector.

    Args:
        field: of the words.
        threshold: (t, n).
        secret: (d,), canonical. Not modified.
        random_bytes: gives so many secret random bytes.

    Returns:
        The shares of holders 1 .. n, each (d,).

    Guarantees:
        Any t shares determine the secret. To who cannot tell AES-256-CTR from random bytes, any
        t - 1 shares are uniform words, whatever the secret.

    Cost: (t - 1) expansions and n (t - 1) products a word.
    References: Shamir (1979), How to share a secret.
    """
    coefficients = [
        expand_words(random_bytes(SEED_BYTES), field, len(secret))
        for _ in range(threshold.threshold - 1)
    ]
    return evaluate(field, threshold, secret, coefficients)


def evaluate(
    field: MersenneField, threshold: Threshold, secret: Words, coefficients: Sequence[Words]
) -> tuple[Words, ...]:
    """Evaluate secret + a_1 X + .. + a_(t-1) X^(t-1) at 1 .. n.

    Raises:
        SharingError: if there are not t - 1 coefficients.
    """
    if len(coefficients) != threshold.threshold - 1:
        message = f"coefficients must be {threshold.threshold - 1}, got {len(coefficients)}"
        raise SharingError(message)
    shares = []
    for point in threshold.points:
        value = np.copy(secret)
        for power, coefficient in enumerate(coefficients, start=1):
            add_into(field, value, coefficient, point**power)
        shares.append(value)
    return tuple(shares)
