"""What a share holder computes from its shares once the coin is known.

Everything is a share of a value that is opened: of degree t - 1 where it is linear in the devices'
vectors, of degree 2 (t - 1), with a sharing of zero added, where it is a product.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from security.errors import SharingError
from security.secret_sharing.arithmetic import add_into, dot, multiply
from security.secret_sharing.expansion import expand_words
from security.secret_sharing.field import Words
from security.secret_sharing.modular_products import products
from security.secret_sharing.replicated_keys import ReplicatedKeys
from security.shared_round.opening.coins import Coin
from security.shared_round.opening.vector_scan import ScannedShare, ShareVector, VectorScan
from security.shared_round.opening.wrap_around import blame_part, group_part, wrap_groups
from security.shared_round.terms.parameters import RoundParameters
from security.shared_round.update.consistency_words import extras_layout, slack_weights

__all__ = [
    "OpeningValues",
    "ShareVector",
    "compute_blame",
    "compute_openings",
    "member_pairs",
    "opening_sizes",
    "sum_shares",
]

_BIT_FACTORS_USE: Final = "slack bits"
_NORM_LABEL: Final = b"fedagg/zero/norms/1\x00"
_DISTANCE_LABEL: Final = b"fedagg/zero/distances/1\x00"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OpeningValues:
    """One holder's shares of everything that is opened, or the numbers of them.

    Attributes:
        consistency: (m,), <r, vector> of each member; empty without the mask.
        norms: (m,), 0 where the norm holds.
        wraps: (groups * wrap_tests,), group by group.
        distances: (m (m - 1) / 2,), pairs (0, 1), (0, 2), (1, 2), (0, 3), ...; empty without them.
    """

    consistency: Words
    norms: Words
    wraps: Words
    distances: Words


def opening_sizes(params: RoundParameters, num_members: int) -> tuple[int, int, int, int]:
    """Count the words of `OpeningValues`, in the order of its attributes."""
    if not params.is_checked:
        return 0, 0, 0, 0
    groups = -(-num_members // params.wrap_group)
    return (
        num_members if params.has_consistency_mask else 0,
        num_members,
        groups * params.wrap_tests,
        num_members * (num_members - 1) // 2 if params.has_distances else 0,
    )


def member_pairs(num_members: int) -> tuple[np.ndarray, np.ndarray]:
    """List the pairs of positions a < b in the order of the opened distances: (a's, b's)."""
    later, earlier = np.tril_indices(num_members, -1)
    return earlier, later


def compute_openings(
    params: RoundParameters,
    coin: Coin,
    set_sha256: bytes,
    vectors: Sequence[ShareVector],
    keys: ReplicatedKeys,
) -> OpeningValues:
    """Compute a holder's shares of what the round's checks open.

    Args:
        params: the round.
        coin: of the frozen set.
        set_sha256: the frozen set.
        vectors: the holder's share of each member's vector, in the set's order; each read once.
        keys: the holder's.

    Returns:
        All empty in rounds without checks.

    Raises:
        SharingError: if a vector has another length, or a key is missing.

    Guarantees:
        The same bytes whenever it is called. Any t - 1 holders learn nothing from the others'
        values beyond what they open to.

    Cost: per member and word two inner products and two signed additions; m^2 products of sketches
        with distances. Memory: the sketches and one chunk.
    """
    if not params.is_checked:
        empty = np.zeros(0, dtype=np.uint64)
        return OpeningValues(consistency=empty, norms=empty, wraps=empty, distances=empty)
    scan = VectorScan(params, coin)
    norm_check = _NormCheck(params, coin)
    masks = extras_layout(params).group_masks
    group_masks = slice(masks.start - params.dim, masks.stop - params.dim)
    groups = wrap_groups(params, coin, len(vectors))
    group_of = {position: i for i, members in enumerate(groups) for position in members}
    wraps = np.zeros((len(groups), params.wrap_tests), dtype=np.uint64)
    consistency, norms, sketches = [], [], []
    for position, vector in enumerate(vectors):
        share = scan.scan(vector)
        consistency.append(share.consistency)
        norms.append(norm_check.value(share))
        part = group_part(params, coin, position, share.sketches, share.extras[group_masks])
        add_into(params.field, wraps[group_of[position]], part)
        if params.has_distances:
            sketches.append(share.sketches.reshape(-1))
    context = set_sha256 + coin.sha256
    return OpeningValues(
        consistency=_words(consistency if params.has_consistency_mask else []),
        norms=_blinded(params, keys, _NORM_LABEL + context, _words(norms)),
        wraps=wraps.reshape(-1),
        distances=_blinded(params, keys, _DISTANCE_LABEL + context, _distances(params, sketches)),
    )


def compute_blame(
    params: RoundParameters, coin: Coin, members: Sequence[int], vectors: Sequence[ShareVector]
) -> Words:
    """Compute a holder's shares of the wrap-around tests of single members.

    The members' own masks hide them; no keys are needed.

    Args:
        params: a round with checks.
        coin: of the frozen set.
        members: positions in the set, as the verdict's `suspects` lists them.
        vectors: the holder's share of the vector of each of those; each read once.

    Returns:
        (len(members) * wrap_tests,), member by member.

    Raises:
        SharingError: if a vector has another length.
    """
    scan = VectorScan(params, coin, is_blame=True)
    layout = extras_layout(params)
    masks = slice(layout.group_masks.start - params.dim, layout.blame_masks.stop - params.dim)
    parts = []
    for position, vector in zip(members, vectors, strict=True):
        share = scan.scan(vector)
        parts.append(blame_part(params, coin, position, share.sketches, share.extras[masks]))
    return np.concatenate(parts) if parts else _words([])


def sum_shares(
    params: RoundParameters,
    vectors: Sequence[tuple[ShareVector, int]],
    sums: Sequence[Sequence[int]],
) -> list[Words]:
    """Add up a holder's shares of updates.

    Args:
        params: the round.
        vectors: for each position in the frozen set, or up to the last that is summed, the
            holder's share and the update's public weight. Those in no sum are not read.
        sums: the positions of each sum.

    Returns:
        For each sum (dim,), without the extras; times the format's `share_scale`.

    Raises:
        SharingError: if a vector has fewer words than the update.
    """
    totals = []
    for members in sums:
        total = np.zeros(params.dim, dtype=np.uint64)
        for position in members:
            vector, weight = vectors[position]
            _add_update(params, total, vector, weight)
        totals.append(total)
    return totals


def _add_update(params: RoundParameters, total: Words, vector: ShareVector, weight: int) -> None:
    done = 0
    for start, words in vector.chunks():
        update = words[: max(params.dim - start, 0)]
        if start != done:
            message = f"chunk at {start} must begin at {done}"
            raise SharingError(message)
        done += len(words)
        add_into(params.field, total[start : start + len(update)], update, weight)
        if done >= params.dim:
            return
    message = f"a share must have {params.length} words, got {done}"
    raise SharingError(message)


class _NormCheck:
    """|x|^2 + sum w_b bit_b - Q^2 + rho sum gamma_b (bit_b^2 - bit_b), times the square of scale.

    It opens to 0 if each bit is 0 or 1 and |x| <= Q, and else with probability 2 / p.
    """

    def __init__(self, params: RoundParameters, coin: Coin) -> None:
        self._field = params.field
        self._scale = params.sharing.share_scale
        self._square_bound = params.norm_bound**2
        weights = [params.field.reduce(weight) for weight in slack_weights(params.norm_bound)]
        self._weights = np.array(weights, dtype=np.uint64)
        count = params.num_slack_bits
        factors = expand_words(coin.key(_BIT_FACTORS_USE), params.field, count + 1)
        self._gamma, self._rho = factors[:count], int(factors[count])

    def value(self, share: ScannedShare) -> int:
        """Compute a share of it."""
        field, scale = self._field, self._scale
        bits = share.extras[: len(self._weights)]
        slack = dot(field, self._weights, bits) * scale
        squares = dot(field, self._gamma, multiply(field, bits, bits))
        bit_check = self._rho * (squares - scale * dot(field, self._gamma, bits))
        return field.reduce(share.square + slack - scale**2 * self._square_bound + bit_check)


def _distances(params: RoundParameters, sketches: Sequence[Words]) -> Words:
    """Compute |y_a - y_b|^2 of all pairs from shares of the sketches y."""
    if not sketches:
        return _words([])
    modulus = np.uint64(params.field.modulus)
    inner = products(params.field, np.stack(sketches))
    earlier, later = member_pairs(len(sketches))
    squares = np.diagonal(inner)
    negated = modulus - inner[earlier, later]
    # Four numbers of at most p < 2^61 stay below 2^63.
    distances: Words = (squares[earlier] + squares[later] + negated + negated) % modulus
    return distances


def _blinded(params: RoundParameters, keys: ReplicatedKeys, label: bytes, values: Words) -> Words:
    """Add a sharing of zero: without it a product's polynomial tells more than its value."""
    blinded = values.copy()
    add_into(params.field, blinded, keys.zero_share(params.field, label, len(values)))
    return blinded


def _words(values: Sequence[int]) -> Words:
    return np.array(values, dtype=np.uint64)
