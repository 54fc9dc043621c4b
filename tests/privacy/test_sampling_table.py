import math

import mpmath  # type: ignore[import-untyped]  # no types
import numpy as np
import pytest

from privacy import plain_sampling
from privacy.discrete_gaussian import MAX_DISTANCE
from privacy.errors import PrivacyError
from privacy.sampling_table import MAX_STDDEV, MIN_STDDEV, SamplingTable, sampling_table
from tests.looped import looped

STDDEVS = (0.0625, 0.3, 0.5, 0.7, 1.0, 3.0, 17.3, 31.999)
STEPPED = (32.0, 40.5, 63.9, 64.0, 150.0)


def exact_weights(stddev: float, stop: int) -> list[mpmath.mpf]:
    """e^(-x^2 / 2 s^2) for x = 0 .. stop - 1, to 40 digits."""
    square = 2 * mpmath.mpf(stddev) ** 2
    return [mpmath.exp(-mpmath.mpf(x * x) / square) for x in range(stop)]


def implied_weights(table: SamplingTable) -> list[mpmath.mpf]:
    """The probability that an attempt gives x = 0, 1, .., from the very integers in use."""
    ends = [0, *(int(threshold) for threshold in table.thresholds), 1 << 64]
    steps = 1 << int(table.step_bits)
    fractions = (np.arange(steps, dtype=np.uint64) << table.fraction_shift) << np.uint64(1)
    weights = []
    for k, slope in enumerate(table.slopes):
        slopes = np.full(steps, slope)
        accepted = plain_sampling.acceptance(fractions, slopes, table.curvature, table.exps)
        share = mpmath.mpf(ends[k + 1] - ends[k]) / (1 << 64) / steps / 2
        weights += [share * int(words) / (1 << 63) for words in accepted]
    return weights


def distance(weights: list[mpmath.mpf], exact: list[mpmath.mpf]) -> mpmath.mpf:
    """Total variation distance of two symmetric distributions with such weights of x >= 0."""
    exact_total = 2 * sum(exact) - exact[0]
    total = 2 * sum(weights) - weights[0]
    padded = weights + [mpmath.mpf(0)] * (len(exact) - len(weights))
    terms = [abs(w / total - e / exact_total) for w, e in zip(padded, exact, strict=True)]
    return (2 * sum(terms) - terms[0]) / 2


@looped("stddev", [*STDDEVS, *STEPPED])
def test_the_integers_stay_within_the_stated_distance(stddev: float) -> None:
    with mpmath.workdps(40):
        weights = implied_weights(sampling_table(stddev))
        exact = exact_weights(stddev, max(len(weights), math.ceil(14 * stddev)))
        assert distance(weights, exact) < MAX_DISTANCE


@pytest.mark.parametrize("stddev", [0.7, 40.5])
def test_another_standard_deviation_would_be_seen(stddev: float) -> None:
    with mpmath.workdps(40):
        weights = implied_weights(sampling_table(stddev))
        exact = exact_weights(stddev * (1 + 2.0**-40), math.ceil(14 * stddev))
        assert distance(weights, exact) > MAX_DISTANCE


@looped("stddev", [*STEPPED, 1e4, 2.0**20, 1.999 * 2.0**30, MAX_STDDEV])
def test_exponents_of_large_deviations_are_within_the_stated_error(stddev: float) -> None:
    table = sampling_table(stddev)
    bits, last = int(table.step_bits), len(table.slopes) - 1
    generator = np.random.default_rng(0)
    with mpmath.workdps(40):
        for k in (0, 1, last // 2, last):
            offsets = np.array([0, 1, (1 << bits) - 1, *generator.integers(0, 1 << bits, 20)])
            fractions = (offsets.astype(np.uint64) << table.fraction_shift) << np.uint64(1)
            slopes = np.full(len(offsets), table.slopes[k])
            accepted = plain_sampling.acceptance(fractions, slopes, table.curvature, table.exps)
            for u, word in zip(offsets.tolist(), accepted.tolist(), strict=True):
                numerator = mpmath.mpf(u) * (u + (2 * k << bits))
                probability = mpmath.exp(-numerator / (2 * mpmath.mpf(stddev) ** 2))
                assert abs(mpmath.mpf(word) / (1 << 63) - probability) < 2.0**-61


@looped("stddev", [*STDDEVS, *STEPPED, 2.0**20, MAX_STDDEV])
def test_tables_are_small_and_reach_far_enough(stddev: float) -> None:
    table = sampling_table(stddev)
    assert len(table.slopes) == len(table.thresholds) + 1 <= 320
    assert table.largest <= 10 * stddev + 1
    assert table.largest >= 8 * stddev - 1
    np.testing.assert_array_equal(np.sort(table.thresholds), table.thresholds)
    steps = 2.0 ** int(table.step_bits)
    assert steps == 1 if stddev < 32 else 16 <= stddev / steps < 32


def test_most_attempts_are_accepted() -> None:
    for stddev in (*STDDEVS, *STEPPED):
        table = sampling_table(stddev)
        weights = implied_weights(table)
        least = 0.95 if stddev >= 32 else 0.7 if stddev >= 1 else 0.5
        assert 2 * sum(weights) - weights[0] >= least
        assert stddev >= 1 or len(table.slopes) < 20


def test_the_guide_never_skips_a_step() -> None:
    for stddev in (0.7, 20.0, 1e6):
        table = sampling_table(stddev)
        for byte, step in enumerate(table.guide.tolist()):
            low = byte << 56
            assert step == sum(int(threshold) <= low for threshold in table.thresholds)


@looped("stddev", [0.0, -1.0, MIN_STDDEV / 2, MAX_STDDEV * 2, math.inf, math.nan])
def test_deviations_out_of_range_are_refused(stddev: float) -> None:
    with pytest.raises(PrivacyError, match="stddev="):
        sampling_table(stddev)
