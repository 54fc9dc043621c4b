import numpy as np
import pytest

from aggregators.errors import AggregationError
from aggregators.rows.dense_rows import as_rows
from aggregators.rows.rows import Vector
from aggregators.rules.reference import gram_with_reference
from tests.aggregators.matrices import honest_rows


def test_the_vector_comes_last() -> None:
    rows = honest_rows(seed=1, num_rows=3, dim=5)
    whole, own = gram_with_reference(as_rows(rows), [2, 0, 1], np.ones(5, np.float32), "it")
    ordered = np.vstack([rows[[2, 0, 1]], np.ones(5)]).astype(np.float64)
    np.testing.assert_allclose(whole.inner, ordered @ ordered.T, rtol=1e-12)
    np.testing.assert_allclose(own.inner, rows.astype(np.float64) @ rows.T, rtol=1e-6)


@pytest.mark.parametrize(
    ("vector", "reason"),
    [
        (np.ones(4, np.float32), "shape"),
        (np.ones((1, 5), np.float32), "shape"),
        (np.ones(5), "float64"),
        (np.full(5, np.nan, np.float32), "finite"),
        (np.full(5, np.inf, np.float32), "finite"),
    ],
)
def test_what_does_not_match_the_rows_is_refused(vector: Vector, reason: str) -> None:
    with pytest.raises(AggregationError, match=f"root_update of fltrust.*{reason}"):
        gram_with_reference(
            as_rows(np.ones((2, 5), np.float32)), [0, 1], vector, "root_update of fltrust"
        )
