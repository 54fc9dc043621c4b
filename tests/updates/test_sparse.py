import numpy as np
import pytest

from tests.looped import looped
from updates.errors import CompressionError
from updates.sparse import SparseValues


def sparse(
    indices: list[int], values: list[float], *, dim: int = 5, of: type = np.int64
) -> SparseValues:
    return SparseValues(
        indices=np.array(indices, dtype=of), values=np.array(values, dtype=np.float32), dim=dim
    )


@pytest.mark.parametrize("indices", [[], [0], [4], [0, 1, 4], [0, 1, 2, 3, 4]])
def test_positions_in_order_and_in_range_are_accepted(indices: list[int]) -> None:
    assert sparse(indices, [1.0] * len(indices)).indices.tolist() == indices


@looped(
    "indices, values, message",
    [
        ([1, 1], [1, 1], "indices must be strictly increasing, got 1 before 1"),
        ([2, 1], [1, 1], "indices must be strictly increasing, got 2 before 1"),
        ([-1, 1], [1, 1], r"index -1 must be in 0\.\.4"),
        ([1, 5], [1, 1], r"index 5 must be in 0\.\.4"),
        ([1], [1, 1], r"values of float32\(2,\) must be float32, one for each of 1 indices"),
        ([1, 2], [1, np.nan], "value at position 1 must be finite"),
        ([1, 2], [-np.inf, 1], "value at position 0 must be finite"),
    ],
)
def test_anything_else_is_refused(indices: list[int], values: list[float], message: str) -> None:
    with pytest.raises(CompressionError, match=message):
        sparse(indices, values)


def test_other_types_shapes_and_dimensions_are_refused() -> None:
    with pytest.raises(CompressionError, match=r"indices of int32\(1,\) must be int64"):
        sparse([1], [1.0], of=np.int32)
    with pytest.raises(CompressionError, match="dim=0 must be at least 1"):
        sparse([], [], dim=0)
    with pytest.raises(CompressionError, match="must be float32"):
        SparseValues(indices=np.arange(2), values=np.zeros(2), dim=5)  # type: ignore[arg-type]
    with pytest.raises(CompressionError, match="of shape"):
        SparseValues(
            indices=np.zeros((1, 1), dtype=np.int64),
            values=np.zeros((1, 1), dtype=np.float32),
            dim=5,
        )
