"""The banded noise of earlier rounds, kept where a coordinator that takes over finds it.

Nothing depends on it but time: what is missing is computed from the key once more.
"""

from typing import Final, Protocol

import numpy as np

from aggregators.dp import DPConfig
from privacy.charge import Mechanism
from server.round.blob_names import banded_noise_blob
from server.round.ports import BlobNotFound
from server.round.private_source import Noise, run_id

_LITTLE_INT64: Final = np.dtype("<i8")


class NoiseFiles(Protocol):
    """Where it lies."""

    async def get(self, key: str) -> bytes:
        """Return a whole blob.

        Raises:
            BlobNotFound: if it is not there.
        """

    async def put(self, key: str, data: bytes) -> None:
        """Store a blob atomically; replaces one that is there."""

    async def delete(self, key: str) -> None:
        """Remove a blob, if it is there."""


class NoiseHistory:
    """The noise of one run of equal settings; without banded noise it keeps nothing.

    Twice as many rounds are kept as there are bands, so that a round that was abandoned before it
    had any noise costs no more than its own.

    Args:
        files: where it is kept.
        task: name of the task.
        config: of the run's rounds.
        dim: numbers of a sum.
    """

    def __init__(self, files: NoiseFiles, task: str, config: DPConfig, *, dim: int) -> None:
        self._files = files
        self._task = task
        self._dim = dim
        self._bands = config.bands if config.mechanism is Mechanism.BANDED else 1
        self._run = run_id(config, dim=dim)

    async def before(self, round_number: int) -> dict[int, Noise]:
        """Return the noise of earlier rounds, as far back as a round's own depends on it."""
        found: dict[int, Noise] = {}
        known = 0  # one after the other
        for number in range(round_number - 1, max(0, round_number - 2 * self._bands), -1):
            if known == self._bands - 1:
                break
            noise = await self._load(number)
            known = 0 if noise is None else known + 1
            if noise is not None:
                found[number] = noise
        return found

    async def keep(self, round_number: int, noise: Noise) -> None:
        """Keep the noise of a round; drop that of the one that nothing depends on any more."""
        if self._bands == 1:
            return
        data = noise.astype(_LITTLE_INT64).tobytes()
        await self._files.put(self._key(round_number), data)
        if round_number > 2 * self._bands:
            await self._files.delete(self._key(round_number - 2 * self._bands))

    async def _load(self, number: int) -> Noise | None:
        try:
            data = await self._files.get(self._key(number))
        except BlobNotFound:
            return None
        noise = np.frombuffer(data, _LITTLE_INT64).astype(np.int64)
        return noise if noise.shape == (self._dim,) else None

    def _key(self, number: int) -> str:
        return banded_noise_blob(self._task, self._run, number)
