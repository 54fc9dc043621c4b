"""Searches for two neighbours that a real rule tells apart by more than the bound says."""

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from aggregators.config import AggregatorConfig
from aggregators.errors import AggregationError
from aggregators.pipeline import make_rule
from aggregators.private_rules import rule_sensitivity
from aggregators.registry import RULES, make_pick
from aggregators.rows.dense_rows import as_rows
from aggregators.rule import Context
from privacy.errors import PrivacyError
from privacy.rule_sensitivity import RuleShape, SensitivityError, of_trimmed
from tests.looped import looped

Rows = NDArray[np.float32]
Floats = NDArray[np.float64]

SLACK = 1e-5  # rules return float32: 2^-24 of a vector within 1, times up to 40 terms

BOUNDED = (
    RuleShape(rule="mean", num_updates=9),
    RuleShape(rule="krum", num_updates=9, num_byzantine=2),
    RuleShape(rule="multi-krum", num_updates=9, num_byzantine=2),
    RuleShape(rule="multi-krum", num_updates=12, num_byzantine=3),
    RuleShape(rule="multi-krum", num_updates=9, num_byzantine=2, num_to_select=2),
    RuleShape(rule="multi-krum", num_updates=9, num_byzantine=2, num_to_select=5),
    RuleShape(rule="minimum-diameter", num_updates=8, num_byzantine=2),
    RuleShape(rule="dnc", num_updates=9, num_byzantine=2),
    RuleShape(rule="monna", num_updates=9, num_byzantine=2),
    RuleShape(rule="monna", num_updates=5),
    RuleShape(rule="trimmed-mean", num_updates=9, num_byzantine=2),
    RuleShape(rule="trimmed-mean", num_updates=8, trim=3),
    RuleShape(rule="median", num_updates=9),
    RuleShape(rule="median", num_updates=8),
    RuleShape(rule="centered-clipping", num_updates=9, radius=0.25),
    RuleShape(rule="centered-clipping", num_updates=9, radius=2.0, max_steps=3),
)


def shape_id(shape: RuleShape) -> str:
    return f"{shape.rule}-{shape.num_updates}-{shape.num_to_select or shape.trim or 0}"


def column(*values: float) -> Rows:
    return np.array(values, dtype=np.float32)[:, np.newaxis]


def rule_sum(shape: RuleShape, rows: Rows, reference: Rows) -> Floats:
    """What the rule adds up before it divides: its result times the number of its terms."""
    config = AggregatorConfig(
        rule=shape.rule,
        num_malicious_nodes=shape.num_byzantine,
        num_to_select=shape.num_to_select,
        trim=shape.trim,
        clipping_radius=shape.radius,
        max_steps=shape.max_steps,
    )
    context = Context(weights=np.ones(len(rows)), root_update=reference, center=reference, seed=3)
    vector = make_rule(config)(as_rows(rows), context).vector
    terms = rule_sensitivity(replace(shape, num_updates=len(rows))).num_terms
    return vector.astype(np.float64) * terms


def moved(shape: RuleShape, rows: Rows, device: int, reference: Rows | None = None) -> float:
    """How far the sum moves when a device's row becomes zero, in clip norms of 1."""
    fixed = np.zeros(rows.shape[1], np.float32) if reference is None else reference
    zeroed = rows.copy()
    zeroed[device] = 0.0
    both = rule_sum(shape, rows, fixed) - rule_sum(shape, zeroed, fixed)
    return float(np.linalg.norm(both))


def fleets(shape: RuleShape, trials: int) -> Iterator[tuple[Rows, int, Rows]]:
    """Draw rows that agree in groups, tie, and lie on the bound: where choices tip."""
    rng = np.random.default_rng(17)
    values = np.array([-1.0, -0.6, -0.1, 0.0, 0.1, 0.6, 1.0], np.float32)
    for _ in range(trials):
        dim, groups = int(rng.integers(1, 4)), int(rng.integers(2, 6))
        bases = rng.choice(values, size=(groups, dim))
        rows = bases[rng.integers(0, groups, shape.num_updates)]
        if rng.random() < 0.3:
            rows = rows + 0.05 * rng.standard_normal(rows.shape)
        rows /= np.maximum(1.0, np.linalg.norm(rows, axis=1, keepdims=True)) * (1 + 1e-7)
        reference = rng.choice(values, size=dim) * rng.choice([0.1, 1.0, 20.0])
        device = int(rng.integers(shape.num_updates))
        yield rows.astype(np.float32), device, reference.astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("shape", BOUNDED, ids=shape_id)
def test_no_neighbours_are_farther_apart_than_the_bound(shape: RuleShape) -> None:
    bound = rule_sensitivity(shape).factor
    farthest = max(moved(shape, *fleet) for fleet in fleets(shape, 250))
    assert 0.0 < farthest <= bound + SLACK


