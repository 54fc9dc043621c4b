"""The wrap-around test: shows that no squared norm has gone around the field.

Everything else that is opened is a square mod p, and a vector of norm far above sqrt(p) can have a
small one: four elements of (p + 1) / 2 add 1 to it. A random signed sum of a sketch's words is
small for a short vector and, for any vector whose squared norm is p or more, larger than a bound
below sqrt(p) / 11 with a probability of at least a half, whatever is added to it. K such sums are
opened for each group of members; where a group fails, K for each of its members.

References: Rothblum et al. (2023), arXiv:2311.10237 (PINE), Section 4.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from security.secret_sharing.arithmetic import add_into, signed_sum
from security.secret_sharing.field import Words
from security.shared_round.opening.coins import Coin
from security.shared_round.terms.bounds import SKETCH_COPIES
from security.shared_round.terms.parameters import RoundParameters

_GROUPS_USE: Final = "wrap groups"
_GROUP_SIGNS_USE: Final = "wrap signs"
_BLAME_SIGNS_USE: Final = "blame signs"
_BLAME_MASK_SIGNS_USE: Final = "blame mask signs"


def wrap_groups(params: RoundParameters, coin: Coin, num_members: int) -> list[tuple[int, ...]]:
    """Deal the members to the groups of the test, at random.

    Returns:
        ceil(m / g) groups of positions, each ascending, of sizes that differ by at most one.
    """
    num_groups = -(-num_members // params.wrap_group)
    return coin.groups(_GROUPS_USE, range(num_members), num_groups)


def group_part(
    params: RoundParameters, coin: Coin, position: int, sketches: Words, masks: Words
) -> Words:
    """Compute a member's part of its group's scalars: <R_j, y> + mask_j.

    Args:
        params: the round.
        coin: of the frozen set.
        position: of the member.
        sketches: (copies, sketch_dim); test j sees copy j mod copies.
        masks: (wrap_tests,), the member's group masks.

    Returns:
        (wrap_tests,): add those of a group's members.
    """
    signs = coin.signs(_GROUP_SIGNS_USE, position, (params.wrap_tests, params.sketch_dim))
    scalars = _signed_sketches(params, sketches, signs)
    add_into(params.field, scalars, masks)
    return scalars


def blame_part(
    params: RoundParameters, coin: Coin, position: int, sketches: Words, masks: Words
) -> Words:
    """Compute a member's own scalars: <R'_j, y> + <R''_j, group masks> + blame mask_j.

    Group masks are tested too, so that a member who spoiled its group by them is found.

    Args:
        params: the round.
        coin: of the frozen set.
        position: of the member.
        sketches: (copies, sketch_dim).
        masks: (2 * wrap_tests,), the member's group masks, then its blame masks.
    """
    tests = params.wrap_tests
    signs = coin.signs(_BLAME_SIGNS_USE, position, (tests, params.sketch_dim))
    scalars = _signed_sketches(params, sketches, signs)
    signs = coin.signs(_BLAME_MASK_SIGNS_USE, position, (tests, tests))
    add_into(params.field, scalars, signed_sum(params.field, masks[np.newaxis, :tests], signs))
    add_into(params.field, scalars, masks[tests:])
    return scalars


def _signed_sketches(params: RoundParameters, sketches: Words, signs: NDArray[np.int8]) -> Words:
    """Sum each copy's words under the signs of the tests that see it."""
    scalars = np.empty(params.wrap_tests, dtype=np.uint64)
    for copy in range(SKETCH_COPIES):
        rows = sketches[copy : copy + 1]
        scalars[copy::SKETCH_COPIES] = signed_sum(params.field, rows, signs[copy::SKETCH_COPIES])
    return scalars
