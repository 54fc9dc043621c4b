import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from aggregators.errors import AggregationError
from aggregators.rows.dense_rows import as_rows
from aggregators.rules.fltrust import fltrust, fltrust_weights
from tests.aggregators.matrices import ATTACKS, Matrix, attack, honest_rows, matrices
from tests.looped import looped

Floats = NDArray[np.float64]


def brute_force(rows: Matrix, root: Matrix) -> Floats:
    """Cao et al. (2021), Equations 2 to 4, row by row."""
    wide_root = root.astype(np.float64)
    total, vector = 0.0, np.zeros(len(root))
    for row in rows.astype(np.float64):
        cosine = float(row @ wide_root / np.linalg.norm(row) / np.linalg.norm(wide_root))
        trust = max(cosine, 0.0)
        total += trust
        vector += trust * np.linalg.norm(wide_root) / np.linalg.norm(row) * row
    return vector / total


@looped("seed", range(6))
def test_agrees_with_brute_force(seed: int) -> None:
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((9, 12)).astype(np.float32)
    root = generator.standard_normal(12).astype(np.float32)
    found = fltrust(rows, root_update=root)
    np.testing.assert_allclose(found.vector, brute_force(rows, root), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.weights @ rows, found.vector, rtol=1e-5, atol=1e-6)
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(root)
    assert found.scores is not None
    np.testing.assert_allclose(found.scores, 1.0 - rows @ root / lengths, rtol=1e-5)


def test_rows_that_point_away_have_no_weight() -> None:
    rows = np.array([[2, 0], [-3, 0], [0, 5], [0, 0]], dtype=np.float32)
    found = fltrust(rows, root_update=np.array([4, 0], dtype=np.float32))
    assert found.vector.tolist() == [4.0, 0.0]
    assert found.weights.tolist() == [2.0, 0.0, 0.0, 0.0]
    assert found.selected.tolist() == [True, False, False, False]
    assert found.scores is not None
    assert found.scores.tolist() == [0.0, 2.0, 1.0, 1.0]


@pytest.mark.parametrize("root", [[-1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
def test_without_any_trust_the_result_is_zeros(root: list[float]) -> None:
    rows = np.array([[2, 0], [0, 0]], dtype=np.float32)
    found = fltrust(rows, root_update=np.array(root, dtype=np.float32))
    assert found.vector.tolist() == [0.0, 0.0]
    assert found.weights.tolist() == [0.0, 0.0]
    assert not found.selected.any()


@given(matrices(), st.data())
def test_row_order_leaves_every_bit(rows: Matrix, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(rows))))
    root = rows.max(axis=0)
    found = fltrust(rows, root_update=root)
    shuffled = fltrust(rows[order], root_update=root)
    assert shuffled.vector.tobytes() == found.vector.tobytes()
    assert shuffled.weights.tobytes() == found.weights[order].tobytes()


@given(matrices(), st.data())
def test_is_at_most_as_long_as_the_root_update(rows: Matrix, data: st.DataObject) -> None:
    root = data.draw(st.sampled_from([rows.max(axis=0), rows[0], -rows[0]]))
    vector = fltrust(rows, root_update=root).vector.astype(np.float64)
    # A part in a million, and the least float32 per coordinate, for rounding.
    longest = float(np.linalg.norm(root.astype(np.float64))) * (1 + 1e-6) + 3e-45
    assert np.linalg.norm(vector) <= longest


@looped("name", ATTACKS)
def test_any_number_of_attackers_stays_within_the_root_updates_length(name: str) -> None:
    honest = honest_rows(seed=1, num_rows=1, dim=20)
    root = honest_rows(seed=2, num_rows=1, dim=20)[0]
    rows = np.vstack([attack(name, honest, 9), honest])
    vector = fltrust(rows, root_update=root).vector
    assert np.linalg.norm(vector) <= np.linalg.norm(root) * (1 + 1e-6)


def test_scaling_single_rows_leaves_the_result() -> None:
    rows = honest_rows(seed=3, num_rows=6, dim=8)
    root = honest_rows(seed=4, num_rows=1, dim=8)[0]
    factors = 10.0 ** np.array([[-30], [-5], [0], [3], [10], [30]])
    found = fltrust((rows * factors).astype(np.float32), root_update=root)
    np.testing.assert_allclose(found.vector, fltrust(rows, root_update=root).vector, rtol=1e-5)


def test_weights_alone_follow_from_the_gram_matrix() -> None:
    rows = honest_rows(seed=5, num_rows=4, dim=8)
    found = fltrust_weights(as_rows(rows).gram())
    expected = fltrust(rows[:3], root_update=rows[3]).weights
    np.testing.assert_allclose(found.weights / found.total, expected, rtol=1e-12)


def test_the_root_update_alone_is_refused() -> None:
    with pytest.raises(AggregationError, match="at least one row"):
        fltrust_weights(as_rows(np.ones((1, 2), np.float32)).gram())


def test_the_root_update_must_match_the_rows() -> None:
    with pytest.raises(AggregationError, match="root_update of fltrust"):
        fltrust(np.ones((2, 2), np.float32), root_update=np.ones(3, np.float32))
