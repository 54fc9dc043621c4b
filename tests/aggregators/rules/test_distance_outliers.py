import numpy as np
import pytest

from aggregators.errors import TooFewUpdatesError
from aggregators.rules.distance_outliers import distance_outliers, pick
from tests.aggregators.matrices import Matrix, honest_rows
from tests.looped import looped


def by_definition(rows: Matrix) -> list[bool]:
    """Tell who stays, by sorting lists."""
    wide = rows.astype(np.float64)
    medians = []
    for place, row in enumerate(wide):
        others = sorted(float(((row - other) ** 2).sum()) for other in np.delete(wide, place, 0))
        medians.append(others[(len(others) - 1) // 2])
    limit = 3 * sorted(medians)[(len(medians) - 1) // 2]
    return [median <= limit for median in medians]


@looped("num_rows", [2, 3, 4, 5, 10, 11])
@looped("seed", range(4))
def test_rows_whose_median_distance_is_above_three_medians_are_left_out(
    num_rows: int, seed: int
) -> None:
    rows = honest_rows(seed, num_rows, dim=6)
    rows[0] *= np.float32(50)
    result = distance_outliers(rows)
    assert result.selected.tolist() == by_definition(rows)
    np.testing.assert_allclose(
        result.vector, rows[result.selected].mean(axis=0, dtype=np.float64), rtol=1e-6
    )
    if num_rows > 3:
        assert not result.selected[0]


def test_one_row_is_the_result() -> None:
    row = honest_rows(seed=1, num_rows=1, dim=3)
    assert distance_outliers(row).vector.tolist() == row[0].tolist()


def test_equal_rows_all_stay() -> None:
    assert distance_outliers(np.ones((5, 2), dtype=np.float32)).selected.all()


def test_two_members_of_a_shared_round_are_too_few_to_call_one_far_out() -> None:
    with pytest.raises(TooFewUpdatesError, match="at least 3 updates, got n=2"):
        pick(np.zeros((2, 2), dtype=np.int64), 0, None)
