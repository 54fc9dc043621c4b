"""How the training samples are spread over devices."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from simulation.errors import PartitionError

_STREAM: Final = 1  # keeps these draws apart from other uses of the same seed
_MAX_DRAWS: Final = 10


def iid(labels: NDArray[np.int64], num_devices: int, seed: int) -> list[NDArray[np.int64]]:
    """Spread the samples evenly and at random.

    Args:
        labels: (n,) labels; only their number matters.
        num_devices: devices to serve, 1 to n.
        seed: root of the draw, from 0.

    Returns:
        One increasing array of sample positions per device; sizes differ by at most one.

    Raises:
        PartitionError: if there are fewer samples than devices.

    Guarantees:
        Disjoint; together all positions; the same for the same arguments.
    """
    _check(len(labels), num_devices, 1)
    order = _generator(seed, 0).permutation(len(labels))
    return [np.sort(part) for part in np.array_split(order, num_devices)]


def dirichlet(
    labels: NDArray[np.int64],
    num_devices: int,
    alpha: float,
    seed: int,
    *,
    min_samples: int = 1,
) -> list[NDArray[np.int64]]:
    """Spread every class over the devices in proportions drawn from Dirichlet(alpha).

    A small alpha gives devices that know few classes; a large one approaches `iid`. A draw that
    leaves a device with too few samples is repeated; after ten draws samples move from the
    fullest devices to the emptiest ones, so an extreme alpha still gives a usable split.

    Args:
        labels: (n,) label of every sample.
        num_devices: devices to serve, from 1.
        alpha: concentration, > 0 and finite.
        seed: root of the draw, from 0.
        min_samples: least samples of a device, from 1; num_devices * min_samples <= n.

    Returns:
        One increasing array of sample positions per device.

    Raises:
        PartitionError: if an argument is out of range.

    Guarantees:
        Disjoint; together all positions; every device has at least `min_samples`; the same for
        the same arguments.

    References: Hsu, Qi, Brown (2019), arXiv:1909.06335, section 2.
    """
    _check(len(labels), num_devices, min_samples)
    if not 0.0 < alpha < float("inf"):
        message = f"alpha={alpha} must be finite and > 0"
        raise PartitionError(message)
    shards: list[NDArray[np.int64]] = []
    for draw in range(_MAX_DRAWS):
        shards = _draw(labels, num_devices, alpha, _generator(seed, draw))
        if min(len(shard) for shard in shards) >= min_samples:
            break
    return [np.sort(shard) for shard in _level(shards, min_samples)]


def _check(num_samples: int, num_devices: int, min_samples: int) -> None:
    if num_devices < 1 or min_samples < 1:
        message = f"num_devices={num_devices} and min_samples={min_samples} must be at least 1"
        raise PartitionError(message)
    if num_devices * min_samples > num_samples:
        message = (
            f"num_devices={num_devices} with min_samples={min_samples} need "
            f"{num_devices * min_samples} samples, got {num_samples}"
        )
        raise PartitionError(message)


def _generator(seed: int, draw: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, _STREAM, draw])))


def _draw(
    labels: NDArray[np.int64], num_devices: int, alpha: float, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    parts: list[list[NDArray[np.int64]]] = [[] for _ in range(num_devices)]
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        ends = np.cumsum(_proportions(num_devices, alpha, rng))[:-1] * len(members)
        for device, part in enumerate(np.split(members, ends.astype(np.int64))):
            parts[device].append(part)
    return [np.concatenate(own) for own in parts]


def _proportions(num_devices: int, alpha: float, rng: np.random.Generator) -> NDArray[np.float64]:
    proportions = rng.dirichlet(np.full(num_devices, alpha))
    if np.isfinite(proportions).all():
        return proportions
    # Every gamma variate underflowed: the limit alpha -> 0 puts the whole class on one device.
    limit = np.zeros(num_devices)
    limit[rng.integers(num_devices)] = 1.0
    return limit


def _level(shards: list[NDArray[np.int64]], min_samples: int) -> list[NDArray[np.int64]]:
    shards = list(shards)
    while True:
        sizes = [len(shard) for shard in shards]
        poorest = int(np.argmin(sizes))
        missing = min_samples - sizes[poorest]
        if missing <= 0:
            return shards
        richest = int(np.argmax(sizes))
        # The richest keeps the minimum itself, so every move makes progress.
        moved = min(missing, sizes[richest] - min_samples)
        shards[poorest] = np.concatenate((shards[poorest], shards[richest][:moved]))
        shards[richest] = shards[richest][moved:]
