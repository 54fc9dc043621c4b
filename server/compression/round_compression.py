"""How the updates of each round are compressed: the same plan on every coordinator.

Nothing of it is stored. A plan follows from the task's settings, the number of the round and the
model it starts from; announced coordinates from the two newest models. So any coordinator finds
the plan of any round, also one that takes over in the middle of it.
"""

import asyncio
from collections import OrderedDict
from typing import Final, Protocol

import numpy as np

from server.compression.task_compression import TaskCompression
from server.processes.thread_pool import Workers
from server.round.blob_names import model_blob
from server.round.ports import ModelRegistry, ModelVersion
from updates.compression_plan import CompressionPlan, Method
from updates.coordinate_maps import announced_indices, map_seed_of
from updates.index_coding import encode_coordinates
from updates.vectors import decode_model, flatten, layout_of

MAX_KNOWN_PLANS: Final = 8  # of one task; late devices may ask for a round that has ended


class ModelFiles(Protocol):
    """Where the files of models lie."""

    async def get(self, key: str) -> bytes:
        """Return a whole blob.

        Raises:
            BlobNotFound: if it is gone.
        """


class RoundCompression:
    """The plans of one task's rounds.

    Whoever asks first for a round's plan has it made; it is kept for those that ask later.

    Args:
        task: what all plans have in common.
        registry: the versions that rounds start from.
        files: of these versions; read where coordinates are announced.
        workers: where kernels run.
    """

    def __init__(
        self, task: TaskCompression, *, registry: ModelRegistry, files: ModelFiles, workers: Workers
    ) -> None:
        self.task = task
        self._registry = registry
        self._files = files
        self._workers = workers
        self._plans: OrderedDict[tuple[int, int], CompressionPlan] = OrderedDict()
        self._making = asyncio.Lock()

    async def plan(self, *, round_number: int, base_version: int) -> CompressionPlan:
        """Return the plan of a round.

        Raises:
            BlobNotFound: if the file of a model that coordinates follow from is gone.
            Unavailable: if a store did not answer.

        Guarantees:
            Equal on every coordinator of the same settings and stores.
        """
        key = (round_number, base_version)
        known = self._plans.get(key)
        if known is not None:
            return known
        async with self._making:
            if key not in self._plans:
                self._plans[key] = await self._make(round_number, base_version)
            plan = self._plans[key]
            while len(self._plans) > MAX_KNOWN_PLANS:
                self._plans.popitem(last=False)
        return plan

    async def _make(self, round_number: int, base_version: int) -> CompressionPlan:
        base = await self._registry.model(self.task.task, base_version)
        coordinates = b""
        if self.task.method is Method.ANNOUNCED:
            parent = None
            if base.parent is not None:
                parent = await self._file(await self._registry.model(self.task.task, base.parent))
            coordinates = await self._workers.run(
                announced_coordinates,
                self.task,
                seed=map_seed_of(self.task.task, round_number, base.sha256),
                base=await self._file(base),
                parent=parent,
            )
        return self.task.plan(
            round_number=round_number, base_sha256=base.sha256, coordinates=coordinates
        )

    async def _file(self, model: ModelVersion) -> bytes:
        return await self._files.get(model_blob(self.task.task, model.round_number, model.sha256))


def announced_coordinates(
    task: TaskCompression, *, seed: bytes, base: bytes, parent: bytes | None
) -> bytes:
    """Choose the coordinates of a round from what the last one changed, and encode them.

    Args:
        task: how many, and how many of them are drawn at random.
        seed: decides what is drawn.
        base: safetensors file of the round's base version.
        parent: that of the version before; None: there is none, and all are drawn.

    Raises:
        ModelError: if a file is no model.
    """
    change = np.zeros(task.dim, np.float32)
    if parent is not None:
        new, _ = decode_model(base)
        old, _ = decode_model(parent)
        layout = layout_of(new)
        with np.errstate(over="ignore"):  # infinite is only very large here
            change = flatten(new, layout) - flatten(old, layout)
        change = np.nan_to_num(change)
    indices = announced_indices(
        change,
        num_values=task.num_values,
        random_share=1.0 if parent is None else task.random_share,
        seed=seed,
    )
    return encode_coordinates(indices, task.dim)
