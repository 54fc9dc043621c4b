import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from privacy.banded_noise import MAX_BANDS, BandedNoise
from privacy.errors import PrivacyError

KEY = bytes(range(32))
STDDEV = 2.0**16


def run(banded: BandedNoise, num_steps: int, dim: int, key: bytes = KEY) -> list[NDArray[np.int64]]:
    kept: dict[int, NDArray[np.int64]] = {}
    for step in range(1, num_steps + 1):
        kept[step] = banded.step(step, key, stddev=STDDEV, dim=dim, history=kept.get)
    return list(kept.values())


def matrix(banded: BandedNoise, num_steps: int) -> NDArray[np.float64]:
    c = np.zeros((num_steps, num_steps))
    for j, coefficient in enumerate(banded.coefficients):
        c += np.diag(np.full(max(0, num_steps - j), float(coefficient)), -j)[:num_steps, :num_steps]
    return c


@pytest.mark.parametrize("bands", [1, 2, 5, 12])
def test_the_matrix_times_the_noise_is_the_innovation_up_to_rounding(bands: int) -> None:
    banded, num_steps, dim = BandedNoise(bands), 12, 200
    noise = run(banded, num_steps, dim)
    for t in range(1, num_steps + 1):
        terms = zip(banded.coefficients, reversed(noise[:t]), strict=False)
        product = sum(coefficient * vector for coefficient, vector in terms)
        innovation = banded.innovation(t, KEY, stddev=STDDEV, dim=dim)
        assert int(np.abs(product - innovation).max()) <= banded.coefficients[0] // 2


@pytest.mark.parametrize("bands", [1, 2, 4, 7])
def test_any_part_of_the_history_gives_the_same_noise(bands: int) -> None:
    banded, num_steps, dim = BandedNoise(bands), 9, 20
    full = run(banded, num_steps, dim)
    for gone in itertools.chain.from_iterable(
        itertools.combinations(range(1, num_steps), count) for count in (0, 1, 2, 8)
    ):
        kept = {step: full[step - 1] for step in range(1, num_steps) if step not in gone}
        again = banded.step(num_steps, KEY, stddev=STDDEV, dim=dim, history=kept.get)
        np.testing.assert_array_equal(again, full[-1])
    np.testing.assert_array_equal(banded.step(4, KEY, stddev=STDDEV, dim=dim), full[3])


def test_only_the_last_bands_of_the_history_are_read() -> None:
    banded = BandedNoise(3)
    full = run(banded, 9, 5)
    asked: list[int] = []

    def history(step: int) -> NDArray[np.int64]:
        asked.append(step)
        return full[step - 1]

    banded.step(9, KEY, stddev=STDDEV, dim=5, history=history)
    assert sorted(asked) == [7, 8]


