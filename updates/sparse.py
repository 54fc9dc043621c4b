"""An update of which only some coordinates are sent."""

from dataclasses import dataclass
from typing import NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

from updates.errors import CompressionError

Indices: TypeAlias = NDArray[np.int64]
Values: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SparseValues:
    """Some coordinates of an update; all others are zero. Not to be modified.

    Attributes:
        indices: (k,), int64, strictly increasing, each in 0..dim - 1; k may be 0.
        values: (k,), float32, finite.
        dim: d, from 1.

    Raises:
        CompressionError: if any of that does not hold.
    """

    indices: Indices
    values: Values
    dim: int

    def __post_init__(self) -> None:
        if self.dim < 1:
            _refuse(f"dim={self.dim} must be at least 1")
        indices, values = self.indices, self.values
        if indices.ndim != 1 or indices.dtype != np.int64:
            _refuse(f"indices of {indices.dtype}{indices.shape} must be int64 of shape (k,)")
        if values.shape != indices.shape or values.dtype != np.float32:
            _refuse(
                f"values of {values.dtype}{values.shape} must be float32, one for each of"
                f" {len(indices)} indices"
            )
        check_increasing(indices, dim=self.dim)
        if not np.isfinite(values).all():
            _refuse(f"value at position {int(np.isfinite(values).argmin())} must be finite")


Content: TypeAlias = NDArray[np.float32] | SparseValues
"""What is sent of an update: d numbers, or the k of a common map, or chosen coordinates."""


def check_increasing(indices: Indices, *, dim: int) -> None:
    """Refuse indices that are not strictly increasing in 0..dim - 1.

    Raises:
        CompressionError: naming the first that is wrong.
    """
    if len(indices) == 0:
        return
    is_above = indices[1:] > indices[:-1]
    if not is_above.all():
        place = int(is_above.argmin())
        _refuse(
            f"indices must be strictly increasing, got {indices[place]} before {indices[place + 1]}"
        )
    if indices[0] < 0 or indices[-1] >= dim:
        wrong = indices[0] if indices[0] < 0 else indices[-1]
        _refuse(f"index {wrong} must be in 0..{dim - 1}")


def _refuse(message: str) -> NoReturn:
    raise CompressionError(message)
