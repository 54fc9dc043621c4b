"""What attackers can do to each rule: as many as it declares to survive, and more."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregators.errors import AggregationError
from aggregators.registry import traits_of
from tests.aggregators.contract import (
    EVERY_RULE,
    EVERYTHING,
    Case,
    apply,
    case_of,
    least_rows,
    most_byzantine,
)
from tests.aggregators.matrices import (
    EXTREME_ATTACKS,
    Floats,
    Matrix,
    attack,
    honest_rows,
)
from tests.looped import looped

DIM: Final = 60
ROUNDING: Final = 2.0**-20  # of float32 results, relative to what bounds them

# Rules with an advantage that a majority does not take away: the server's own update.
TRUSTING: Final = ("fltrust", "monna")
# Pipelines of a robust rule, with as many attackers as the steps leave it with.
ROBUST: Final = tuple(rule for rule in EVERYTHING if traits_of(rule).breakdown(11, 1) > 0)


def num_attackers(rule: str, num_rows: int, num_byzantine: int) -> int:
    """Count how many of n rows a rule survives by its own account; of those, at most n - 1."""
    survived = traits_of(rule).breakdown(num_rows, num_byzantine)
    # After a step the rule tolerates as many as the step was told of.
    return min(survived, num_byzantine) if "+" in rule else min(survived, num_rows - 1)


def length(vector: Floats) -> float:
    return math.sqrt(math.fsum((vector.astype(np.float64) ** 2).tolist()))


def diameter(rows: Floats) -> float:
    return max(length(a - b) for a in rows for b in rows)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """What a rule made of honest rows and attackers; `pivot` is the server's own update."""

    vector: Floats
    honest: Floats
    num_rows: int
    num_byzantine: int
    pivot: Floats

    @property
    def to_nearest(self) -> float:
        return min(length(self.vector - row) for row in self.honest)

    @property
    def to_mean(self) -> float:
        return length(self.vector - self.honest.mean(axis=0))

    def within_range(self, widened: float = 0.0) -> bool:
        low, high = self.honest.min(axis=0), self.honest.max(axis=0)
        margin = widened * (high - low) + ROUNDING
        return bool(((self.vector >= low - margin) & (self.vector <= high + margin)).all())


def within_range(outcome: Outcome) -> bool:
    """Yin et al. (2018): every coordinate is in the range of the honest ones."""
    return outcome.within_range()


def within_twice_the_range(outcome: Outcome) -> bool:
    """Xie et al. (2018): kept values are no farther from the median than the honest ones."""
    return outcome.within_range(widened=1.0)


def near_an_honest_row(outcome: Outcome) -> bool:
    """Blanchard et al. (2017): the chosen score is at most that of an honest row."""
    return outcome.to_nearest <= krum_factor(outcome) * diameter(outcome.honest)


def near_the_selected(outcome: Outcome) -> bool:
    """An attacker that is selected has at most the score of an honest row that is not."""
    return outcome.to_mean <= (1 + krum_factor(outcome)) * diameter(outcome.honest)


def krum_factor(outcome: Outcome) -> float:
    n, f = outcome.num_rows, outcome.num_byzantine
    return math.sqrt((n - f - 2) / (n - 2 * f - 1))


def near_the_honest_rows(outcome: Outcome) -> bool:
    """El Mhamdi et al. (2020): every kept row is within the honest diameter of an honest one."""
    return outcome.to_nearest <= diameter(outcome.honest) * (1 + ROUNDING)


def near_what_stays(outcome: Outcome) -> bool:
    """Every kept row is within sqrt(3) honest diameters of an honest one."""
    return outcome.to_mean <= (1 + math.sqrt(3)) * diameter(outcome.honest) * (1 + 1e-4)


def near_the_pivot(outcome: Outcome) -> bool:
    """Farhadkhani et al. (2023): kept rows are no farther from the pivot than the honest ones."""
    farthest = max(length(row - outcome.pivot) for row in outcome.honest)
    return length(outcome.vector - outcome.pivot) <= farthest * (1 + ROUNDING)


def near_the_median(outcome: Outcome) -> bool:
    """Minsker (2015), Lemma 2.1: with a share alpha < 1/2, 2 (1 - alpha) / (1 - 2 alpha) radii."""
    n, f = outcome.num_rows, outcome.num_byzantine
    center = outcome.honest.mean(axis=0)
    radius = max(length(row - center) for row in outcome.honest)
    return outcome.to_mean <= 2 * (n - f) / (n - 2 * f) * radius * (1 + 1e-4)


def near_the_mean(outcome: Outcome) -> bool:
    """A constant number of honest diameters from the honest mean."""
    return outcome.to_mean <= 10 * diameter(outcome.honest)


