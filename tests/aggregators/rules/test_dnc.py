import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from aggregators.errors import AggregationError, TooFewUpdatesError
from aggregators.rules import dnc as module
from aggregators.rules.dnc import dnc
from aggregators.rules.mean import mean
from tests.aggregators.matrices import ATTACKS, Matrix, attack, honest_rows, matrices
from tests.looped import looped

Floats = NDArray[np.float64]


def brute_force_scores(rows: Matrix) -> Floats:
    """Shejwalkar and Houmansadr (2021), Algorithm 2, lines 3 to 6, by the rows' own SVD."""
    wide = rows.astype(np.float64)
    centered = wide - wide.mean(axis=0)
    direction = np.linalg.svd(centered, full_matrices=False)[2][0]
    scores: Floats = np.square(centered @ direction)
    return scores


@looped("filter_fraction", [0.5, 1.0, 1.5])
@looped("seed", range(6))
def test_one_pass_agrees_with_brute_force(seed: int, filter_fraction: float) -> None:
    rows = honest_rows(seed, num_rows=11, dim=20)
    found = dnc(rows, num_byzantine=3, filter_fraction=filter_fraction, sample_dim=None)
    scores = brute_force_scores(rows)
    dropped = {0.5: 2, 1.0: 3, 1.5: 5}[filter_fraction]
    kept = np.argsort(scores)[: 11 - dropped]
    assert set(np.flatnonzero(found.selected)) == set(kept)
    np.testing.assert_allclose(found.vector, rows[kept].astype(np.float64).mean(axis=0), rtol=1e-6)
    assert found.scores is not None
    np.testing.assert_allclose(found.scores, scores / scores.sum(), rtol=1e-6)


def test_a_sample_of_all_coordinates_is_all_of_them() -> None:
    rows = honest_rows(seed=1, num_rows=9, dim=40)
    everything = dnc(rows, num_byzantine=2, sample_dim=None)
    sampled = dnc(rows, num_byzantine=2, sample_dim=40, num_iterations=5)
    assert sampled.vector.tobytes() == everything.vector.tobytes()


def test_passes_agree_with_brute_force_on_the_columns_they_drew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[Matrix] = []
    sample = module._sample

    def spy(*args: object) -> Matrix:
        drawn.append(sample(*args))  # type: ignore[arg-type]  # passed on as they came
        return drawn[-1]

    monkeypatch.setattr(module, "_sample", spy)
    rows = honest_rows(seed=2, num_rows=12, dim=200)
    found = dnc(rows, num_byzantine=2, num_iterations=3, sample_dim=30, seed=5)
    columns = {tuple(column) for column in rows.T.tolist()}
    kept = np.ones(12, dtype=bool)
    for part in drawn:
        assert part.shape == (12, 30)
        assert len({tuple(column) for column in part.T.tolist()} & columns) == 30
        kept[np.argsort(brute_force_scores(part))[10:]] = False
    assert len(drawn) == 3
    assert found.selected.tolist() == kept.tolist()


@looped("dim, sample_dim", [(7, 1), (7, 6), (1000, 999), (1000, 64), (5000, 2048), (4097, 4096)])
def test_runs_are_disjoint_and_hold_the_sample(dim: int, sample_dim: int) -> None:
    for seed in range(50):
        runs = module._runs(dim, sample_dim, np.random.default_rng(seed))
        columns = [column for start, stop in runs for column in range(start, stop)]
        assert len(columns) == len(set(columns)) == sample_dim
        assert columns == sorted(columns)
        assert set(columns) <= set(range(dim))


def test_every_coordinate_is_as_likely_as_any_other() -> None:
    dim, sample_dim, draws = 203, 130, 1000  # runs of two, and a short one
    counts = np.zeros(dim)
    for seed in range(draws):
        for start, stop in module._runs(dim, sample_dim, np.random.default_rng(seed)):
            counts[start:stop] += 1
    part = sample_dim / dim
    deviations = (counts - draws * part) / np.sqrt(draws * part * (1 - part))
    # Of 203 standard normal deviations one in fifty thousand draws exceeds 5.
    assert np.abs(deviations).max() < 5


def test_the_seed_decides_the_coordinates() -> None:
    rows = honest_rows(seed=3, num_rows=15, dim=500)
    first = dnc(rows, num_byzantine=5, sample_dim=10, seed=1)
    again = dnc(rows, num_byzantine=5, sample_dim=10, seed=1)
    other = dnc(rows, num_byzantine=5, sample_dim=10, seed=2)
    assert first.vector.tobytes() == again.vector.tobytes()
    assert first.selected.tolist() != other.selected.tolist()