@pytest.mark.parametrize(
    "shape",
    [shape for shape in BOUNDED if shape.rule in {"krum", "multi-krum", "minimum-diameter"}],
    ids=shape_id,
)
def test_choices_of_all_but_f_bound_devices_that_are_left_out_too(shape: RuleShape) -> None:
    if shape.num_to_select is not None:
        shape = replace(shape, num_to_select=min(shape.num_to_select, 3))
    bound = rule_sensitivity(shape).factor
    for rows, device, reference in fleets(shape, 60):
        whole = rule_sum(shape, rows, reference)
        without = rule_sum(shape, np.delete(rows, device, axis=0), reference)
        assert float(np.linalg.norm(whole - without)) <= bound + SLACK


def two_camps(zeros: int, each: int) -> Rows:
    """The device, on the side of one of two camps that are equally strong without it."""
    return column(1.0, *[0.0] * zeros, *[1.0] * each, *[-1.0] * each)


def saturated(count: int) -> Rows:
    """All rows so far to one side of the centre that each pulls with all it is allowed."""
    return column(*[1.0] * count)


TIGHT = (
    # A weight of 1 on a row within C.
    (RuleShape(rule="mean", num_updates=5), column(1.0, 0, 0, 0, 0), None),
    # The device decides which camp is left out: f swapped, and itself.
    (RuleShape(rule="multi-krum", num_updates=6, num_byzantine=1), two_camps(3, 1), None),
    (RuleShape(rule="multi-krum", num_updates=12, num_byzantine=3), two_camps(5, 3), None),
    # It decides which camp is taken: m swapped.
    (
        RuleShape(rule="multi-krum", num_updates=9, num_byzantine=3, num_to_select=2),
        two_camps(0, 4),
        None,
    ),
    (RuleShape(rule="krum", num_updates=9, num_byzantine=3), two_camps(0, 4), None),
    (RuleShape(rule="minimum-diameter", num_updates=8, num_byzantine=2), two_camps(3, 2), None),
    (RuleShape(rule="dnc", num_updates=8, num_byzantine=2), two_camps(3, 2), None),
    # Selected for its place among the others, in whose middle it lies with all its length.
    (
        RuleShape(rule="trimmed-mean", num_updates=5, num_byzantine=1),
        column(1.0, -1, 0, 1, 1),
        None,
    ),
    (RuleShape(rule="median", num_updates=5), column(1.0, 0, 0, 1, 1), None),
    (RuleShape(rule="median", num_updates=4), column(1.0, 0, 1, 1), None),
    # It takes the place of an opposite row that is a little farther from the pivot.
    (
        RuleShape(rule="monna", num_updates=3, num_byzantine=1),
        np.array([[0.05, -0.998], [0.04, 0.998], [1.0, 0.0]], np.float32),
        np.array([1000.0, 0.0], np.float32),
    ),
    # From one side of the centre to the other, in every step.
    (
        RuleShape(rule="centered-clipping", num_updates=9, radius=0.25),
        saturated(9),
        np.array([0.5], np.float32),
    ),
    (
        RuleShape(rule="centered-clipping", num_updates=40, radius=0.05, max_steps=3),
        saturated(40),
        np.array([0.5], np.float32),
    ),
)


@looped("shape, rows, reference", TIGHT)
def test_one_percent_less_would_be_no_bound(
    shape: RuleShape, rows: Rows, reference: Rows | None
) -> None:
    assert len(rows) == shape.num_updates
    assert np.linalg.norm(rows, axis=1).max() <= 1.0
    bound = rule_sensitivity(shape).factor
    distance = moved(shape, rows, 0, reference)
    assert 0.99 * bound < distance <= bound + SLACK


def test_a_mean_with_capped_weights_moves_by_no_more_than_the_row() -> None:
    rng = np.random.default_rng(5)
    for _ in range(100):
        rows = rng.standard_normal((6, 3))
        rows /= np.maximum(1.0, np.linalg.norm(rows, axis=1, keepdims=True)) * (1 + 1e-7)
        weights = np.minimum(rng.integers(1, 40, 6), 20) / 20
        weighted = (weights[:, np.newaxis] * rows).astype(np.float32)
        shape = RuleShape(rule="mean", num_updates=6)
        assert moved(shape, weighted, 0) <= weights[0] + SLACK <= 1.0 + SLACK


@looped(
    "shape, factor, terms",
    [
        (RuleShape(rule="mean", num_updates=50), 1, 50),
        (RuleShape(rule="multi-krum", num_updates=50, num_byzantine=5), 11, 45),
        (RuleShape(rule="multi-krum", num_updates=50, num_byzantine=5, num_to_select=10), 20, 10),
        (RuleShape(rule="multi-krum", num_updates=50, num_byzantine=5, num_to_select=30), 41, 30),
        (RuleShape(rule="multi-krum", num_updates=50), 1, 50),
        (RuleShape(rule="krum", num_updates=50, num_byzantine=5), 2, 1),
        (RuleShape(rule="trimmed-mean", num_updates=50, num_byzantine=5), 1, 40),
        (RuleShape(rule="trimmed-mean", num_updates=50, num_byzantine=5, trim=7), 1, 36),
        (RuleShape(rule="monna", num_updates=50, num_byzantine=5), 2, 45),
        (RuleShape(rule="median", num_updates=50), 1, 2),
        (RuleShape(rule="median", num_updates=51), 1, 1),
        (RuleShape(rule="centered-clipping", num_updates=50, radius=0.1, max_steps=2), 0.4, 50),
    ],
)
def test_bounds_by_hand(shape: RuleShape, factor: float, terms: int) -> None:
    found = rule_sensitivity(shape)
    assert found.factor == pytest.approx(factor, rel=1e-12)
    assert found.num_terms == terms


