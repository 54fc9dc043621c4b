import math
import sys
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped]  # no types

from privacy import compiled_sampling, plain_sampling
from privacy import discrete_gaussian as module
from privacy.discrete_gaussian import MAX_STDDEV, discrete_gaussian
from privacy.errors import PrivacyError
from privacy.keystream import Keystream, derive_key
from tests.looped import looped

SIZE = 200_000
STDDEVS = (0.7, 3.0, 50.0, 2.0**20)


def key_of(name: str) -> bytes:
    return derive_key(bytes(32), b"test", name)


def exact_masses(stddev: float, edges: list[int]) -> NDArray[np.float64]:
    """P(x < e_0), P(e_0 <= x < e_1), .., P(e_last <= x)."""
    if stddev > 1000:
        # The Euler-Maclaurin error of the midpoint rule is about 1 / (24 s^2).
        cumulated = stats.norm.cdf([(edge - 0.5) / stddev for edge in edges])
        return np.diff(np.concatenate([[0.0], cumulated, [1.0]]))
    reach = math.ceil(15 * stddev)
    x = np.arange(-reach, reach + 1)
    weights = np.exp(-(x.astype(float) ** 2) / (2 * stddev**2))
    weights /= weights.sum()
    ends = [-reach, *edges, reach + 1]
    return np.array([weights[a + reach : b + reach].sum() for a, b in pairwise(ends)])


def edges_of(stddev: float) -> list[int]:
    """Bins of about equal mass, and of one integer each where the distribution is narrow."""
    if stddev < 20:
        reach = math.floor(3.5 * stddev)
        return list(range(-reach, reach + 2))
    return [round(stddev * quantile) for quantile in stats.norm.ppf(np.arange(1, 60) / 60)]


def p_value(samples: NDArray[np.int64], stddev: float) -> float:
    """Chi-square test of samples against the exact distribution of `stddev`."""
    edges = edges_of(stddev)
    places = np.searchsorted(edges, samples, side="right")
    counts = np.bincount(places, minlength=len(edges) + 1)
    return float(stats.chisquare(counts, exact_masses(stddev, edges) * len(samples)).pvalue)


@pytest.mark.parametrize("stddev", STDDEVS)
def test_samples_have_the_exact_distribution(stddev: float) -> None:
    samples = discrete_gaussian(key_of(f"chi-square {stddev}"), stddev=stddev, size=SIZE)
    assert p_value(samples, stddev) > 1e-3


@looped("factor", [0.97, 1.03])
@looped("stddev", STDDEVS)
def test_a_wrong_scale_fails_the_same_test(stddev: float, factor: float) -> None:
    samples = discrete_gaussian(key_of("control"), stddev=stddev * factor, size=SIZE)
    assert p_value(samples, stddev) < 1e-9


def test_a_rounded_gaussian_fails_the_same_test() -> None:
    rounded = np.rint(np.random.default_rng(0).normal(0, 0.7, SIZE)).astype(np.int64)
    assert p_value(rounded, 0.7) < 1e-9


@pytest.mark.parametrize("stddev", [3.0, 50.0, 1.7 * 2.0**26, 2.0**40, MAX_STDDEV])
def test_variance_mean_and_tails_are_right(stddev: float) -> None:
    scaled = discrete_gaussian(key_of(f"moments {stddev}"), stddev=stddev, size=SIZE) / stddev
    # Standard errors: 1 / sqrt(n), sqrt(2 / n), sqrt(96 / n) of the fourth moment.
    assert abs(scaled.mean()) < 5 / math.sqrt(SIZE)
    assert abs((scaled**2).mean() - 1.0) < 5 * math.sqrt(2 / SIZE)
    assert abs((scaled**4).mean() - 3.0) < 5 * math.sqrt(96 / SIZE)
    half_step = 0.5 / stddev
    for reach in (1.0, 2.0, 3.0, 4.0):
        integer = math.ceil(reach * stddev)
        expected = SIZE * 2 * stats.norm.sf(integer / stddev - half_step)
        count = int((np.abs(scaled) >= integer / stddev).sum())
        assert abs(count - expected) < 5 * math.sqrt(expected) + 1


@pytest.mark.parametrize("stddev", [1.0, 1.7, 30.0])
def test_the_variance_is_the_square_of_the_parameter(stddev: float) -> None:
    x = np.arange(-500, 501).astype(float)
    weights = np.exp(-(x**2) / (2 * stddev**2))
    assert (weights * x**2).sum() / weights.sum() == pytest.approx(stddev**2, rel=1e-6)


