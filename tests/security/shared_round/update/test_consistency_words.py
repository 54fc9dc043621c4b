"""What a device shares beside its update."""

import math

import numpy as np
import pytest

from security.errors import SharingError
from security.secret_sharing.fixed_point import centered
from security.shared_round.terms.parameter_facts import Checks, ShareFormat
from security.shared_round.update.consistency_words import (
    extras_layout,
    gaussians,
    make_extras,
    slack_bits,
    slack_weights,
)
from tests.looped import looped
from tests.security.shared_round.shared_vectors import parameters, secure_bytes


@looped("bound", [1, 2, 3, 5, 8, 13, 22])
def test_slack_bits_write_every_slack_and_sums_of_weights_nothing_else(bound: int) -> None:
    weights = slack_weights(bound)
    for squared in range(bound**2 + 1):
        bits = slack_bits(bound, squared)
        assert set(bits) <= {0, 1}
        assert squared + sum(b * w for b, w in zip(bits, weights, strict=True)) == bound**2
    reachable = {0}
    for weight in weights:
        reachable |= {total + weight for total in reachable}
    assert reachable == set(range(bound**2 + 1))


@pytest.mark.parametrize("squared", [-1, 26])
def test_a_squared_norm_out_of_range_has_no_bits(squared: int) -> None:
    with pytest.raises(SharingError, match=r"0\.\.norm_bound\*\*2=25"):
        slack_bits(5, squared)


@pytest.mark.parametrize("format_", list(ShareFormat))
def test_the_layout_covers_the_extras_in_order(format_: ShareFormat) -> None:
    params = parameters(format=format_)
    layout = extras_layout(params)
    covered = list(range(*layout.slack_bits.indices(params.length)))
    covered += [] if layout.consistency_mask is None else [layout.consistency_mask]
    covered += range(*layout.group_masks.indices(params.length))
    covered += range(*layout.blame_masks.indices(params.length))
    assert covered == list(range(params.dim, params.length))
    assert len(make_extras(params, 0, secure_bytes(1))) == params.num_extras


def test_without_checks_there_are_no_extras() -> None:
    assert len(make_extras(parameters(checks=Checks.SUM), 0, secure_bytes(1))) == 0


def test_masks_have_the_deviations_of_the_parameters() -> None:
    params = parameters(wrap_tests=256, clip_norm=0.1)
    drawn = [make_extras(params, 0, secure_bytes(seed)) for seed in range(40)]
    layout = extras_layout(params)
    for part, factor in (
        (layout.group_masks, math.sqrt(params.wrap_group)),
        (layout.blame_masks, 1.0),
    ):
        where = slice(part.start - params.dim, part.stop - params.dim)
        masks = np.concatenate([centered(words[where], params.field) for words in drawn])
        expected = params.mask_scale * params.norm_bound / factor
        # 10 240 draws: the deviation's own relative error is 0.7 %; five of those.
        assert np.std(masks) == pytest.approx(expected, rel=0.035)
        assert abs(np.mean(masks)) < 5 * expected / math.sqrt(len(masks))


def test_gaussians_have_gaussian_tails() -> None:
    draws = gaussians(200_001, secure_bytes(7))
    assert len(draws) == 200_001
    for bound, outside in ((1.0, 0.3173), (2.0, 0.0455), (3.0, 0.0027)):
        expected = outside * len(draws)
        found = np.count_nonzero(np.abs(draws) > bound)
        assert abs(found - expected) < 5 * math.sqrt(expected)
    assert abs(np.corrcoef(draws[:100_000], draws[100_000:200_000])[0, 1]) < 0.016


def test_consistency_masks_are_field_elements_of_full_width() -> None:
    params = parameters()
    layout = extras_layout(params)
    assert layout.consistency_mask is not None
    place = layout.consistency_mask - params.dim
    masks = [int(make_extras(params, 0, secure_bytes(seed))[place]) for seed in range(64)]
    assert len(set(masks)) == 64
    assert max(masks) < params.field.modulus
    assert sum(mask >> 60 for mask in masks) in range(12, 53)  # five deviations around 32
