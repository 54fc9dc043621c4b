"""What is kept of banded noise, and for how long."""

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import pytest

from privacy.charge import Charge, Mechanism
from server.privacy.noise_history import NoiseHistory
from server.round.ports import BlobNotFound
from server.round.private_source import Noise, PrivateSettings
from tests.server.round.test_private_source import privacy_of

BANDS: Final = 3
DIM: Final = 5


@dataclass
class Files:
    """Blobs in memory."""

    blobs: dict[str, bytes] = field(default_factory=dict)

    async def get(self, key: str) -> bytes:
        try:
            return self.blobs[key]
        except KeyError:
            raise BlobNotFound(key) from None

    async def put(self, key: str, data: bytes) -> None:
        self.blobs[key] = data

    async def delete(self, key: str) -> None:
        self.blobs.pop(key, None)


def history_of(files: Files, *, bands: int = BANDS, dim: int = DIM) -> NoiseHistory:
    charge = Charge(noise_multiplier=1.0)
    if bands > 1:
        charge = Charge(noise_multiplier=1.0, mechanism=Mechanism.BANDED, bands=bands)
    config = PrivateSettings().config(privacy_of(charge), dim=dim)
    return NoiseHistory(files, "t", config, dim=dim)


def noise_of(number: int) -> Noise:
    return np.arange(DIM, dtype=np.int64) - number * 2**40


async def test_as_many_rounds_are_found_as_the_noise_depends_on() -> None:
    history = history_of(Files())
    for number in range(1, 8):
        found = await history.before(number)
        assert sorted(found) == list(range(max(1, number - BANDS + 1), number))
        for earlier, noise in found.items():
            np.testing.assert_array_equal(noise, noise_of(earlier))
        await history.keep(number, noise_of(number))


async def test_old_rounds_are_dropped() -> None:
    files = Files()
    history = history_of(files)
    for number in range(1, 30):
        await history.keep(number, noise_of(number))
    assert len(files.blobs) == 2 * BANDS


async def test_a_gap_is_told_with_what_lies_before_it() -> None:
    history = history_of(Files())
    for number in (1, 2, 3, 5):
        await history.keep(number, noise_of(number))
    assert sorted(await history.before(6)) == [2, 3, 5]


@pytest.mark.parametrize("damage", [b"", b"\0" * 8, b"\0" * (8 * DIM + 8)])
async def test_damaged_noise_is_not_taken(damage: bytes) -> None:
    files = Files()
    history = history_of(files)
    await history.keep(1, noise_of(1))
    (key,) = files.blobs
    files.blobs[key] = damage
    assert await history.before(2) == {}


async def test_runs_do_not_mix() -> None:
    files = Files()
    await history_of(files).keep(1, noise_of(1))
    assert await history_of(files, bands=BANDS + 1).before(2) == {}


async def test_independent_noise_is_not_kept() -> None:
    files = Files()
    history = history_of(files, bands=1)
    await history.keep(1, noise_of(1))
    assert files.blobs == {}
    assert await history.before(2) == {}
