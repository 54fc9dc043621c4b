"""Splits of samples over devices: nothing lost, nothing shared, nobody empty-handed."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from simulation.data import partition
from simulation.errors import PartitionError
from tests.looped import looped


@st.composite
def populations(draw: st.DrawFn) -> tuple[NDArray[np.int64], int, int]:
    """Labels, a number of devices, and a minimum that the labels can satisfy."""
    labels = draw(st.lists(st.integers(0, 9), min_size=1, max_size=200))
    num_devices = draw(st.integers(1, len(labels)))
    min_samples = draw(st.integers(1, len(labels) // num_devices))
    return np.array(labels, dtype=np.int64), num_devices, min_samples


@given(
    population=populations(),
    alpha=st.floats(1e-300, 1e6, allow_subnormal=False),
    seed=st.integers(0, 2**64),
)
@example(population=(np.zeros(7, dtype=np.int64), 7, 1), alpha=1e-300, seed=0)
@example(population=(np.arange(10), 2, 5), alpha=0.01, seed=1)
def test_dirichlet_covers_everything_once_and_keeps_the_minimum(
    population: tuple[NDArray[np.int64], int, int], alpha: float, seed: int
) -> None:
    labels, num_devices, min_samples = population
    shards = partition.dirichlet(labels, num_devices, alpha, seed, min_samples=min_samples)
    assert len(shards) == num_devices
    assert sorted(np.concatenate(shards)) == list(range(len(labels)))
    assert min(map(len, shards)) >= min_samples
    assert all(np.all(np.diff(shard) > 0) for shard in shards)
    assert all(shard.dtype == np.int64 for shard in shards)


@given(population=populations(), seed=st.integers(0, 2**64))
def test_iid_covers_everything_once_in_even_parts(
    population: tuple[NDArray[np.int64], int, int], seed: int
) -> None:
    labels, num_devices, _ = population
    shards = partition.iid(labels, num_devices, seed)
    assert len(shards) == num_devices
    assert sorted(np.concatenate(shards)) == list(range(len(labels)))
    sizes = [len(shard) for shard in shards]
    assert max(sizes) - min(sizes) <= 1


def test_the_seed_alone_decides() -> None:
    labels = np.arange(1000, dtype=np.int64) % 10

    def split(seed: int) -> list[list[int]]:
        return [shard.tolist() for shard in partition.dirichlet(labels, 10, 0.5, seed)]

    assert split(3) == split(3)
    assert split(3) != split(4)
    assert partition.iid(labels, 10, 3)[0].tolist() != partition.iid(labels, 10, 4)[0].tolist()


def test_proportions_have_the_variance_of_the_dirichlet_distribution() -> None:
    # One class over k devices: a share has mean 1/k and variance (k - 1) / (k^2 (k alpha + 1)).
    num_devices, draws, samples = 5, 400, 2000
    labels = np.zeros(samples, dtype=np.int64)
    for alpha in (0.5, 5.0):
        shares = np.array(
            [
                [len(shard) / samples for shard in partition.dirichlet(labels, 5, alpha, seed)]
                for seed in range(draws)
            ]
        )
        expected = (num_devices - 1) / (num_devices**2 * (num_devices * alpha + 1))
        # Relative standard error of a variance is about sqrt(2 / 400) = 7 %; skewness adds to
        # it, five devices take from it. A wrong alpha is off by a factor of nearly ten.
        assert shares.var() == pytest.approx(expected, rel=0.25)
        assert shares.mean() == pytest.approx(1 / num_devices)


def test_devices_draw_each_class_anew() -> None:
    labels = np.repeat(np.arange(10), 100)
    shards = partition.dirichlet(labels, 10, 0.1, 0)
    favourites = {int(np.bincount(labels[shard]).argmax()) for shard in shards}
    assert len(favourites) > 3


@looped(
    "num_devices, alpha, min_samples, message",
    [
        (0, 1.0, 1, "num_devices=0"),
        (1, 1.0, 0, "min_samples=0"),
        (3, 1.0, 4, "need 12 samples, got 10"),
        (2, 0.0, 1, "alpha=0.0"),
        (2, -1.0, 1, "alpha=-1.0"),
        (2, float("inf"), 1, "alpha=inf"),
        (2, float("nan"), 1, "alpha=nan"),
    ],
)
def test_impossible_splits_are_refused(
    num_devices: int, alpha: float, min_samples: int, message: str
) -> None:
    labels = np.zeros(10, dtype=np.int64)
    with pytest.raises(PartitionError, match=message):
        partition.dirichlet(labels, num_devices, alpha, 0, min_samples=min_samples)


def test_iid_needs_a_sample_per_device() -> None:
    with pytest.raises(PartitionError, match="need 11 samples, got 10"):
        partition.iid(np.zeros(10, dtype=np.int64), 11, 0)
