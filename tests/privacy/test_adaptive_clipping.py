import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.adaptive_clipping import (
    AdaptiveClipping,
    default_count_stddev,
    update_noise_multiplier,
)
from privacy.errors import PrivacyError
from privacy.keystream import derive_key
from tests.looped import looped

KEY = bytes(32)


def fraction(adaptive: AdaptiveClipping, num_within: int, key: bytes = KEY) -> float:
    return adaptive.noisy_fraction(
        num_within=num_within, num_updates=100, expected_updates=100.0, key=key
    )


@pytest.mark.parametrize("target", [0.5, 0.9])
def test_the_norm_converges_to_the_quantile(target: float) -> None:
    generator = np.random.default_rng(7)
    adaptive = AdaptiveClipping(count_stddev=5.0, target_quantile=target)
    norm, tail = 0.01, []
    for number in range(300):
        norms = np.exp(generator.standard_normal(100) * 0.5)
        within = int((norms <= norm).sum())
        norm = adaptive.next_norm(norm, fraction(adaptive, within, derive_key(KEY, b"t", number)))
        if number >= 150:
            tail.append(norm)
    quantile = {0.5: 1.0, 0.9: math.exp(0.5 * 1.2815515655)}[target]
    # It wanders around the quantile: by some 3 % a step, averaged over 150 rounds.
    assert float(np.mean(np.log(tail))) == pytest.approx(math.log(quantile), abs=0.06)


def test_the_count_is_that_of_the_formula_plus_its_noise() -> None:
    adaptive = AdaptiveClipping(count_stddev=4.0)
    fractions = [fraction(adaptive, 60, derive_key(KEY, b"c", i)) for i in range(4000)]
    # (sum of b - 1/2) / m + 1/2 = (60 - 50) / 100 + 1/2; the noise is 4 / 100.
    assert np.mean(fractions) == pytest.approx(0.6, abs=5 * 0.04 / math.sqrt(4000))
    assert np.std(fractions) == pytest.approx(0.04, rel=0.06)
    assert np.std(fractions) != pytest.approx(0.04 * 1.2, rel=0.06)
    # Divided by what was expected, not by what came in.
    assert adaptive.noisy_fraction(
        num_within=60, num_updates=100, expected_updates=200.0, key=KEY
    ) == pytest.approx((fraction(adaptive, 60) - 0.5) / 2 + 0.5)


@given(
    st.integers(0, 50), st.integers(0, 50), st.floats(0.5, 100), st.binary(min_size=32, max_size=32)
)
def test_the_share_is_between_0_and_1(within: int, beyond: int, stddev: float, key: bytes) -> None:
    share = AdaptiveClipping(count_stddev=stddev).noisy_fraction(
        num_within=within, num_updates=within + beyond, expected_updates=10.0, key=key
    )
    assert 0.0 <= share <= 1.0


@given(st.floats(1e-6, 1e6), st.floats(0, 1))
def test_the_norm_moves_geometrically_within_its_bounds(norm: float, share: float) -> None:
    adaptive = AdaptiveClipping(count_stddev=1.0, min_norm=1e-3, max_norm=1e3)
    moved = adaptive.next_norm(norm, share)
    expected = norm * math.exp(-0.2 * (share - 0.9))
    assert moved == pytest.approx(min(max(expected, 1e-3), 1e3), rel=1e-14)


@given(st.floats(0.01, 50), st.floats(1.001, 1000))
def test_the_split_keeps_the_total(multiplier: float, ratio: float) -> None:
    count_stddev = multiplier * ratio / 2
    split = update_noise_multiplier(multiplier, count_stddev=count_stddev)
    assert split > multiplier
    total = (split**-2 + (2 * count_stddev) ** -2) ** -0.5
    # Near the limit the difference of squares loses digits: 1 / (ratio - 1) of them.
    assert total == pytest.approx(multiplier, rel=1e-11)


def test_the_split_has_the_figures_of_the_paper() -> None:
    # z = 1.417 with a cohort of 100: one percent more noise.
    assert update_noise_multiplier(1.417, count_stddev=5.0) == pytest.approx(
        1.417 * 1.0102, rel=1e-4
    )


@pytest.mark.parametrize("multiplier", [2.0, 3.0, 0.0, -1.0, math.nan])
def test_a_split_that_is_not_possible_is_refused(multiplier: float) -> None:
    with pytest.raises(PrivacyError, match="noise_multiplier"):
        update_noise_multiplier(multiplier, count_stddev=1.0)


def test_the_joint_sensitivity_is_that_of_one_mechanism() -> None:
    # One device moves the updates' sum by C and the count by 1/2: search the pairs for more.
    multiplier, count_stddev = 1.3, 2.0
    split = update_noise_multiplier(multiplier, count_stddev=count_stddev)
    worst = max(
        (share / split) ** 2 + (bit / count_stddev) ** 2
        for share in np.linspace(0, 1, 21)
        for bit in (-0.5, 0.5)
    )
    assert worst == pytest.approx(multiplier**-2, rel=1e-12)
    assert worst <= multiplier**-2 * (1 + 1e-14)
    # Without the split more than was charged would be spent.
    assert multiplier**-2 + (0.5 / count_stddev) ** 2 > multiplier**-2 * 1.05


def test_the_default_count_noise_is_a_twentieth_of_the_cohort() -> None:
    assert default_count_stddev(100.0) == 5.0
    AdaptiveClipping(count_stddev=default_count_stddev(1e-9))


@looped(
    "arguments, message",
    [
        ({"count_stddev": 0.0}, "count_stddev=0.0"),
        ({"count_stddev": math.nan}, "count_stddev=nan"),
        ({"target_quantile": 0.0}, "target_quantile=0.0"),
        ({"target_quantile": 1.0}, "target_quantile=1.0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"learning_rate": 11.0}, "learning_rate=11.0"),
        ({"min_norm": 2.0, "max_norm": 1.0}, "min_norm=2.0"),
        ({"min_norm": 0.0}, "min_norm=0.0"),
    ],
)
def test_settings_out_of_range_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(PrivacyError, match=message):
        AdaptiveClipping(**{"count_stddev": 1.0} | arguments)


def test_arguments_out_of_range_are_refused() -> None:
    adaptive = AdaptiveClipping(count_stddev=1.0)
    with pytest.raises(PrivacyError, match="num_within=101"):
        fraction(adaptive, 101)
    with pytest.raises(PrivacyError, match="expected_updates=0"):
        adaptive.noisy_fraction(num_within=0, num_updates=0, expected_updates=0.0, key=KEY)
    with pytest.raises(PrivacyError, match="clip_norm=0"):
        adaptive.next_norm(0.0, 0.5)
    with pytest.raises(PrivacyError, match=r"fraction=1\.5"):
        adaptive.next_norm(1.0, 1.5)
