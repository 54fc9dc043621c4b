"""From opened sums to a model: mapped back once, and divided by what was fixed in advance."""

from dataclasses import replace
from typing import Final

import numpy as np
import pytest
from numpy.typing import NDArray

from aggregators.errors import AggregationError
from privacy.charge import Charge
from security.shared_round.opening.sum_opening import OpenedSums
from security.shared_round.terms.parameters import RoundParameters
from server.round.candidate import BaseVersion, BuiltModel, build_candidate
from server.round.round_privacy import RoundPrivacy
from server.sharing.released_sums import ReleasedSums
from server.sharing.shared_source import OpenedRound
from tests.security.shared_round.sealed_round import make_round
from tests.server.round.stepping import settings_of
from updates.compression_plan import CompressionPlan, Method
from updates.coordinate_maps import linear_map
from updates.vectors import decode_model, encode_model

DIM: Final = 40
BASE: Final = encode_model({"w": np.zeros(DIM, np.float32)})
PLAN: Final = CompressionPlan(method=Method.PROJECTION, dim=DIM, num_values=10, map_seed=b"m" * 32)
PRIVACY: Final = RoundPrivacy(
    charge=Charge(noise_multiplier=1.0).to_text(),
    clipping_norm=1.0,
    sensitivity=1.0,
    expected_updates=8.0,
)


def params_of(dim: int, *, has_noise: bool) -> RoundParameters:
    params = make_round(dim=dim)
    if not has_noise:
        return params
    return replace(params, noise_dealers=params.quorum, noise_stddev=100, staleness_weights=(1,))


def released(*sums: NDArray[np.int64], has_noise: bool = False) -> ReleasedSums:
    return ReleasedSums(
        params=params_of(len(sums[0]), has_noise=has_noise),
        opened=OpenedSums(sums=sums, liars=()),
        weights=(5,) * len(sums),
        excluded=(),
        members=5 * len(sums),
    )


def step_by(
    opened: ReleasedSums,
    *,
    compression: CompressionPlan | None = None,
    privacy: RoundPrivacy | None = None,
) -> BuiltModel:
    source = OpenedRound(released=opened, compression=compression, privacy=privacy)
    return build_candidate(BaseVersion(model=BASE), source, settings_of())


def weights_of(data: bytes) -> NDArray[np.float32]:
    return decode_model(data)[0]["w"]


def test_the_mean_of_mapped_updates_is_expanded_once() -> None:
    total = np.arange(10, dtype=np.int64) << 20
    built = step_by(released(total), compression=PLAN)
    bits = released(total).params.fraction_bits
    expected = linear_map(PLAN).expand(np.ldexp(total / 5, -bits))
    np.testing.assert_array_equal(weights_of(built.data), expected.astype(np.float32))


@pytest.mark.parametrize("compression", [None, PLAN])
def test_a_private_sum_is_divided_by_what_was_expected(
    compression: CompressionPlan | None,
) -> None:
    total = np.arange(10 if compression else DIM, dtype=np.int64) << 20
    opened = released(total, has_noise=True)
    built = step_by(opened, compression=compression, privacy=PRIVACY)
    expected = np.ldexp(total / 8, -opened.params.fraction_bits)
    if compression is not None:
        expected = linear_map(compression).expand(expected)
    np.testing.assert_array_equal(weights_of(built.data), expected.astype(np.float32))


@pytest.mark.parametrize(("sums", "has_noise"), [(1, False), (2, True)])
def test_a_private_round_without_noise_in_its_one_sum_is_refused(
    sums: int, has_noise: bool
) -> None:
    totals = [np.zeros(DIM, np.int64)] * sums
    with pytest.raises(AggregationError, match="one sum with noise"):
        step_by(released(*totals, has_noise=has_noise), privacy=PRIVACY)
