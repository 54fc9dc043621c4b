"""How the updates of each round are compressed: the same plan on every coordinator.

Nothing of it is stored. A plan follows from the task's settings, the number of the round and the
model it starts from; announced coordinates from the two newest models. So any coordinator finds
the plan of any round, also one that takes over in the middle of it.
"""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from server.processes.thread_pool import Workers
from server.round.ports import ModelVersion
from server.storage.keys import model_blob
from updates.compression_plan import SEED_BYTES, CompressionPlan, Method, ValueType
from updates.coordinate_maps import announced_indices, map_seed_of
from updates.errors import CompressionError
from updates.index_coding import encode_coordinates, max_coordinates_bytes
from updates.update_codec import UpdateCodec, codec_for
from updates.vectors import decode_model, flatten, layout_of

MAX_KNOWN_PLANS: Final = 8  # of one task; late devices may ask for a round that has ended
MAX_COORDINATES_BYTES: Final = (2 << 20) - (64 << 10)
"""Longest list of announced coordinates: an assignment is one message of at most 2 MiB."""

_SEEDED: Final = frozenset({Method.RAND_K, Method.PROJECTION})


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskCompression:
    """What the plans of all rounds of a task have in common.

    Attributes:
        task: its name.
        layer_sizes: elements of each of the model's tensors, in the order of the flat vector.
        method: which numbers are sent.
        ratio: how many, as a share of the model's elements; of no meaning where all are.
        value_type: how a number is written.
        error_feedback, residual_decay, max_residual_age: what devices keep for later.
        random_share: of announced coordinates that are drawn at random.
        zstd_version: libzstd version whose frames are taken; 0: none are.

    Raises:
        CompressionError: if the coordinates that rounds announce can be too many for a message.
    """

    task: str
    layer_sizes: tuple[int, ...]
    method: Method
    ratio: float
    value_type: ValueType
    error_feedback: bool
    residual_decay: float
    max_residual_age: int
    random_share: float
    zstd_version: int = 0

    def __post_init__(self) -> None:
        if self.method is not Method.ANNOUNCED:
            return
        longest = max_coordinates_bytes(self.num_values, self.dim)
        if longest > MAX_COORDINATES_BYTES:
            msg = f"{self.num_values} announced coordinates of {self.dim} can take {longest} bytes,"
            msg += f" must be at most {MAX_COORDINATES_BYTES} to fit into a message:"
            msg += " take a smaller ratio, or projection"
            raise CompressionError(msg)

    @property
    def dim(self) -> int:
        """d, elements of an update."""
        return sum(self.layer_sizes)

    @property
    def num_values(self) -> int:
        """k, numbers sent for each update."""
        if self.method is Method.DENSE:
            return self.dim
        return max(1, round(self.ratio * self.dim))

    def plan(
        self, *, round_number: int, base_sha256: str, coordinates: bytes = b""
    ) -> CompressionPlan:
        """Write the plan of one round.

        Args:
            round_number: of the round, from 1.
            base_sha256: hash of the model that it starts from.
            coordinates: the announced ones, encoded; with that method.
        """
        seed = b""
        if self.method in _SEEDED:
            seed = map_seed_of(self.task, round_number, base_sha256)
        return self._plan(seed, coordinates)

    def codec(self) -> UpdateCodec:
        """What reads the updates of every round: seeds and coordinates do not matter to it."""
        seed, coordinates = b"", b""
        if self.method in _SEEDED:
            seed = bytes(SEED_BYTES)
        if self.method is Method.ANNOUNCED:
            coordinates = encode_coordinates(np.arange(self.num_values), self.dim)
        return codec_for(self._plan(seed, coordinates), self.layer_sizes)

    def _plan(self, seed: bytes, coordinates: bytes) -> CompressionPlan:
        return CompressionPlan(
            method=self.method,
            dim=self.dim,
            num_values=self.num_values,
            value_type=self.value_type,
            map_seed=seed,
            coordinates=coordinates,
            error_feedback=self.error_feedback and self.method is not Method.DENSE,
            residual_decay=self.residual_decay,
            max_residual_age=self.max_residual_age,
            zstd_version=self.zstd_version,
        )


def compression_name(task: TaskCompression | None) -> str:
    """Name what decides the meaning of a round's updates, to tell whether it was changed.

    Equal settings have equal names; "" is that of dense float32.
    """
    if task is None:
        return ""
    facts = [task.method.value, task.value_type.value]
    facts.append(f"{task.num_values}/{task.dim}")
    if task.method is Method.ANNOUNCED:
        facts.append(f"{task.random_share} at random")
    return ", ".join(facts)


class ModelRecords(Protocol):
    """Tells which models there are."""

    async def model(self, task: str, version: int) -> ModelVersion: ...


class ModelFiles(Protocol):
    """Where they lie."""

    async def get(self, key: str) -> bytes: ...


class RoundCompression:
    """The plans of one task's rounds.

    Whoever asks first for a round's plan has it made; it is kept for those that ask later.

    Args:
        task: what all plans have in common.
        models: what each round starts from.
        files: the models themselves; read where coordinates are announced.
        workers: where kernels run.
    """

    def __init__(
        self, task: TaskCompression, *, models: ModelRecords, files: ModelFiles, workers: Workers
    ) -> None:
        self.task = task
        self._models = models
        self._files = files
        self._workers = workers
        self._plans: OrderedDict[tuple[int, int], CompressionPlan] = OrderedDict()
        self._making = asyncio.Lock()

    async def plan(self, *, round_number: int, base_version: int) -> CompressionPlan:
        """The plan of a round.

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
        base = await self._models.model(self.task.task, base_version)
        coordinates = b""
        if self.task.method is Method.ANNOUNCED:
            parent = None
            if base.parent is not None:
                parent = await self._file(await self._models.model(self.task.task, base.parent))
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