def test_what_is_published_follows_from_the_noised_query_alone() -> None:
    # N = C x + Z is a discrete Gaussian mechanism; the release is recomputed from N only.
    banded, num_steps, dim = BandedNoise(4), 10, 50
    noise = run(banded, num_steps, dim)
    sums = np.random.default_rng(0).integers(-(2**40), 2**40, (num_steps, dim))
    published = [total + vector for total, vector in zip(sums, noise, strict=True)]
    scale = banded.coefficients[0]
    rebuilt: list[NDArray[np.int64]] = []
    for t in range(num_steps):
        query = banded.innovation(t + 1, KEY, stddev=STDDEV, dim=dim).astype(object)
        for j, coefficient in enumerate(banded.coefficients[: t + 1]):
            query = query + coefficient * sums[t - j].astype(object)
        for coefficient, earlier in zip(banded.coefficients[1:], reversed(rebuilt), strict=False):
            query = query - coefficient * earlier.astype(object)
        rebuilt.append(np.array([(2 * value + scale) // (2 * scale) for value in query], np.int64))
    np.testing.assert_array_equal(rebuilt, published)


def test_one_band_is_independent_noise_of_the_same_scale() -> None:
    noise = np.array(run(BandedNoise(1), 40, 2000)) / STDDEV
    assert abs((noise**2).mean() - 1) < 5 * math.sqrt(2 / noise.size)
    assert abs((noise[1:] * noise[:-1]).mean()) < 5 / math.sqrt(noise.size)


@pytest.mark.parametrize("bands", [2, 8])
def test_the_innovation_has_the_column_norm_times_the_deviation(bands: int) -> None:
    banded = BandedNoise(bands)
    innovation = banded.innovation(3, KEY, stddev=STDDEV, dim=100_000) / STDDEV
    variance = float((innovation**2).mean()) / banded.column_norm**2
    assert abs(variance - 1) < 5 * math.sqrt(2 / 100_000)
    exact = sum(coefficient**2 for coefficient in banded.coefficients)
    assert exact <= banded.column_norm**2 <= exact * (1 + 1e-14)


def worst_sensitivity(banded: BandedNoise, num_steps: int, count: int, separation: int) -> float:
    """Search all participation patterns and signs for the largest |C x| of unit updates."""
    c = matrix(banded, num_steps) / banded.column_norm
    worst = 0.0
    for rounds in itertools.combinations(range(num_steps), count):
        if any(b - a < separation for a, b in itertools.pairwise(rounds)):
            continue
        for signs in itertools.product((1.0, -1.0), repeat=count):
            x = np.zeros(num_steps)
            x[list(rounds)] = signs
            worst = max(worst, float(np.linalg.norm(c @ x)))
    return worst


@pytest.mark.parametrize(("bands", "count"), [(2, 2), (2, 4), (3, 3), (4, 3), (1, 4)])
def test_participations_at_least_bands_apart_cost_the_root_of_their_number(
    bands: int, count: int
) -> None:
    worst = worst_sensitivity(BandedNoise(bands), 12, count, bands)
    assert worst == pytest.approx(math.sqrt(count), rel=1e-12)


@pytest.mark.parametrize(("bands", "count"), [(2, 2), (3, 3), (4, 3)])
def test_participations_that_are_closer_cost_more(bands: int, count: int) -> None:
    worst = worst_sensitivity(BandedNoise(bands), 12, count, bands - 1)
    assert worst > math.sqrt(count) * 1.05


def test_coefficients_are_those_of_the_square_root() -> None:
    banded = BandedNoise(64)
    scale = banded.coefficients[0]
    expected, value = [], 1.0
    for j in range(64):
        expected.append(value)
        value *= (2 * j + 1) / (2 * j + 2)
    np.testing.assert_allclose(np.array(banded.coefficients) / scale, expected, atol=0.5 / scale)
    # Without truncation its square is the matrix of prefix sums.
    c = matrix(banded, 64) / scale
    np.testing.assert_allclose(c @ c, np.tril(np.ones((64, 64))), atol=64 / scale)


def cumulative_error(bands: int, participations: int, num_steps: int) -> float:
    """Root mean square error of prefix sums, at equal privacy, over the sensitivity."""
    banded = BandedNoise(bands)
    c = matrix(banded, num_steps) / banded.column_norm
    errors = np.cumsum(np.linalg.inv(c), axis=0)
    return math.sqrt(participations * float((errors**2).sum()) / num_steps)


def test_the_noise_of_a_sum_over_rounds_is_smaller_than_independent_noise() -> None:
    independent = cumulative_error(1, 5, 200)
    assert independent == pytest.approx(math.sqrt(5 * 100.5))
    assert cumulative_error(40, 5, 200) < independent / 3
    noise = np.cumsum(np.array(run(BandedNoise(16), 64, 500)), axis=0) / STDDEV
    plain = np.cumsum(np.array(run(BandedNoise(1), 64, 500)), axis=0) / STDDEV
    assert (noise**2).mean() < (plain**2).mean() / 4


def test_steps_keys_and_runs_are_unrelated() -> None:
    banded = BandedNoise(4)
    draws = [
        banded.innovation(1, KEY, stddev=STDDEV, dim=5000),
        banded.innovation(2, KEY, stddev=STDDEV, dim=5000),
        banded.innovation(1, KEY[::-1], stddev=STDDEV, dim=5000),
        BandedNoise(5).innovation(1, KEY, stddev=STDDEV, dim=5000),
    ]
    for one, other in itertools.combinations(draws, 2):
        correlation = np.corrcoef(one, other)[0, 1]
        assert abs(correlation) < 5 / math.sqrt(5000)


@pytest.mark.parametrize("bands", [0, -1, MAX_BANDS + 1])
def test_bands_out_of_range_are_refused(bands: int) -> None:
    with pytest.raises(PrivacyError, match=f"bands={bands}"):
        BandedNoise(bands)


def test_other_arguments_out_of_range_are_refused() -> None:
    banded = BandedNoise(3)
    with pytest.raises(PrivacyError, match="step=0"):
        banded.step(0, KEY, stddev=STDDEV, dim=3)
    for wrong in (np.zeros(4, np.int64), np.zeros(3)):
        history = {1: wrong}.get
        with pytest.raises(PrivacyError, match=r"history\(1\)"):
            banded.step(2, KEY, stddev=STDDEV, dim=3, history=history)  # type: ignore[arg-type]  # on purpose
    huge = np.full(3, -(2**63), np.int64)
    with pytest.raises(PrivacyError, match="below 2"):
        banded.step(2, KEY, stddev=STDDEV, dim=3, history=lambda _: huge)
    with pytest.raises(PrivacyError, match="stddev="):
        banded.step(1, KEY, stddev=2.0**48, dim=3)