@pytest.mark.parametrize("to_select", [None, 3, 20])
def test_a_bound_for_many_updates_holds_for_fewer(to_select: int | None) -> None:
    shapes = [
        RuleShape(rule="multi-krum", num_updates=n, num_byzantine=4, num_to_select=to_select)
        for n in range(20, 60)
    ]
    factors = [rule_sensitivity(shape).factor for shape in shapes]
    assert factors == sorted(factors)


@pytest.mark.parametrize("rule", sorted(RULES))
def test_every_rule_has_a_bound_or_a_reason(rule: str) -> None:
    shape = RuleShape(rule=rule, num_updates=20, num_byzantine=2, radius=1.0)
    if isinstance(RULES[rule].sensitivity, str):
        message = f"rule='{rule}' cannot be released privately: .*; choose mean or multi-krum"
        with pytest.raises(SensitivityError, match=message):
            rule_sensitivity(shape)
    else:
        assert rule_sensitivity(shape).factor >= 1


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("nnm+multi-krum", "its first steps change every row"),
        ("clip+mean", "its first steps change every row"),
        ("centered-clipping", "without clipping-radius"),
        ("distance-outliers", "moves the limit for all"),
        ("no-such-rule", "no bound is known"),
    ],
)
def test_refusals_say_why(rule: str, why: str) -> None:
    with pytest.raises(SensitivityError, match=f"{why}.*; choose mean or multi-krum"):
        rule_sensitivity(RuleShape(rule=rule, num_updates=9))


@pytest.mark.slow
@pytest.mark.parametrize(
    "rule",
    [
        "aegis",
        "auto-geometric-median",
        "bulyan",
        "flame",
        "fltrust",
        "geometric-median",
        "hybrid",
        "norm-threshold",
        "sign-guard",
    ],
)
def test_refused_rules_are_moved_farther_than_noise_for_multi_krum_would_hide(rule: str) -> None:
    shape = RuleShape(rule=rule, num_updates=12, num_byzantine=1)
    limit = rule_sensitivity(replace(shape, rule="multi-krum")).factor
    apply = make_rule(AggregatorConfig(rule=rule, num_malicious_nodes=1))

    def mean(rows: Rows, reference: Rows) -> Floats:
        context = Context(
            weights=np.ones(12), root_update=reference, keys=tuple("abcdefghijkl"), seed=3
        )
        return apply(as_rows(rows), context).vector.astype(np.float64)

    for rows, device, reference in fleets(shape, 400):
        zeroed = rows.copy()
        zeroed[device] = 0.0
        try:
            both = mean(rows, reference) - mean(zeroed, reference)
        except AggregationError:
            continue
        if 12 * float(np.linalg.norm(both)) > limit:
            return
    pytest.fail(f"no neighbours found that {rule} tells apart by more than {limit}")


def test_distance_outliers_lets_one_device_move_half_of_the_others() -> None:
    # The device's place decides the median of the medians, and that who is too far out.
    pick = make_pick("distance-outliers")
    widest = 0
    rng = np.random.default_rng(2)
    for _ in range(2000):
        places = rng.choice([0, 1, 2, 3, 6, 8], size=9)
        kept = []
        for first in (places[0], 0):
            line = np.array([first, *places[1:]], np.int64)
            kept.append(set(pick((line[:, None] - line) ** 2, 0, None)) - {0})
        widest = max(widest, len(kept[0] ^ kept[1]))
    assert widest >= 4


@looped(
    "change, message",
    [
        ({"num_updates": 0}, "num_updates=0 must be at least 1"),
        ({"num_byzantine": -1}, "num_byzantine=-1 must be at least 0"),
        ({"num_byzantine": 9}, "num_byzantine=9 must be at least 0 and at most 8"),
        ({"num_to_select": 0}, "num_to_select=0 must be at least 1"),
        ({"num_to_select": 10}, "num_to_select=10 must be at least 1 and at most 9"),
        ({"trim": -1}, "trim=-1 must be at least 0"),
        ({"radius": 0.0}, "radius=0.0 must be above 0"),
        ({"radius": math.nan}, "radius=nan must be above 0"),
        ({"max_steps": 0}, "max_steps=0 must be at least 1"),
    ],
)
def test_numbers_out_of_range_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(PrivacyError, match=message):
        replace(RuleShape(rule="mean", num_updates=9), **change)  # type: ignore[arg-type]  # any field


def test_as_many_values_as_there_are_cannot_be_trimmed() -> None:
    for shape in (RuleShape(rule="x", num_updates=9, trim=5), RuleShape(rule="x", num_updates=4)):
        trimmed = replace(shape, num_byzantine=2)
        with pytest.raises(PrivacyError, match=r"trim=[25] must satisfy 2 \* trim < n=[94]"):
            of_trimmed(trimmed)
