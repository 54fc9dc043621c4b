"""Searches for neighbours whose sums, made as the server makes them, exceed the bound."""

import math
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from privacy.clipping import clip_by_norm, l2_norm
from privacy.errors import PrivacyError
from privacy.fixed_point import to_grid
from privacy.rule_sensitivity import RuleShape, of_all, of_selected
from privacy.sensitivity import SensitivityCalibrator
from server.sharing.shared_task import FULL_WEIGHT, staleness_weights
from updates.compression_plan import CompressionPlan, Method, ValueType
from updates.coordinate_maps import linear_map
from updates.topk import top_k
from updates.update_codec import codec_for

Vector = NDArray[np.float32]

MEAN = of_all(RuleShape(rule="mean", num_updates=20))
MULTI_KRUM = of_selected(RuleShape(rule="multi-krum", num_updates=20, num_byzantine=3))


def vectors(count: int, dim: int, clip_norm: float) -> list[Vector]:
    """Draw updates of all kinds, clipped as the server does: dense, sparse, flat and short."""
    rng = np.random.default_rng(23)
    found = []
    for kind in range(count):
        vector = rng.standard_normal(dim)
        if kind % 4 == 1:
            vector *= rng.random(dim) < 0.1
        elif kind % 4 == 2:
            vector = np.sign(vector)
        vector *= clip_norm * 10.0 ** rng.uniform(-2, 2) / max(1e-9, np.linalg.norm(vector))
        found.append(clip_by_norm(vector.astype(np.float32), clip_norm))
    return found


@pytest.mark.parametrize(("clip_norm", "fraction_bits"), [(1.0, 20), (0.1, 4), (3.0, 0)])
def test_no_rounded_update_exceeds_the_integer_bound(clip_norm: float, fraction_bits: int) -> None:
    calibrator = SensitivityCalibrator(clipping_norm=clip_norm, rule=MEAN)
    for dim in (1, 7, 1000):
        bound = calibrator.integer_sensitivity(fraction_bits=fraction_bits, dim=dim)
        updates = vectors(40, dim, clip_norm)
        grid = [to_grid(update, fraction_bits=fraction_bits) for update in updates]
        for device in range(len(grid)):
            zeroed = [integers * (place != device) for place, integers in enumerate(grid)]
            moved = np.sum(grid, axis=0) - np.sum(zeroed, axis=0)
            assert math.sqrt(math.fsum(int(x) ** 2 for x in moved)) <= bound


def test_one_percent_less_would_be_no_bound_of_rounded_updates() -> None:
    # Every coordinate lies halfway between two integers, and rounds to the even one, away from 0.
    dim, halfway = 10_000, 1.5
    clip_norm = halfway * math.sqrt(dim) * (1 + 1e-7)
    update = clip_by_norm(np.full(dim, halfway, np.float32), clip_norm)
    rounded = float(np.linalg.norm(to_grid(update, fraction_bits=0)))
    calibrator = SensitivityCalibrator(clipping_norm=clip_norm, rule=MEAN)
    bound = calibrator.integer_sensitivity(fraction_bits=0, dim=dim)
    assert 0.99 * bound < rounded <= bound
    assert rounded > 1.3 * clip_norm  # clipping alone would be no bound at all


def test_integers_of_a_rule_move_by_its_factor() -> None:
    both = [SensitivityCalibrator(clipping_norm=0.5, rule=rule) for rule in (MEAN, MULTI_KRUM)]
    mean, krum = (each.integer_sensitivity(fraction_bits=20, dim=100) for each in both)
    assert krum == pytest.approx(7 * mean, rel=1e-12)
    assert mean == pytest.approx(0.5 * 2**20 + 5, rel=4e-6)  # and a margin, rounded up
    assert [each.factor for each in both] == [1.0, 7.0]
    assert [each.sum_sensitivity for each in both] == [0.5, 3.5]
    assert [each.num_terms for each in both] == [20, 17]


