from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregators import rows as rows_module
from aggregators.errors import AggregationError
from aggregators.rows import Rows, as_rows, canonical_order
from privacy.clipping import scale_vector
from tests.aggregators.matrices import TIED_FLOAT, Matrix, matrices


def test_blocks_put_the_matrix_together_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "BLOCK_ENTRIES", 300)
    matrix = np.arange(3 * 1000, dtype=np.float32).reshape(3, 1000)
    pieces = list(as_rows(matrix).blocks())
    assert [columns.stop - columns.start for columns, _ in pieces] == [100] * 10
    np.testing.assert_array_equal(np.hstack([block for _, block in pieces]), matrix)


def test_blocks_apply_each_rows_factor() -> None:
    matrix = np.random.default_rng(0).standard_normal((2, 50)).astype(np.float32)
    rows = Rows(vectors=tuple(matrix), scales=(1.0, 0.3))
    ((_, block),) = list(rows.blocks())
    np.testing.assert_array_equal(block[0], matrix[0])
    np.testing.assert_array_equal(block[1], scale_vector(matrix[1], 0.3))


def test_rows_may_be_memory_maps_and_strided_views(tmp_path: Path) -> None:
    matrix = np.random.default_rng(1).standard_normal((3, 40)).astype(np.float32)
    path = tmp_path / "row.bin"
    path.write_bytes(matrix[0].tobytes())
    mapped = np.memmap(path, dtype=np.float32, mode="r", shape=(40,))
    strided = np.repeat(matrix[1], 2)[::2]
    ((_, block),) = list(as_rows([mapped, strided, matrix[2]]).blocks())
    np.testing.assert_array_equal(block, matrix)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_entries_that_are_not_finite_are_refused(bad: float) -> None:
    matrix = np.zeros((3, 10), dtype=np.float32)
    matrix[1, 7] = bad
    with pytest.raises(AggregationError, match=r"rows must be finite: .* columns 0 to 9"):
        list(as_rows(matrix).blocks())


def test_rows_of_wrong_shape_or_type_are_refused() -> None:
    good = np.zeros(3, dtype=np.float32)
    with pytest.raises(AggregationError, match="at least one row"):
        as_rows([])
    with pytest.raises(AggregationError, match="row 1 of shape"):
        as_rows([good, np.zeros(4, dtype=np.float32)])
    with pytest.raises(AggregationError, match="row 0 of shape"):
        as_rows(np.zeros((2, 0), dtype=np.float32))
    with pytest.raises(AggregationError, match="must be float32"):
        as_rows([good, np.zeros(3)])  # type: ignore[list-item]  # the refusal is under test


@given(matrices(elements=TIED_FLOAT), st.randoms(use_true_random=False))
def test_canonical_order_sorts_rows_by_value(matrix: Matrix, random: Random) -> None:
    shuffled = list(range(len(matrix)))
    random.shuffle(shuffled)
    matrix = matrix[shuffled]
    order = canonical_order(as_rows(matrix))
    assert sorted(order) == list(range(len(matrix)))
    # Python compares tuples lexicographically; the second entry puts -0.0 before 0.0.
    keys = [[(float(x), not np.signbit(x)) for x in row] for row in matrix]
    assert [keys[i] for i in order] == sorted(keys)


def test_canonical_order_looks_past_long_common_prefixes() -> None:
    matrix = np.zeros((4, 200_000), dtype=np.float32)
    matrix[0, 199_999], matrix[1, 100_000], matrix[2, 199_999] = 1.0, -1.0, -2.0
    assert canonical_order(as_rows(matrix)) == [1, 2, 3, 0]
