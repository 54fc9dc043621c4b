"""Image features that are learned from nothing."""

import numpy as np
import pytest

from simulation.data.oriented_gradients import NUM_FEATURES, NUM_ORIENTATIONS, SIDE, hog_features

RNG = np.random.default_rng(0)


def test_rows_are_as_long_as_promised() -> None:
    features = hog_features(RNG.random((3, SIDE * SIDE), dtype=np.float32))
    assert features.shape == (3, NUM_FEATURES)
    assert features.dtype == np.float32
    assert np.linalg.norm(features, axis=1) == pytest.approx(1.0, abs=1e-5)


def test_each_row_depends_on_its_own_image_only() -> None:
    images = RNG.random((5, SIDE, SIDE), dtype=np.float32)
    alone = np.concatenate([hog_features(image[np.newaxis]) for image in images])
    assert np.array_equal(hog_features(images), alone)
    assert np.array_equal(hog_features(images.reshape(5, -1)), alone)


def test_an_edge_votes_for_its_orientation() -> None:
    """A vertical edge has a gradient across, orientation 0; a horizontal one is at 90 degrees."""
    image = np.zeros((SIDE, SIDE), dtype=np.float32)
    image[:, SIDE // 2 :] = 1.0
    for one, orientation in ((image, 0), (image.T, NUM_ORIENTATIONS // 2)):
        votes = hog_features(one[np.newaxis].copy()).reshape(NUM_ORIENTATIONS, -1).sum(axis=1)
        assert votes.argmax() == orientation


def test_an_even_image_has_no_features() -> None:
    assert not hog_features(np.full((1, SIDE * SIDE), 0.5, dtype=np.float32)).any()


def test_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="100 pixels must have 784"):
        hog_features(np.zeros((1, 100), dtype=np.float32))
