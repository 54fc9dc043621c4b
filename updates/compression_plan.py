"""How the updates of a round are compressed: one value that the server and every device know."""

import math
from dataclasses import dataclass
from enum import Enum
from typing import Final

from protos.wire import MAX_DIM
from updates.errors import CompressionError

SEED_BYTES: Final = 32


class Method(Enum):
    """Which numbers of an update are sent."""

    DENSE = "dense"
    TOP_K = "top-k"
    RAND_K = "rand-k"
    ANNOUNCED = "announced"
    PROJECTION = "projection"


class ValueType(Enum):
    """How a number is written."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"
    INT4 = "int4"


COMMON_MAPS: Final = frozenset({Method.RAND_K, Method.ANNOUNCED, Method.PROJECTION})
"""Methods that map every update by the same linear map, so that what they give may be summed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionPlan:
    """The compression of one round; fields as in `CompressionPlan` of federation.proto.

    Attributes:
        dim: d, elements of an update, 1 to 2^31.
        num_values: k, numbers sent for each update, 1 to d; d with `DENSE`.
        map_seed: 32 bytes with `RAND_K` and `PROJECTION`, else empty.
        coordinates: with `ANNOUNCED`, positions as `updates.index_coding` writes them.
        error_feedback: whether devices keep what they did not send.
        residual_decay: of what is kept, per missed round, in (0, 1].
        max_residual_age: rounds after which it is dropped, from 1.
        zstd_version: libzstd version whose frames are accepted; 0: none are.

    Raises:
        CompressionError: if a field is out of range, or does not belong to the method.
    """

    method: Method
    dim: int
    num_values: int
    value_type: ValueType = ValueType.FLOAT32
    map_seed: bytes = b""
    coordinates: bytes = b""
    error_feedback: bool = False
    residual_decay: float = 1.0
    max_residual_age: int = 20
    zstd_version: int = 0

    def __post_init__(self) -> None:
        _require(1 <= self.dim <= MAX_DIM, "dim", self.dim, f"in 1..{MAX_DIM}")
        _require(
            1 <= self.num_values <= self.dim, "num_values", self.num_values, f"in 1..{self.dim}"
        )
        if self.method is Method.DENSE:
            _require(self.num_values == self.dim, "num_values", self.num_values, f"{self.dim}")
        seeded = self.method in {Method.RAND_K, Method.PROJECTION}
        wanted = SEED_BYTES if seeded else 0
        _require(len(self.map_seed) == wanted, "len(map_seed)", len(self.map_seed), f"{wanted}")
        announced = self.method is Method.ANNOUNCED
        _require(
            bool(self.coordinates) is announced,
            "coordinates",
            f"{len(self.coordinates)} bytes",
            "given with the method announced, and only then",
        )
        decay = self.residual_decay
        _require(0 < decay <= 1 and math.isfinite(decay), "residual_decay", decay, "in (0, 1]")
        age = self.max_residual_age
        _require(1 <= age < 2**32, "max_residual_age", age, "in 1..2**32 - 1")
        version = self.zstd_version
        _require(0 <= version < 2**32, "zstd_version", version, "in 0..2**32 - 1")

    @property
    def is_common_map(self) -> bool:
        """Whether all updates go through one linear map."""
        return self.method in COMMON_MAPS


def dense_plan(dim: int) -> CompressionPlan:
    """Return the plan without compression: every coordinate as float32."""
    return CompressionPlan(method=Method.DENSE, dim=dim, num_values=dim)


def _require(condition: bool, name: str, value: object, rule: str) -> None:
    if not condition:
        message = f"{name}={value!r} must be {rule}"
        raise CompressionError(message)
