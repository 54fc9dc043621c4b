"""Replicated sharing, and its conversion to Shamir's without a message.

The secret is a sum of pieces r_A, one for each set A of t - 1 holders; piece A is with everybody
outside A. Any t - 1 holders lack the piece of their own set. All pieces but the last come from
seeds; the last, which the last t - 1 holders lack, is explicit.

Holder j adds up its pieces under f_A(j), where f_A(X) = prod_{i in A} (i - X) / i is 1 at 0 and 0
for each member of A. What comes out is a Shamir share of degree t - 1. All f_A(j) times one scale
are small integers, so holders share scale times the secret, and opening divides.

References: Cramer, Damgård, Ishai (2005), Share conversion, pseudorandom secret-sharing and
applications to secure computation, TCC.
"""

from collections.abc import Iterable, Mapping
from fractions import Fraction
from functools import cache
from math import lcm, prod

from security.errors import SharingError
from security.secret_sharing.arithmetic import add_into, weighted_sum
from security.secret_sharing.field import MersenneField, Words
from security.secret_sharing.threshold import Threshold


@cache
def conversion_scale(threshold: Threshold) -> int:
    """Give the smallest integer that makes all f_A(j) integers; 120 for (3, 5)."""
    return lcm(
        *(
            _fraction(lacking, holder).denominator
            for lacking in threshold.excluded_sets
            for holder in threshold.points
        )
    )


@cache
def conversion_weights(threshold: Threshold, holder: int) -> dict[int, int]:
    """Give scale * f_A(holder) of each piece that a holder has, by the index of the piece."""
    scale = conversion_scale(threshold)
    return {
        piece: int(scale * _fraction(threshold.excluded_sets[piece], holder))
        for piece in threshold.pieces_of(holder)
    }


def convert(
    field: MersenneField, threshold: Threshold, holder: int, pieces: Mapping[int, Words]
) -> Words:
    """Turn a holder's pieces into its Shamir share of `conversion_scale` times the secret.

    Args:
        field: of the words.
        threshold: (t, n).
        holder: 1 to n.
        pieces: by index, exactly those of `threshold.pieces_of(holder)`, each (d,).

    Returns:
        (d,), a share of degree t - 1.

    Raises:
        SharingError: if a piece is missing or not this holder's, or lengths differ.
    """
    held = threshold.pieces_of(holder)
    if set(pieces) != set(held):
        message = f"pieces must be those of holder {holder}, {held}, got {sorted(pieces)}"
        raise SharingError(message)
    weights = conversion_weights(threshold, holder)
    return weighted_sum(field, [pieces[i] for i in held], [weights[i] for i in held])


def explicit_piece(field: MersenneField, secret: Words, others: Iterable[Words]) -> Words:
    """Compute the last piece: the secret less all others.

    Args:
        field: of the words.
        secret: (d,), canonical. Not modified.
        others: the pieces of all sets but the last, each (d,); taken one at a time.

    Returns:
        (d,).
    """
    rest = secret.copy()
    for piece in others:
        add_into(field, rest, piece, -1)
    return rest


def _fraction(lacking: tuple[int, ...], holder: int) -> Fraction:
    """Give f_A(j)."""
    return prod((Fraction(i - holder, i) for i in lacking), start=Fraction(1))
