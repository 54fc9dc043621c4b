"""Rows that are a tensor, against numpy in float64 and the kernels of this process."""

import math
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from aggregators import torch_rows
from aggregators.dense_rows import as_rows
from aggregators.errors import AggregationError, TooFewUpdatesError
from aggregators.preaggregations.nearest_neighbour_mixing import nearest_neighbour_mixing
from aggregators.rows import Rows, Vector
from aggregators.rules.bulyan import bulyan
from aggregators.rules.fltrust import fltrust
from aggregators.rules.geometric_median import geometric_median
from aggregators.rules.krum import krum
from aggregators.rules.mean import mean
from aggregators.rules.mean_around_median import mean_around_median
from aggregators.rules.median import median
from aggregators.rules.multi_krum import multi_krum
from aggregators.rules.trimmed_mean import trimmed_mean
from aggregators.torch_rows import TorchRows
from tests.aggregators.matrices import (
    TIED_FLOAT,
    Matrix,
    exact_distance,
    honest_rows,
    matrices,
    same_bits,
)

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)
# One rounding of float32, and another where the other engine's last digit was a close call.
RTOL = 2.0**-23
on_devices = pytest.mark.parametrize("device", DEVICES)


def rows_of(matrix: Matrix, device: str = "cpu") -> TorchRows:
    return TorchRows(torch.tensor(matrix, device=device))