def test_signs_and_neighbours_are_independent() -> None:
    samples = discrete_gaussian(key_of("signs"), stddev=1000.0, size=SIZE)
    negative, positive = int((samples < 0).sum()), int((samples > 0).sum())
    assert abs(negative - positive) < 5 * math.sqrt(SIZE)
    scaled = samples / 1000.0
    assert abs((scaled[1:] * scaled[:-1]).mean()) < 5 / math.sqrt(SIZE)
    assert abs((scaled[1:] ** 2 * scaled[:-1] ** 2).mean() - 1) < 5 * math.sqrt(8 / SIZE)


def test_low_bits_are_uniform() -> None:
    samples = discrete_gaussian(key_of("bits"), stddev=2.0**20, size=SIZE)
    counts = np.bincount((samples & 15).astype(np.int64), minlength=16)
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("stddev", [0.5, 3.0, 40.0, 2.0**30])
def test_the_same_key_gives_the_same_samples_compiled_or_not(
    stddev: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = key_of("determinism")
    drawn = []
    for sampler in (compiled_sampling, plain_sampling):
        monkeypatch.setattr(module, "sampler", lambda chosen=sampler: chosen)
        drawn.append(discrete_gaussian(key, stddev=stddev, size=30_000))
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert drawn[0].dtype == np.int64


def test_published_samples_stay_what_they_are() -> None:
    # A coordinator of another version that takes over must draw the same noise.
    samples = discrete_gaussian(bytes(range(32)), stddev=1000.5, size=6)
    words = Keystream(bytes(range(32))).words(30).reshape(-1, 3).tolist()
    kept = [value for value in (reference(*row) for row in words) if value is not None]
    assert samples.tolist() == kept[:6]


def reference(first: int, second: int, third: int) -> int | None:
    """One attempt at standard deviation 1000.5, written with real numbers."""
    stddev, step = 1000.5, 32
    weights = [math.exp(-((k * step) ** 2) / (2 * stddev**2)) for k in range(400)]
    share, k = first / 2.0**64 * sum(weights), 0
    while share >= weights[k]:
        share -= weights[k]
        k += 1
    offset = second % step
    chance = math.exp(-(2 * k * step * offset + offset**2) / (2 * stddev**2))
    if third / 2.0**64 >= chance:
        return None
    magnitude = k * step + offset
    if second >> 63:
        return -magnitude if magnitude else None
    return magnitude


def test_a_smaller_size_gives_the_first_samples() -> None:
    key = key_of("prefix")
    long = discrete_gaussian(key, stddev=77.0, size=20_000)
    for size in (0, 1, 100, 8191, 8192, 19_999):
        np.testing.assert_array_equal(discrete_gaussian(key, stddev=77.0, size=size), long[:size])


def test_other_keys_give_unrelated_samples() -> None:
    one = discrete_gaussian(key_of("a"), stddev=100.0, size=10_000)
    other = discrete_gaussian(key_of("b"), stddev=100.0, size=10_000)
    correlation = float((one * other).mean()) / 100.0**2
    assert abs(correlation) < 5 / math.sqrt(10_000)


@pytest.mark.parametrize("stddev", [0.0625, 0.5, 3.0, 2.0**20])
def test_no_sample_exceeds_the_stated_magnitude(stddev: float) -> None:
    samples = discrete_gaussian(key_of("largest"), stddev=stddev, size=50_000)
    assert int(np.abs(samples).max()) <= 10 * stddev + 1


def test_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(PrivacyError, match="size=-1"):
        discrete_gaussian(bytes(32), stddev=1.0, size=-1)
    with pytest.raises(PrivacyError, match=r"stddev=0\.0"):
        discrete_gaussian(bytes(32), stddev=0.0, size=1)
    with pytest.raises(PrivacyError, match="key must have 32 bytes"):
        discrete_gaussian(b"short", stddev=1.0, size=1)
    with pytest.raises(PrivacyError, match="stddev=inf"):
        discrete_gaussian(bytes(32), stddev=math.inf, size=1)


def test_without_a_compiler_the_plain_attempts_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert module.sampler.__wrapped__().NAME == "numba"
    monkeypatch.setitem(sys.modules, module.COMPILED, None)
    assert module.sampler.__wrapped__().NAME == "numpy"
