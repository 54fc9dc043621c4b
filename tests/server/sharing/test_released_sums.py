"""What released sums tell of the noise in them."""

import math
from dataclasses import replace

import pytest

from security.shared_round.opening.sum_opening import OpenedSums
from server.sharing.released_sums import ReleasedSums
from tests.security.shared_round.sealed_round import make_round


@pytest.mark.parametrize(
    ("dealers", "in_sum", "guaranteed"), [(0, 0, 0), (3, 3, 1), (4, 4, 2), (5, 5, 3)]
)
def test_noise_adds_up_and_colluding_dealers_take_theirs_out(
    dealers: int, in_sum: int, guaranteed: int
) -> None:
    params = replace(
        make_round(),
        staleness_weights=(1,),
        noise_dealers=dealers,
        noise_stddev=1000 if dealers else 0,
    )
    released = ReleasedSums(
        params=params, opened=OpenedSums(sums=(), liars=()), weights=(), excluded=(), members=0
    )
    assert released.noise_stddev == pytest.approx(1000 * math.sqrt(in_sum))
    assert released.guaranteed_noise_stddev == pytest.approx(1000 * math.sqrt(guaranteed))
