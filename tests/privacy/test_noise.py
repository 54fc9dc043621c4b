import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.clipping import clip_by_norm
from privacy.errors import PrivacyError
from privacy.fixed_point import fine_fraction_bits, from_grid, grid_norm, to_grid
from privacy.keystream import derive_key
from privacy.noise import (
    GridNoise,
    add_device_noise,
    central_noise,
    dealer_stddev,
    device_noise,
    round_key,
)

KEY = bytes(range(32))
DIGEST = bytes(32)


def is_variance(samples: np.ndarray, stddev: float) -> bool:
    """Whether the sample variance is within five standard errors."""
    ratio = float((samples.astype(np.float64) ** 2).mean()) / stddev**2
    return abs(ratio - 1.0) < 5 * math.sqrt(2 / len(samples))


def test_central_noise_is_the_multiplier_times_the_sensitivity_of_the_integers() -> None:
    noise = central_noise(
        noise_multiplier=1.5, sensitivity=3.0, clip_norm=0.1, fraction_bits=20, dim=5000
    )
    norm = grid_norm(0.1, fraction_bits=20, dim=5000)
    assert noise.stddev == 1.5 * 3.0 * norm
    assert noise.real_stddev == noise.stddev / 2**20
    drawn = noise.draw(KEY, 50_000)
    assert is_variance(drawn, noise.stddev)
    assert not is_variance(drawn, noise.stddev * 1.05)


def test_device_noise_covers_rounding_and_little_more() -> None:
    for clip_norm, dim in ((1.0, 10), (0.01, 1 << 20), (1e-4, 1 << 24)):
        noise = device_noise(noise_multiplier=2.0, clip_norm=clip_norm, dim=dim)
        assert 2.0 * clip_norm <= noise.real_stddev <= 2.0 * clip_norm * (1 + 2.0**-9)
        norm = grid_norm(clip_norm, fraction_bits=noise.fraction_bits, dim=dim)
        assert noise.stddev == 2.0 * norm


def test_a_noised_update_is_the_clipped_one_on_the_grid_plus_noise() -> None:
    vector = np.random.default_rng(0).standard_normal(300).astype(np.float32)
    noised = add_device_noise(vector, KEY, noise_multiplier=0.5, clip_norm=1.0)
    assert noised.dtype == np.float32
    bits = fine_fraction_bits(1.0, dim=300)
    noise = device_noise(noise_multiplier=0.5, clip_norm=1.0, dim=300)
    integers = to_grid(clip_by_norm(vector, 1.0), fraction_bits=bits)
    integers += noise.draw(derive_key(KEY, b"device noise"), 300)
    expected = from_grid(integers, fraction_bits=bits).astype(np.float32)
    np.testing.assert_array_equal(noised, expected)
    assert vector.tolist() != clip_by_norm(vector, 1.0).tolist()


def test_device_noise_has_its_scale_and_a_fresh_key_fresh_values() -> None:
    zeros = np.zeros(50_000, np.float32)
    one = add_device_noise(zeros, KEY, noise_multiplier=1.0, clip_norm=0.1)
    assert is_variance(one, 0.1 * (1 + 2.0**-11))
    assert not is_variance(one, 0.105)
    other = add_device_noise(zeros, KEY[::-1], noise_multiplier=1.0, clip_norm=0.1)
    assert abs(float((one * other).mean())) < 5 * 0.01 / math.sqrt(50_000)


def test_a_vector_that_is_not_finite_gets_no_noise() -> None:
    with pytest.raises(ValueError, match="finite"):
        add_device_noise(
            np.array([1.0, np.nan], np.float32), KEY, noise_multiplier=1.0, clip_norm=1.0
        )


@given(
    st.floats(0.01, 100),
    st.floats(1.0, 2.0**30),
    st.integers(2, 9).flatmap(lambda t: st.tuples(st.just(t), st.integers(t, 12))),
)
def test_colluding_dealers_leave_enough(
    multiplier: float, units: float, sizes: tuple[int, int]
) -> None:
    threshold, dealers = sizes
    stddev = dealer_stddev(multiplier, units, dealers=dealers, threshold=threshold)
    honest = dealers - (threshold - 1)
    assert honest * stddev**2 >= (multiplier * units) ** 2 * (1 - 1e-15)
    # One unit less, and t - 1 dealers could get below.
    assert honest * (stddev - 1) ** 2 < (multiplier * units) ** 2


def test_five_dealers_of_which_two_collude() -> None:
    stddev = dealer_stddev(1.0, 2.0**20, dealers=5, threshold=3)
    assert stddev == math.ceil(2.0**20 / math.sqrt(3))
    noises = [
        GridNoise(stddev=stddev, fraction_bits=20).draw(bytes([i]) * 32, 50_000) for i in range(5)
    ]
    everybody = np.sum(noises, axis=0)
    assert is_variance(everybody, stddev * math.sqrt(5))
    assert is_variance(np.sum(noises[2:], axis=0), 2.0**20)
    # One more that subtracts its noise, and the promise is broken.
    assert float((np.sum(noises[3:], axis=0) ** 2.0).mean()) < 0.8 * 2.0**40


def test_a_round_key_is_bound_to_round_and_manifest() -> None:
    keys = {
        round_key(key, round_number=number, manifest_sha256=digest)
        for key in (KEY, KEY[::-1])
        for number in (0, 1, 2)
        for digest in (DIGEST, KEY)
    }
    assert len(keys) == 12
    assert round_key(KEY, round_number=1, manifest_sha256=DIGEST) in keys


def test_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(PrivacyError, match="noise_multiplier=0"):
        device_noise(noise_multiplier=0.0, clip_norm=1.0, dim=1)
    with pytest.raises(PrivacyError, match=r"sensitivity=0\.5"):
        central_noise(noise_multiplier=1.0, sensitivity=0.5, clip_norm=1.0, fraction_bits=20, dim=1)
    with pytest.raises(PrivacyError, match="stddev="):
        device_noise(noise_multiplier=1e12, clip_norm=1.0, dim=1)
    with pytest.raises(PrivacyError, match="fraction_bits=60"):
        GridNoise(stddev=1.0, fraction_bits=60)
    with pytest.raises(PrivacyError, match="manifest_sha256 must have 32 bytes, got 0"):
        round_key(KEY, round_number=1, manifest_sha256=b"")
    with pytest.raises(PrivacyError, match="sensitivity_units=0"):
        dealer_stddev(1.0, 0.0, dealers=5, threshold=3)
    for dealers, threshold in ((2, 3), (5, 1), (256, 3)):
        with pytest.raises(PrivacyError, match=f"threshold={threshold}, dealers={dealers}"):
            dealer_stddev(1.0, 1.0, dealers=dealers, threshold=threshold)
    with pytest.raises(PrivacyError, match="noise_multiplier=nan"):
        dealer_stddev(math.nan, 1.0, dealers=5, threshold=3)
    with pytest.raises(PrivacyError, match="at most 2"):
        dealer_stddev(1e10, 1e10, dealers=5, threshold=3)