@pytest.fixture(autouse=True)
def narrow_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have matrices read in several blocks."""
    monkeypatch.setattr(torch_rows, "BLOCK_BYTES", 48 * 100)


def weighted_median_of(values: NDArray[np.float64], weights: list[int]) -> float:
    """Repeat each value as often as its weight says; the median of that."""
    repeated = [v for v, w in zip(values.tolist(), weights, strict=True) for _ in range(w)]
    return float(np.median(np.array(repeated)))


@on_devices
@given(matrices(elements=FLOATS))
def test_statistics_by_coordinate_are_those_of_sorted_columns(device: str, matrix: Matrix) -> None:
    n = len(matrix)
    rows, wide = rows_of(matrix, device), np.sort(matrix.astype(np.float64), axis=0)
    np.testing.assert_allclose(rows.median(), np.median(wide, axis=0), rtol=RTOL, atol=1e-45)
    for trim in range((n + 1) // 2):
        kept = wide[trim : n - trim]
        expected = [math.fsum(column) / len(kept) for column in kept.T.tolist()]
        np.testing.assert_allclose(rows.trimmed_mean(trim), expected, rtol=RTOL, atol=1e-45)


@on_devices
@given(matrices(elements=TIED_FLOAT))
def test_mean_around_the_median_keeps_the_lesser_of_two_equally_near(
    device: str, matrix: Matrix
) -> None:
    rows, wide = rows_of(matrix, device), matrix.astype(np.float64)
    for keep in range(1, len(matrix) + 1):
        expected = []
        for column in wide.T:
            middle = np.median(column)
            nearest = sorted(column.tolist(), key=lambda v: (abs(v - middle), v))
            expected.append(math.fsum(nearest[:keep]) / keep)
        np.testing.assert_allclose(rows.mean_around_median(keep), expected, rtol=RTOL)


@on_devices
@given(matrices(elements=FLOATS), st.data())
def test_weighted_median_is_the_median_of_repeated_values(
    device: str, matrix: Matrix, data: st.DataObject
) -> None:
    weights = data.draw(
        st.lists(st.integers(1, 4), min_size=len(matrix), max_size=len(matrix)), label="weights"
    )
    trim = data.draw(st.integers(0, (len(matrix) - 1) // 2), label="trim")
    found = rows_of(matrix, device).weighted_median(np.array(weights, dtype=np.float64), trim)
    expected = []
    for column in matrix.astype(np.float64).T:
        order = np.argsort(column, kind="stable")[trim : len(column) - trim]
        expected.append(weighted_median_of(column[order], [weights[i] for i in order]))
    np.testing.assert_allclose(found, expected, rtol=RTOL, atol=1e-45)


@on_devices
def test_weighted_median_without_any_weight_is_between_the_extremes(device: str) -> None:
    matrix = np.array([[1.0], [5.0], [2.0]], dtype=np.float32)
    assert rows_of(matrix, device).weighted_median(np.zeros(3), 0) == [3.0]
    assert as_rows(matrix).weighted_median(np.zeros(3), 0) == [3.0]


@on_devices
@given(matrices(elements=FLOATS), st.integers(0, 1000))
def test_combine_is_right_to_one_rounding_even_where_terms_cancel(
    device: str, matrix: Matrix, seed: int
) -> None:
    weights = np.random.default_rng(seed).integers(0, 1000, len(matrix)).astype(np.float64)
    matrix = np.vstack([matrix, -matrix, matrix[:1] * np.float32(2.0**-20)])
    weights = np.concatenate([weights, weights, [1.0]])
    found = rows_of(matrix, device).combine(weights, 3.0)
    terms = weights[:, np.newaxis] * matrix.astype(np.float64)
    expected = [math.fsum(column) / 3.0 for column in terms.T.tolist()]
    np.testing.assert_allclose(found, expected, rtol=RTOL, atol=1e-45)


@on_devices
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_distances_are_right_however_close_two_rows_are(device: str, scale: float) -> None:
    matrix = honest_rows(1, 7, 300)
    matrix[1] = matrix[0] * np.float32(1 + 1e-6)
    matrix[2] = matrix[0]
    matrix = (matrix * np.float32(scale)).astype(np.float32)
    rows = rows_of(matrix, device)
    gram = rows.gram()
    for i in range(7):
        for j in range(7):
            exact = exact_distance(matrix[i], matrix[j])
            # 2**-50 of the lengths, of which the closest measured by products are 2**26 parts.
            assert gram.squared_distances[i, j] == pytest.approx(exact, rel=2.0**-22, abs=0.0)
    wide = matrix.astype(np.float64)
    np.testing.assert_allclose(gram.inner, wide @ wide.T, rtol=1e-12)
    np.testing.assert_allclose(rows.norms(), np.linalg.norm(wide, axis=1), rtol=1e-12)


@on_devices
@given(st.randoms(use_true_random=False))
def test_products_and_distances_do_not_depend_on_the_order_of_rows(
    device: str, random: Random
) -> None:
    matrix = honest_rows(2, 9, 250)
    matrix[3] = matrix[4]
    order = list(range(9))
    random.shuffle(order)
    gram = rows_of(matrix, device).gram().take(order)
    shuffled = rows_of(matrix[order], device).gram()
    assert same_bits(gram.inner, shuffled.inner)
    assert same_bits(gram.squared_distances, shuffled.squared_distances)


@on_devices
def test_the_same_tensor_gives_the_same_bits(device: str) -> None:
    matrix = honest_rows(3, 12, 500)
    first, second = rows_of(matrix, device), rows_of(matrix, device)
    assert same_bits(first.gram().inner, second.gram().inner)
    np.testing.assert_array_equal(first.trimmed_mean(3), second.trimmed_mean(3))
    weights = np.random.default_rng(0).uniform(size=12)
    np.testing.assert_array_equal(first.combine(weights), second.combine(weights))


def test_blocks_do_not_change_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = honest_rows(4, 5, 777)
    vectors = []
    for block_bytes in (1, 48 * 5 * 100, 1 << 26):
        monkeypatch.setattr(torch_rows, "BLOCK_BYTES", block_bytes)
        rows = rows_of(matrix)
        vectors.append(
            np.concatenate([rows.median(), rows.trimmed_mean(1), rows.combine(np.ones(5), 5.0)])
        )
    np.testing.assert_array_equal(vectors[0], vectors[1])
    np.testing.assert_array_equal(vectors[0], vectors[2])


@on_devices
@pytest.mark.parametrize("step", range(6))
def test_derived_rows_are_those_of_the_local_engine(device: str, step: int) -> None:
    matrix = honest_rows(5, 8, 400)
    generator = np.random.default_rng(6)
    factors, mixing = generator.uniform(0.5, 2.0, 8), generator.dirichlet(np.ones(8), 8)
    vector: Vector = honest_rows(7, 1, 400)[0]

    def derive(rows: Rows) -> Rows:
        match step:
            case 0:
                return rows.take([5, 0, 5])
            case 1:
                return rows.scaled(factors).take([7, 6, 5, 4, 3, 2, 1, 0])
            case 2:
                return rows.mixed(mixing).scaled(factors).take([1, 2])
            case 3:
                return rows.extended(vector)
            case 4:
                return rows.extended(vector).extended(-vector).take([9, 3, 8]).scaled(factors[:3])
            case _:
                return rows.mixed(mixing).mixed(mixing)

    there, here = derive(rows_of(matrix, device)), derive(as_rows(matrix))
    assert (there.num_rows, there.dim) == (here.num_rows, here.dim)
    weights = np.arange(1.0, here.num_rows + 1.0)
    size = float(np.abs(matrix).max()) * 4
    np.testing.assert_allclose(there.read(3, 300), here.read(3, 300), rtol=RTOL, atol=RTOL * size)
    np.testing.assert_allclose(there.gram().inner, here.gram().inner, rtol=1e-9)
    np.testing.assert_allclose(
        there.gram().squared_distances, here.gram().squared_distances, rtol=1e-6, atol=1e-10
    )
    np.testing.assert_allclose(there.norms(), here.norms(), rtol=1e-9)
    for first, second in (
        (there.combine(weights, 9.0), here.combine(weights, 9.0)),
        (there.median(), here.median()),
        (there.mean_around_median(2), here.mean_around_median(2)),
        (there.weighted_median(weights, 0), here.weighted_median(weights, 0)),
    ):
        np.testing.assert_allclose(first, second, rtol=2 * RTOL, atol=RTOL * size)


@on_devices
def test_rules_agree_with_the_local_engine(device: str) -> None:
    matrix = honest_rows(8, 15, 1000)
    matrix[2] *= np.float32(1e6)
    rows = rows_of(matrix, device)
    root = honest_rows(9, 1, 1000)[0]
    for there, here in (
        (mean(rows), mean(matrix)),
        (krum(rows, num_byzantine=3), krum(matrix, num_byzantine=3)),
        (multi_krum(rows, num_byzantine=3), multi_krum(matrix, num_byzantine=3)),
        (bulyan(rows, num_byzantine=3), bulyan(matrix, num_byzantine=3)),
        (median(rows), median(matrix)),
        (trimmed_mean(rows, trim=3), trimmed_mean(matrix, trim=3)),
        (mean_around_median(rows, num_byzantine=3), mean_around_median(matrix, num_byzantine=3)),
        (geometric_median(rows), geometric_median(matrix)),
        (fltrust(rows, root_update=root), fltrust(matrix, root_update=root)),
        (
            trimmed_mean(nearest_neighbour_mixing(rows, num_byzantine=3), trim=3),
            trimmed_mean(nearest_neighbour_mixing(matrix, num_byzantine=3), trim=3),
        ),
    ):
        np.testing.assert_allclose(there.vector, here.vector, rtol=1e-6)
        np.testing.assert_allclose(there.weights, here.weights, atol=1e-9)
        np.testing.assert_array_equal(there.selected, here.selected)


@on_devices
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_entries_that_are_not_finite_are_refused(device: str, bad: float) -> None:
    matrix = honest_rows(10, 5, 300)
    matrix[2, 250] = bad
    rows = rows_of(matrix, device)
    for operation in (
        rows.gram,
        rows.norms,
        rows.median,
        lambda: rows.combine(np.array([1.0, 1.0, 0.0, 1.0, 1.0])),
        lambda: rows.trimmed_mean(1),
        lambda: rows.mean_around_median(3),
        lambda: rows.weighted_median(np.ones(5), 1),
        lambda: rows.mixed(np.eye(5)).median(),
    ):
        with pytest.raises(AggregationError, match="rows must be finite"):
            operation()


def test_bad_arguments_are_refused() -> None:
    for shape in ((3,), (0, 3), (3, 0)):
        with pytest.raises(AggregationError, match=r"must be float32 of shape \(n, d\)"):
            TorchRows(torch.zeros(shape))
    with pytest.raises(AggregationError, match=r"tensor of torch\.float64\(2, 3\)"):
        TorchRows(torch.zeros((2, 3), dtype=torch.float64))
    rows = rows_of(honest_rows(11, 5, 10))
    with pytest.raises(AggregationError, match=r"trim=3 must satisfy 0 <= 2 \* trim < n, got n=5"):
        rows.trimmed_mean(3)
    with pytest.raises(AggregationError, match="trim=-1"):
        rows.weighted_median(np.ones(5), -1)
    with pytest.raises(AggregationError, match=r"keep=6 must be in 1\.\.n=5"):
        rows.mean_around_median(6)
    with pytest.raises(AggregationError, match="must be float32 of shape"):
        rows.extended(np.zeros(9, dtype=np.float32))
    with pytest.raises(TooFewUpdatesError, match="got n=5"):
        krum(rows, num_byzantine=2)


def test_the_tensor_may_be_strided_and_need_gradients_and_is_not_modified() -> None:
    base = torch.tensor(honest_rows(12, 20, 6)).T.requires_grad_()
    before = base.detach().clone()
    found = median(TorchRows(base)).vector
    assert torch.equal(base, before)
    np.testing.assert_allclose(found, np.median(before.numpy(), axis=0), rtol=RTOL)
    block = TorchRows(base).read(0, 5)
    block[:] = 0.0
    assert torch.equal(base, before)


def test_zeros_come_out_positive() -> None:
    rows = rows_of(np.array([[-0.0], [0.0], [-0.0]], dtype=np.float32))
    vectors = (rows.median(), rows.trimmed_mean(1), rows.combine(np.ones(3)))
    assert not any(np.signbit(vector).any() for vector in vectors)