def test_staleness_weights_scale_the_sum() -> None:
    weights = staleness_weights(6)
    assert max(weights) == FULL_WEIGHT
    in_units = SensitivityCalibrator(
        clipping_norm=1.0, rule=MEAN, largest_weight=float(FULL_WEIGHT)
    )
    bound = in_units.integer_sensitivity(fraction_bits=10, dim=30)
    longest = 0.0
    for update, weight in product(vectors(12, 30, 1.0), weights):
        moved = weight * to_grid(update, fraction_bits=10)
        longest = max(longest, float(np.linalg.norm(moved)))
    assert 0.99 * FULL_WEIGHT * 2**10 < longest <= bound
    # As parts of the full weight, which the sum is divided by, they add nothing.
    assert (
        in_units.factor / FULL_WEIGHT == SensitivityCalibrator(clipping_norm=1.0, rule=MEAN).factor
    )


@pytest.mark.parametrize(("value_type", "largest"), [(ValueType.INT8, 127), (ValueType.INT4, 7)])
def test_quantized_updates_may_exceed_the_clip_norm_but_not_the_bound(
    value_type: ValueType, largest: int
) -> None:
    plan = CompressionPlan(method=Method.DENSE, dim=512, num_values=512, value_type=value_type)
    codec = codec_for(plan, (512,))
    longest = 0.0
    for place, update in enumerate(vectors(40, 512, 1.0)):
        decoded = codec.decode(codec.encode(update, seed=bytes([place])))
        assert isinstance(decoded, np.ndarray)
        # Multiples of the largest magnitude over the largest multiple, or of less: each coordinate
        # moves by less than a step.
        step = float(np.abs(update).max()) / largest
        assert l2_norm(decoded) <= l2_norm(update) + step * math.sqrt(512)
        longest = max(longest, l2_norm(decoded))
        # What the server adds up: whatever it was decoded to, clipped again.
        assert l2_norm(clip_by_norm(decoded, 1.0)) <= 1.0
    assert longest > 1.0


def test_top_k_makes_no_update_longer() -> None:
    for update in vectors(20, 200, 1.0):
        kept = np.zeros_like(update)
        chosen = top_k(update, 20)
        kept[chosen] = update[chosen]
        assert l2_norm(kept) <= 1.0


@pytest.mark.parametrize(
    "plan",
    [
        CompressionPlan(method=Method.RAND_K, dim=200, num_values=20, map_seed=bytes(32)),
        CompressionPlan(method=Method.PROJECTION, dim=200, num_values=20, map_seed=bytes(32)),
    ],
    ids=lambda plan: plan.method.value,
)
def test_common_maps_keep_the_sensitivity(plan: CompressionPlan) -> None:
    shared = linear_map(plan)
    longest = 0.0
    for update in vectors(20, 200, 1.0):
        values = shared.compress(update)
        assert l2_norm(values) <= 1.0 + 1e-6
        # Clipped after it, as the server does, the bound is exact; expanding keeps it.
        clipped = clip_by_norm(values, 1.0)
        assert l2_norm(shared.expand(clipped)) == pytest.approx(l2_norm(clipped), rel=1e-6)
    # Some update loses nothing to the map, so that no less than C would do.
    for place in range(20):
        unit = np.zeros(20, np.float32)
        unit[place] = 1.0
        longest = max(longest, l2_norm(shared.compress(shared.expand(unit))))
    assert longest > 0.99


def test_numbers_out_of_range_are_refused() -> None:
    for clip_norm in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(PrivacyError, match="clipping_norm="):
            SensitivityCalibrator(clipping_norm=clip_norm, rule=MEAN)
    for weight in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(PrivacyError, match="largest_weight="):
            SensitivityCalibrator(clipping_norm=1.0, rule=MEAN, largest_weight=weight)
    calibrator = SensitivityCalibrator(clipping_norm=1.0, rule=MEAN)
    with pytest.raises(PrivacyError, match="fraction_bits=53"):
        calibrator.integer_sensitivity(fraction_bits=53, dim=1)
