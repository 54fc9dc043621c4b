import numpy as np
import pytest

from aggregators.rows.dense_rows import as_rows
from aggregators.rows.gram import Gram
from aggregators.rows.stored_rows import MAX_WIDE_ROWS
from tests.aggregators.matrices import (
    LARGEST,
    SMALLEST,
    Floats,
    Matrix,
    exact_products,
    honest_rows,
    integer_rows,
    near_identical_rows,
    same_bits,
    tied_rows,
)
from tests.looped import looped

# Few rows are multiplied in float64, many in float32.
WIDE, NARROW = 9, 40
TOLERANCES = {WIDE: 1e-9, NARROW: 1e-4}
BOTH = pytest.mark.parametrize("num_rows", [WIDE, NARROW])

LongFloats = np.ndarray[tuple[int, int], np.dtype[np.longdouble]]


def reference(rows: Matrix) -> LongFloats:
    """Squared distances by differences in extended precision."""
    wide = rows.astype(np.longdouble)
    return np.array([((wide - row) ** 2).sum(axis=1) for row in wide])


def distances(rows: Matrix) -> Floats:
    return as_rows(rows).gram().squared_distances


def relative_error(found: Floats, exact: LongFloats) -> float:
    equal = exact == 0
    assert (found[equal] == 0).all()
    return float((np.abs(found - exact) / np.where(equal, 1, exact)).max())


def assert_close(rows: Matrix) -> None:
    error = relative_error(distances(rows), reference(rows))
    assert error <= TOLERANCES[WIDE if len(rows) <= MAX_WIDE_ROWS else NARROW]


@BOTH
@looped("dim", [1, 15, 16, 17, 1023, 1025, 2047, 2048, 2049, 5000])
def test_distances_hold_for_every_width(num_rows: int, dim: int) -> None:
    assert_close(honest_rows(dim, num_rows, dim))


@looped("num_rows", [1, 2, 3, 4, 5, 31, 32, 33, 34, 35, 36, 47, 49, 97])
def test_distances_hold_for_every_number_of_rows(num_rows: int) -> None:
    assert_close(honest_rows(num_rows, num_rows, 100))


@BOTH
@looped("exponent", np.arange(-20.0, 1.0, 0.5))
def test_distances_of_near_identical_rows_at_a_large_offset_hold(
    num_rows: int, exponent: float
) -> None:
    # From differences of a float32 step to rows that are far apart: where products stop being
    # enough is in between.
    assert_close(near_identical_rows(1, num_rows, 600, spread=1000 * 2.0**exponent))


@BOTH
def test_values_of_a_thousand_that_differ_by_a_thousandth_hold(num_rows: int) -> None:
    signs = np.random.default_rng(2).choice([-1e-3, 0.0, 1e-3], (num_rows, 700))
    assert_close((1000.0 + signs).astype(np.float32))


def test_uncentred_float32_products_would_not_pass() -> None:
    rows = near_identical_rows(1, NARROW, 600)
    products = rows @ rows.T
    norms = np.diagonal(products)
    naive = (norms[:, np.newaxis] + norms - 2 * products).astype(np.float64)
    np.fill_diagonal(naive, 0.0)
    assert relative_error(naive, reference(rows)) > 1.0


@BOTH
@looped("far", [1e6, 1e30, -1e30, 3e38, LARGEST])
@looped("honest", [1.0, 1e-30, 1e-38])
def test_far_rows_leave_the_distances_of_small_ones_alone(
    num_rows: int, far: float, honest: float
) -> None:
    rows = honest_rows(3, num_rows, 300) * np.float32(honest)
    rows[:3] = far
    rows[1, ::2] *= -1
    assert_close(rows)


@BOTH
@looped("value", [3e38, LARGEST, 1e-38, 1e-40, SMALLEST, 3 * SMALLEST])
def test_values_at_the_ends_of_the_range_hold(num_rows: int, value: float) -> None:
    signs = np.random.default_rng(4).choice([-1.0, 0.0, 1.0], (num_rows, 100))
    assert_close((signs * value).astype(np.float32))


@BOTH
def test_rows_of_very_different_scales_hold(num_rows: int) -> None:
    exponents = np.linspace(-140, 120, num_rows)
    rows = honest_rows(5, num_rows, 200).astype(np.float64) * 2.0 ** exponents[:, np.newaxis]
    assert_close(rows.astype(np.float32))


@BOTH
def test_columns_of_very_different_scales_hold(num_rows: int) -> None:
    exponents = np.linspace(-140, 120, 3000)
    rows = honest_rows(6, num_rows, 3000).astype(np.float64) * 2.0**exponents
    assert_close(rows.astype(np.float32))


