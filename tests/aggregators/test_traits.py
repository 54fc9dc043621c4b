"""Every rule can do what its row in the registry says, and no more."""

from collections.abc import Callable

import numpy as np
import pytest

from aggregators.byzantine import stand_ins
from aggregators.config import AggregatorConfig
from aggregators.errors import AggregationError
from aggregators.pipeline import make_rule
from aggregators.registry import RULES, make_pick, traits_of
from aggregators.rule import RuleResult
from tests.aggregators.contract import EVERY_RULE, apply, case_of
from tests.aggregators.matrices import Matrix, honest_rows

NUM_ROWS = 11


def rows_of(seed: int, dim: int = 6) -> Matrix:
    """Rows of which two are far out, so that a rule has something to choose."""
    rows = honest_rows(seed, NUM_ROWS, dim)
    rows[:2] *= np.float32(20)
    return rows


def result_of(rule: str, rows: Matrix) -> RuleResult:
    """Run a rule that knows the same of the devices, whatever they sent."""
    known = case_of(rows_of(0, dim=rows.shape[1]))
    return apply(rule, known.with_rows(rows), num_byzantine=2)


def is_near(one: Matrix, other: Matrix) -> bool:
    return bool(np.allclose(one, other, rtol=1e-4, atol=1e-5))


def holds(rule: str, *, always: bool, by: Callable[[str, Matrix], bool]) -> None:
    """Compare a trait with what was seen in some rounds."""
    seen = [by(rule, rows_of(seed)) for seed in range(8)]
    assert all(seen) if always else not all(seen), f"{rule}: {seen}"


@pytest.mark.parametrize("rule", EVERY_RULE)
def test_linear_rules_and_no_others_add_up(rule: str) -> None:
    def adds_up(rule: str, rows: Matrix) -> bool:
        other = rows_of(99)[::-1]
        both = result_of(rule, rows + other).vector
        return is_near(both, result_of(rule, rows).vector + result_of(rule, other).vector)

    holds(rule, always=RULES[rule].is_linear, by=adds_up)


@pytest.mark.parametrize("rule", [name for name in EVERY_RULE if RULES[name].is_private_sum])
def test_private_sums_are_means_of_what_is_selected(rule: str) -> None:
    assert not isinstance(RULES[rule].sensitivity, str)
    for seed in range(8):
        rows = rows_of(seed)
        result = result_of(rule, rows)
        assert is_near(result.vector, rows[result.selected].mean(axis=0))


@pytest.mark.parametrize("rule", EVERY_RULE)
def test_single_rules_and_no_others_give_one_of_the_rows(rule: str) -> None:
    def is_a_row(rule: str, rows: Matrix) -> bool:
        vector = result_of(rule, rows).vector
        return any(np.array_equal(row, vector) for row in rows)

    holds(rule, always=RULES[rule].is_single, by=is_a_row)


@pytest.mark.parametrize("rule", [name for name in EVERY_RULE if not RULES[name].needs])
def test_only_rules_that_compare_rows_change_with_other_coordinates(rule: str) -> None:
    def is_by_coordinate(rule: str, rows: Matrix) -> bool:
        rows[2:4, 2:] *= np.float32(-100)  # far out, but not in the coordinates that are compared
        return is_near(result_of(rule, rows).vector[:2], result_of(rule, rows[:, :2]).vector)

    holds(rule, always=not RULES[rule].compares_rows, by=is_by_coordinate)


@pytest.mark.parametrize("rule", EVERY_RULE)
def test_what_picks_by_distances_picks_what_the_rule_selects(rule: str) -> None:
    if not RULES[rule].picks_by_distances:
        with pytest.raises(AggregationError, match="does not pick by distances"):
            make_pick(rule)
        return
    pick = make_pick(rule)
    for seed in range(8):
        # Whole numbers, so that distances are exact both ways.
        rows = np.rint(rows_of(seed) * 1000).astype(np.float32)
        places = rows.astype(np.int64)
        distances = ((places[:, np.newaxis] - places) ** 2).sum(axis=2)
        picked = sorted(pick(distances, 2, None))
        assert picked == np.flatnonzero(result_of(rule, rows).selected).tolist()
        assert 1 < len(picked) < NUM_ROWS


@pytest.mark.parametrize("rule", EVERY_RULE)
def test_rules_that_know_devices_and_no_others_refuse_merged_rows(rule: str) -> None:
    config = AggregatorConfig(rule=f"bucketing+{rule}")
    if RULES[rule].knows_devices:
        with pytest.raises(AggregationError, match="has to know single updates"):
            make_rule(config)
    else:
        make_rule(config)


def test_what_stands_in_needs_fewer_and_fewer_updates_and_nothing_else() -> None:
    names = stand_ins()
    assert all(not RULES[name].needs for name in names)
    needs = [0 if (limit := RULES[name].tolerance) is None else limit.least(2) for name in names]
    assert needs == sorted(needs, reverse=True)
    assert needs[-1] == 0


def test_steps_take_from_a_rule_what_rests_on_rows_as_they_came() -> None:
    multi_krum, mixed = traits_of("multi-krum"), traits_of("nnm+multi-krum")
    assert multi_krum.is_private_sum
    assert multi_krum.picks_by_distances
    assert not mixed.is_private_sum
    assert not mixed.picks_by_distances
    assert traits_of("clip+mean").compares_rows
    assert not traits_of("clip+mean").is_linear
    assert traits_of("nnm+median").ranks_values
