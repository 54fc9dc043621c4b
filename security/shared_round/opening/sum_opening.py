"""Opening a round's sums, and telling that they can be what they claim to be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from security.errors import InconsistentSharesError, SharingError, TooFewSharesError
from security.secret_sharing.field import Words
from security.secret_sharing.fixed_point import centered
from security.secret_sharing.reconstruction import reconstruct
from security.shared_round.terms import bounds
from security.shared_round.terms.parameters import RoundParameters


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OpenedSums:
    """What a round publishes.

    Attributes:
        sums: each (dim,), int64, in units of 2^-fraction_bits.
        liars: holders with a wrong share, ascending.
    """

    sums: tuple[NDArray[np.int64], ...]
    liars: tuple[int, ...]


def open_sums(
    params: RoundParameters, shares: Mapping[int, Sequence[Words]], *, weights: Sequence[int]
) -> OpenedSums:
    """Open the sums of a selection.

    Args:
        params: the round.
        shares: by holder, its share of each sum, (dim,), as `sum_shares` gives them.
        weights: of each sum, the sum of its members' weights: their number, where all are 1.

    Raises:
        TooFewSharesError: with fewer than t holders.
        InconsistentSharesError: if shares are wrong and whose cannot be told, or a sum is longer
            than its members and honest noise could make it together: with t shares only, that is
            all that can be seen of a lie, and it is all that is seen of dealers that deal something
            else than noise.
        SharingError: if numbers or lengths differ.

    Guarantees:
        With t shares and all of them right, the exact integer sums, each with what its dealers
        dealt. With up to (m - t) // 2 wrong ones of m, the same sums, and the liars' names.

    Cost: one pass over each sum and each holder's share.
    """
    _require_shares(params, shares, num_sums=len(weights))
    liars: set[int] = set()
    sums = []
    for index, weight in enumerate(weights):
        opened = reconstruct(
            params.field,
            {holder: shares[holder][index] for holder in sorted(shares)},
            degree=params.threshold - 1,
            scale=params.sharing.share_scale,
        )
        liars.update(opened.liars)
        total = centered(opened.values, params.field)
        _check_plausible(params, index, total, weight * params.norm_bound)
        sums.append(total)
    return OpenedSums(sums=tuple(sums), liars=tuple(sorted(liars)))


def _require_shares(
    params: RoundParameters, shares: Mapping[int, Sequence[Words]], *, num_sums: int
) -> None:
    if len(shares) < params.threshold:
        message = f"shares of {len(shares)} holders must be at least threshold={params.threshold}"
        raise TooFewSharesError(message)
    for holder, vectors in shares.items():
        lengths = [len(words) for words in vectors]
        if lengths != [params.dim] * num_sums:
            message = f"shares of holder {holder} must be {num_sums} of {params.dim} words,"
            message += f" got {lengths}"
            raise SharingError(message)


def _check_plausible(
    params: RoundParameters, index: int, total: NDArray[np.int64], bound: int
) -> None:
    """Refuse a sum longer than its weight times Q, by the triangle inequality, and its noise."""
    stddev, dealers = params.noise_stddev, params.noise_dealers
    longest = bound + bounds.noise_norm(stddev, dealers=dealers, dim=params.dim)
    largest = bound + bounds.noise_tail(stddev, dealers=dealers)
    values = total.astype(np.float64)
    # Far above float64's rounding of an honest norm, far below what a wrong share makes of it.
    norm = float(np.linalg.norm(values))
    if norm > longest * (1.0 + 2.0**-20):
        message = f"sum {index} has norm {norm:.6g}, more than its members' and the noise's"
        message += f" {longest} together: a share is wrong"
        raise InconsistentSharesError(message)
    largest_found = float(np.abs(values).max(initial=0.0))
    if largest_found > largest * (1.0 + 2.0**-20):
        message = f"sum {index} holds {largest_found:.6g}, more than its members' and the noise's"
        message += f" {largest} together: a share is wrong"
        raise InconsistentSharesError(message)
