"""Opening: secrets from shares, with wrong shares found and put right where there are enough.

Shares of degree k at m points lie on one polynomial if and only if m - k - 1 sums over them, the
syndromes, vanish. Up to e = (m - k - 1) // 2 wrong shares leave exactly one polynomial that the
others lie on; with at most seven holders it is found by trying who might be wrong.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import combinations
from math import lcm, prod

import numpy as np
from numpy.typing import NDArray

from security.errors import InconsistentSharesError, SharingError, TooFewSharesError
from security.secret_sharing import arithmetic
from security.secret_sharing.field import MersenneField, Words

Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A vector opened as a whole.

    Attributes:
        values: (d,).
        liars: holders whose share was wrong somewhere, ascending.
    """

    values: Words
    liars: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedEach:
    """Values opened one by one.

    Attributes:
        values: (c,); without meaning where not consistent.
        consistent: (c,); whether the shares lie on one polynomial, after correction.
        wrong: for each holder, (c,): where its share was corrected.
    """

    values: Words
    consistent: Flags
    wrong: Mapping[int, Flags]


def reconstruct(
    field: MersenneField, shares: Mapping[int, Words], *, degree: int, scale: int = 1
) -> Opened:
    """Open a vector whose shares are right or wrong holder by holder.

    Args:
        field: of the words.
        shares: by holder, each (d,).
        degree: of the polynomials: t - 1 of a sharing, 2 (t - 1) of a product.
        scale: what the shared values were multiplied by; divided out.

    Returns:
        The values and who lied. With just degree + 1 shares nothing can be noticed.

    Raises:
        TooFewSharesError: with fewer than degree + 1 shares.
        InconsistentSharesError: if the shares lie on no polynomial, and would not either without
            some e = (m - degree - 1) // 2 holders.
        SharingError: if lengths differ or a holder is no point.

    Guarantees:
        With at most e wrong shares the values are right, and exactly the wrong holders are named.

    Cost: one pass to open and m - degree - 1 to check; the search runs on bad positions only.
    """
    points = _check(field, shares, degree)
    inconsistent = _inconsistent(field, shares, points, degree)
    liars: tuple[int, ...] = ()
    if inconsistent.any():
        bad = np.flatnonzero(inconsistent)
        suspects = {point: shares[point][bad] for point in points}
        liars = _find_liars(field, suspects, points, degree)
    honest = tuple(point for point in points if point not in liars)
    return Opened(values=_interpolate(field, shares, honest[: degree + 1], scale), liars=liars)


def open_each(
    field: MersenneField, shares: Mapping[int, Words], *, degree: int, scale: int = 1
) -> OpenedEach:
    """Open values each of which may have other wrong shares.

    Arguments and refusals as of `reconstruct`, but for inconsistent shares, which are marked.

    Guarantees:
        A value with at most e wrong shares is right, and they are marked.
        With just degree + 1 shares every value counts as consistent.
    """
    points = _check(field, shares, degree)
    values = _interpolate(field, shares, points[: degree + 1], scale)
    consistent = ~_inconsistent(field, shares, points, degree)
    wrong = {point: np.zeros(len(values), np.bool_) for point in points}
    for suspects in _suspects(points, degree):
        bad = np.flatnonzero(~consistent)
        if bad.size == 0:
            break
        rest = tuple(point for point in points if point not in suspects)
        tried = {point: shares[point][bad] for point in rest}
        healed = ~_inconsistent(field, tried, rest, degree)
        at = bad[healed]
        right = {point: words[healed] for point, words in tried.items()}
        values[at] = _interpolate(field, right, rest[: degree + 1], scale)
        consistent[at] = True
        for point in suspects:
            wrong[point][at] = True
    return OpenedEach(values=values, consistent=consistent, wrong=wrong)


def _check(field: MersenneField, shares: Mapping[int, Words], degree: int) -> tuple[int, ...]:
    """Refuse shares that cannot be opened; give the holders in order."""
    points = tuple(sorted(shares))
    if degree < 0 or (points and not 0 < points[0] <= points[-1] < field.modulus):
        message = f"degree={degree} must be 0 or more and holders {points} at least 1"
        raise SharingError(message)
    if len(points) <= degree:
        message = f"shares must be at least {degree + 1} for degree {degree}, got {len(points)}"
        raise TooFewSharesError(message)
    if len({words.shape for words in shares.values()}) != 1:
        message = f"shares must have one length, got {[len(shares[point]) for point in points]}"
        raise SharingError(message)
    return points


def _suspects(points: tuple[int, ...], degree: int) -> Iterator[tuple[int, ...]]:
    """List the sets of holders that may be wrong, the smallest first."""
    for size in range(1, (len(points) - degree - 1) // 2 + 1):
        yield from combinations(points, size)


def _find_liars(
    field: MersenneField, shares: Mapping[int, Words], points: tuple[int, ...], degree: int
) -> tuple[int, ...]:
    for suspects in _suspects(points, degree):
        rest = tuple(point for point in points if point not in suspects)
        if not _inconsistent(field, shares, rest, degree).any():
            return suspects
    message = (
        f"shares of holders {points} lie on no polynomial of degree {degree}, "
        "and who is wrong cannot be told"
    )
    raise InconsistentSharesError(message)


def _interpolate(
    field: MersenneField, shares: Mapping[int, Words], points: tuple[int, ...], scale: int
) -> Words:
    """Evaluate at 0 the polynomial through as many points as it needs."""
    weights, denominator = _lagrange(points)
    rows = [shares[point] for point in points]
    return arithmetic.weighted_sum(field, rows, weights, field.inverse(denominator * scale))


def _inconsistent(
    field: MersenneField, shares: Mapping[int, Words], points: tuple[int, ...], degree: int
) -> Flags:
    """Tell at which positions the shares of `points` lie on no polynomial."""
    rows = [shares[point] for point in points]
    return arithmetic.nonzero_sums(field, rows, _syndromes(points, degree))


@cache
def _lagrange(points: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """Give integers w and D: f(0) = sum of w_j f(j), over D."""
    return _over_common_denominator(
        [prod((Fraction(i, i - j) for i in points if i != j), start=Fraction(1)) for j in points]
    )


@cache
def _syndromes(points: tuple[int, ...], degree: int) -> tuple[tuple[int, ...], ...]:
    """Give the weights of the sums that vanish on polynomials: j^e / prod_{i != j} (j - i).

    They are a basis of the code dual to the Reed-Solomon code of the shares.
    """
    dual = [Fraction(1, prod(j - i for i in points if i != j)) for j in points]
    powers = [
        [weight * j**e for weight, j in zip(dual, points, strict=True)]
        for e in range(len(points) - degree - 1)
    ]
    return tuple(_over_common_denominator(row)[0] for row in powers)


def _over_common_denominator(fractions: Sequence[Fraction]) -> tuple[tuple[int, ...], int]:
    denominator = lcm(*(fraction.denominator for fraction in fractions))
    return tuple(int(fraction * denominator) for fraction in fractions), denominator