def no_longer_than_honest_rows(outcome: Outcome) -> bool:
    """Rules that clip bound the length only: 1.5 times that of the honest rows."""
    longest = max(length(row) for row in outcome.honest)
    return length(outcome.vector) <= 1.5 * longest * (1 + ROUNDING)


def no_longer_than_the_pivot(outcome: Outcome) -> bool:
    """Cao et al. (2021): every row is given the length of the server's own update."""
    return length(outcome.vector) <= length(outcome.pivot) * (1 + ROUNDING)


Bound: TypeAlias = Callable[[Outcome], bool]
BOUNDS: Final[dict[str, Bound]] = {
    "aegis": near_the_mean,
    "agmami": no_longer_than_honest_rows,
    "auto-geometric-median": near_the_mean,
    "bulyan": within_twice_the_range,
    "caf": near_the_mean,
    "centered-clipping": no_longer_than_honest_rows,
    "distance-outliers": near_what_stays,
    "flame": no_longer_than_honest_rows,
    "fltrust": no_longer_than_the_pivot,
    "geometric-median": near_the_median,
    "hybrid": within_range,
    "krum": near_an_honest_row,
    "mean-around-median": within_twice_the_range,
    "median": within_range,
    "minimum-diameter": near_the_honest_rows,
    "monna": near_the_pivot,
    "multi-krum": near_the_selected,
    "norm-threshold": no_longer_than_honest_rows,
    "sign-guard": no_longer_than_honest_rows,
    "trimmed-mean": within_range,
}


def bound_of(rule: str) -> Bound:
    """Find what bounds a rule; a pipeline ends in its rule, but of rows that were mixed."""
    return near_the_mean if "+" in rule else BOUNDS[rule]


def outcome_of(rule: str, case: Case, num_honest: int, *, num_byzantine: int) -> Outcome:
    """Run a rule on honest rows followed by attackers."""
    result = apply(rule, case, num_byzantine=num_byzantine)
    assert np.isfinite(result.vector).all()
    return Outcome(
        vector=result.vector.astype(np.float64),
        honest=case.rows[:num_honest].astype(np.float64),
        num_rows=len(case.rows),
        num_byzantine=num_byzantine,
        pivot=case.root_update.astype(np.float64),
    )


def attacked(name: str, honest: Matrix, count: int) -> Case:
    """Add attackers; the server's own update is like an honest one."""
    return case_of(np.vstack([honest, attack(name, honest, count)]))


def test_every_robust_rule_has_a_bound() -> None:
    assert set(BOUNDS) == {rule for rule in ROBUST if "+" not in rule}


# As many attackers as declared.


@looped("name", EXTREME_ATTACKS)
@looped("num_rows", [10, 11])
@pytest.mark.parametrize("rule", ROBUST)
def test_as_many_attackers_as_declared_leave_the_result_within_its_bound(
    rule: str, num_rows: int, name: str
) -> None:
    num_byzantine = most_byzantine(rule, num_rows)
    count = num_attackers(rule, num_rows, num_byzantine)
    honest = honest_rows(8, num_rows - count, DIM)
    case = attacked(name, honest, count)
    outcome = outcome_of(rule, case, num_rows - count, num_byzantine=num_byzantine)
    assert bound_of(rule)(outcome)


@pytest.mark.parametrize("rule", ROBUST)
@given(seed=st.integers(0, 10_000), magnitude=st.floats(-6, 30), share=st.floats(0, 1))
def test_attackers_of_any_size_leave_the_result_within_its_bound(
    rule: str, seed: int, magnitude: float, share: float
) -> None:
    num_rows = 12
    num_byzantine = most_byzantine(rule, num_rows)
    count = round(share * num_attackers(rule, num_rows, num_byzantine))
    honest = honest_rows(seed, num_rows - count, 10)
    noise = np.random.default_rng(seed).standard_normal((count, 10)) * 10.0**magnitude
    case = case_of(np.vstack([honest, noise.astype(np.float32)]))
    outcome = outcome_of(rule, case, num_rows - count, num_byzantine=num_byzantine)
    assert bound_of(rule)(outcome)


@pytest.mark.parametrize("rule", ROBUST)
def test_an_outlier_has_no_more_influence_the_farther_out_it_is(rule: str) -> None:
    honest = honest_rows(9, 10, DIM)
    direction = attack("alternating_1e30", honest, 1) / np.float32(1e30)
    moved = []
    for distance in (1e6, 1e12, 1e30):
        case = case_of(np.vstack([honest, direction * np.float32(distance)]))
        moved.append(outcome_of(rule, case, 10, num_byzantine=1).to_mean)
    assert moved[2] <= moved[1] * (1 + 1e-3) + 1e-5
    assert moved[1] <= moved[0] * (1 + 1e-3) + 1e-5


