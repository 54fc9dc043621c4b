"""How a task's updates are compressed: what the plans of all its rounds have in common."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from updates.compression_plan import SEED_BYTES, CompressionPlan, Method, ValueType
from updates.coordinate_maps import map_seed_of
from updates.errors import CompressionError
from updates.index_coding import encode_coordinates, max_coordinates_bytes
from updates.update_codec import UpdateCodec, codec_for

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
        """Make what reads the updates of every round: seeds and coordinates do not matter to it."""
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