@BOTH
@looped("value", [1.0, 1000.1, 1e-40, 3e38])
def test_exact_duplicates_have_distance_zero_and_equal_products(
    num_rows: int, value: float
) -> None:
    rows = (honest_rows(7, num_rows, 2500) * np.float32(0.5)) * np.float32(value)
    rows[num_rows // 2 :] = rows[1]
    gram = as_rows(rows).gram()
    copies = [1, *range(num_rows // 2, num_rows)]
    assert not gram.squared_distances[np.ix_(copies, copies)].any()
    assert np.unique(gram.inner[np.ix_(copies, copies)]).size == 1


@BOTH
def test_whole_numbers_have_exact_products(num_rows: int) -> None:
    rows = tied_rows(8, num_rows, 300)
    gram = as_rows(rows).gram()
    np.testing.assert_array_equal(gram.inner, exact_products(rows))
    np.testing.assert_array_equal(gram.squared_distances, reference(rows).astype(np.float64))


@BOTH
def test_products_are_near_those_without_rounding(num_rows: int) -> None:
    rows = np.random.default_rng(9).standard_normal((num_rows, 2100)).astype(np.float32)
    exact = exact_products(rows)
    lengths = np.sqrt(np.diagonal(exact))
    error = np.abs(as_rows(rows).gram().inner - exact) / np.multiply.outer(lengths, lengths)
    # Sums of 64 float32 products side by side lose few of 24 bits; float64 ones of 53.
    assert error.max() < (2.0**-20 if num_rows == NARROW else 2.0**-50)


@BOTH
def test_gram_is_symmetric_and_zero_on_the_diagonal_of_distances(num_rows: int) -> None:
    gram = as_rows(honest_rows(10, num_rows, 333)).gram()
    assert same_bits(gram.inner, np.ascontiguousarray(gram.inner.T))
    assert same_bits(gram.squared_distances, np.ascontiguousarray(gram.squared_distances.T))
    assert not np.diagonal(gram.squared_distances).any()
    assert (gram.squared_distances >= 0.0).all()


@BOTH
def test_a_product_depends_on_its_two_rows_alone(num_rows: int) -> None:
    rows = honest_rows(11, num_rows, 2500)
    inner = as_rows(rows).gram().inner
    others = rows[::-1].copy()
    others[2 : num_rows - 2] = 0.0
    swapped = as_rows(others).gram().inner
    picked = [0, 1, num_rows - 2, num_rows - 1]
    mirrored = [num_rows - 1 - row for row in picked]
    assert same_bits(inner[np.ix_(picked, picked)], swapped[np.ix_(mirrored, mirrored)])


@BOTH
def test_norms_agree_with_the_diagonal_and_with_numpy(num_rows: int) -> None:
    rows = near_identical_rows(12, num_rows, 2100)
    rows[0] = 3e38
    rows[1] = 1e-40
    norms = as_rows(rows).norms()
    exact = np.sqrt((rows.astype(np.longdouble) ** 2).sum(axis=1)).astype(np.float64)
    np.testing.assert_allclose(norms, exact, rtol=1e-13)
    np.testing.assert_allclose(norms, as_rows(rows).gram().norms, rtol=1e-6)


@BOTH
def test_scaled_rows_have_the_gram_of_rows_rounded_to_float32(num_rows: int) -> None:
    rows = honest_rows(13, num_rows, 300)
    factors = np.random.default_rng(13).random(num_rows)
    written = (rows.astype(np.float64) * factors[:, np.newaxis]).astype(np.float32)
    found = as_rows(rows).scaled(factors).gram()
    assert same_bits(found.inner, as_rows(written).gram().inner)
    assert same_bits(found.squared_distances, as_rows(written).gram().squared_distances)
    assert same_bits(as_rows(rows).scaled(factors).norms(), as_rows(written).norms())


@BOTH
def test_an_appended_row_is_measured_against_all(num_rows: int) -> None:
    rows = near_identical_rows(14, num_rows, 2100)
    grown = as_rows(rows[:-1]).extended(rows[-1]).gram()
    whole = as_rows(rows).gram()
    assert isinstance(grown, Gram)
    assert same_bits(grown.inner, whole.inner)
    np.testing.assert_allclose(
        grown.squared_distances, whole.squared_distances, rtol=TOLERANCES[num_rows]
    )


@BOTH
@looped("spread", [1e-3, 1.0, 1000.0])
def test_mixed_rows_have_the_distances_of_averages(num_rows: int, spread: float) -> None:
    rows = near_identical_rows(15, num_rows, 300, spread=spread)
    matrix = np.random.default_rng(15).dirichlet(np.ones(num_rows), 6)
    averages = np.einsum("ij,jk->ik", matrix.astype(np.longdouble), rows.astype(np.longdouble))
    gram = as_rows(rows).mixed(matrix).gram()
    exact = np.array([((averages - row) ** 2).sum(axis=1) for row in averages])
    # Distances of averages come from distances of rows, not from products that cancel.
    assert relative_error(gram.squared_distances, exact) < 1e-3


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", [0, 16, 2047, 2048, 4099])
@BOTH
def test_a_single_value_that_is_not_finite_is_found(num_rows: int, bad: float, column: int) -> None:
    rows = integer_rows(16, num_rows, 4100)
    rows[num_rows - 1, column] = bad
    for measure in (as_rows(rows).gram, as_rows(rows).norms):
        with pytest.raises(ValueError, match="rows must be finite"):
            measure()