# Rules that claim nothing, and attackers that are more than was claimed.


def test_one_row_moves_the_mean_anywhere() -> None:
    honest = honest_rows(10, 9, DIM)
    case = attacked("plus_1e30", honest, 1)
    assert not near_the_mean(outcome_of("mean", case, 9, num_byzantine=1))


def test_rows_far_out_in_different_directions_hide_behind_each_other_from_dnc() -> None:
    honest = honest_rows(10, 7, DIM)
    far = np.zeros((3, DIM), dtype=np.float32)
    far[0, 0], far[1, 1], far[2, 2] = 1e30, 1e20, 1e10
    case = case_of(np.vstack([honest, far]))
    assert not near_the_mean(outcome_of("dnc", case, 7, num_byzantine=3))


def test_a_model_of_enormous_weights_that_answers_as_usual_moves_fedmi_anywhere() -> None:
    honest = honest_rows(10, 9, DIM)
    rows = np.vstack([honest, honest[:1]])
    rows[9, 0] = 1e30
    readout = case_of(rows).readout.copy()
    readout[:, :, 0] = 0.0
    case = case_of(rows, readout=readout)
    assert not near_the_mean(outcome_of("fedmi", case, 9, num_byzantine=1))
    # Clipping is what saves its successor.
    assert no_longer_than_honest_rows(outcome_of("agmami", case, 9, num_byzantine=1))


@pytest.mark.parametrize("rule", [rule for rule in EVERY_RULE if rule not in ROBUST])
def test_rules_that_declare_nothing_are_shown_to_break(rule: str) -> None:
    assert rule in {"mean", "dnc", "fedmi"}


@pytest.mark.parametrize("rule", [rule for rule in EVERYTHING if rule not in TRUSTING])
def test_a_majority_of_attackers_wins(rule: str) -> None:
    case = attacked("times_1000", honest_rows(11, 3, DIM), 9)
    # The control of this file: the bounds above are not true of whatever comes out.
    assert not no_longer_than_honest_rows(outcome_of(rule, case, 3, num_byzantine=1))


@pytest.mark.parametrize(
    "rule", ["mean-around-median", "minimum-diameter", "monna", "multi-krum", "trimmed-mean"]
)
def test_one_attacker_more_than_configured_can_break_a_rule(rule: str) -> None:
    case = attacked("plus_1e30", honest_rows(12, 5, DIM), 2)
    assert near_the_mean(outcome_of(rule, case, 5, num_byzantine=2))
    assert not near_the_mean(outcome_of(rule, case, 5, num_byzantine=1))


# Ten workers.


@given(
    seed=st.integers(0, 10_000),
    spread=st.floats(-6, 0),
    scale=st.floats(-20, 20),
    dim=st.integers(1, 50),
)
def test_krum_selects_an_honest_one_of_ten_of_whom_three_send_a_thousandfold(
    seed: int, spread: float, scale: float, dim: int
) -> None:
    generator = np.random.default_rng(seed)
    noise = 10.0**spread * generator.uniform(-1, 1, (10, dim))
    rows = ((1.0 + 0.5 * noise) * 10.0**scale).astype(np.float32)
    attackers = generator.choice(10, size=3, replace=False)
    rows[attackers] *= np.float32(1000)
    result = apply("krum", rows, num_byzantine=3)
    assert not result.selected[attackers].any()
    assert any(np.array_equal(result.vector, row) for row in np.delete(rows, attackers, axis=0))
    everyone_else = apply("multi-krum", rows, num_byzantine=3).selected
    assert np.flatnonzero(~everyone_else).tolist() == sorted(attackers.tolist())


@looped("name", EXTREME_ATTACKS)
@pytest.mark.parametrize("rule", EVERYTHING)
def test_four_attackers_of_ten_are_no_crash(rule: str, name: str) -> None:
    case = attacked(name, honest_rows(13, 6, DIM), 4)
    for num_byzantine in (1, 3, 4):
        if least_rows(rule, num_byzantine) <= 10:
            result = apply(rule, case, num_byzantine=num_byzantine)
            assert np.isfinite(result.vector).all()
            assert np.isfinite(result.weights).all()
        else:
            with pytest.raises(AggregationError, match=r"n\b"):
                apply(rule, case, num_byzantine=num_byzantine)


@pytest.mark.parametrize("rule", ["median", "trimmed-mean", "geometric-median", "monna"])
@looped("name", EXTREME_ATTACKS)
def test_four_attackers_of_ten_are_survived_where_a_minority_is_enough(
    rule: str, name: str
) -> None:
    case = attacked(name, honest_rows(13, 6, DIM), 4)
    assert BOUNDS[rule](outcome_of(rule, case, 6, num_byzantine=4))
