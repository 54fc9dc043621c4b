import math

import numpy as np
import pytest

from privacy.clipping import clip_by_norm
from privacy.errors import PrivacyError
from privacy.fixed_point import fine_fraction_bits, from_grid, grid_norm, to_grid
from privacy.keystream import derive_key
from privacy.noise import (
    GridNoise,
    add_device_noise,
    central_noise,
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