@given(matrices(), st.sampled_from([1, 2, None]), st.data())
def test_row_order_leaves_every_bit(
    rows: Matrix, sample_dim: int | None, data: st.DataObject
) -> None:
    num_byzantine = data.draw(st.integers(0, (len(rows) - 1) // 2))
    order = data.draw(st.permutations(range(len(rows))))
    found = dnc(rows, num_byzantine=num_byzantine, sample_dim=sample_dim, num_iterations=2)
    shuffled = dnc(
        rows[order], num_byzantine=num_byzantine, sample_dim=sample_dim, num_iterations=2
    )
    assert np.isfinite(found.vector).all()
    assert shuffled.vector.tobytes() == found.vector.tobytes()


@pytest.mark.parametrize("num_byzantine", [0, 1, 4])
def test_one_pass_keeps_all_but_f(num_byzantine: int) -> None:
    rows = honest_rows(seed=4, num_rows=9, dim=30)
    found = dnc(rows, num_byzantine=num_byzantine, sample_dim=10)
    assert found.selected.sum() == 9 - num_byzantine


def test_where_every_row_is_dropped_by_some_pass_the_least_scores_are_kept() -> None:
    rows = np.random.default_rng(5).standard_normal((5, 300)).astype(np.float32)
    found = dnc(rows, num_byzantine=2, num_iterations=30, sample_dim=2)
    assert found.scores is not None
    assert set(np.flatnonzero(found.selected)) == set(np.argsort(found.scores)[:3])


@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "zeros"])
def test_equal_rows_far_from_the_others_are_excluded(name: str) -> None:
    honest = honest_rows(seed=6, num_rows=7, dim=100)
    found = dnc(np.vstack([attack(name, honest, 3), honest]), num_byzantine=3)
    assert found.selected.tolist() == [False] * 3 + [True] * 7
    assert found.vector.tobytes() == mean(honest).vector.tobytes()


def test_rows_far_out_in_different_directions_are_not_excluded() -> None:
    rows = honest_rows(seed=7, num_rows=10, dim=50)
    rows[0, 0], rows[1, 1] = 1e10, 1e3
    found = dnc(rows, num_byzantine=2)
    assert not found.selected[0]
    assert found.selected[1]
    assert found.vector[1] > 100


def test_rows_that_spare_the_sample_are_not_excluded() -> None:
    rows = honest_rows(seed=8, num_rows=10, dim=2000)
    rows[0, 17] = 1e30
    assert dnc(rows, num_byzantine=1, sample_dim=1, seed=1).vector[17] > 1e28


def test_equal_rows_give_that_row() -> None:
    rows = np.full((5, 3), 0.3, dtype=np.float32)
    assert dnc(rows, num_byzantine=2).vector.tolist() == rows[0].tolist()


def test_values_of_the_sample_must_be_finite() -> None:
    rows = np.full((3, 10), np.nan, dtype=np.float32)
    with pytest.raises(AggregationError, match="finite"):
        dnc(rows, num_byzantine=1, sample_dim=3)


def test_a_fraction_that_rounds_up_past_a_whole_number_is_that_number() -> None:
    rows = honest_rows(seed=10, num_rows=51, dim=10)
    assert 0.28 * 25 > 7
    assert dnc(rows, num_byzantine=25, filter_fraction=0.28).selected.sum() == 44


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("num_iterations", 0),
        ("sample_dim", 0),
        ("filter_fraction", 0.0),
        ("filter_fraction", float("nan")),
        ("filter_fraction", 3.0),
    ],
)
def test_settings_are_checked(setting: str, value: float) -> None:
    rows = honest_rows(seed=0, num_rows=6, dim=3)
    chosen = {"num_iterations": 1, "sample_dim": 3, "filter_fraction": 1.0, setting: value}
    with pytest.raises(AggregationError, match=f"{setting}=.* of dnc"):
        dnc(
            rows,
            num_byzantine=2,
            num_iterations=int(chosen["num_iterations"]),
            sample_dim=int(chosen["sample_dim"]),
            filter_fraction=chosen["filter_fraction"],
        )


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(TooFewUpdatesError, match=r"of dnc .* got n=4"):
        dnc(honest_rows(seed=0, num_rows=4, dim=3), num_byzantine=2)
