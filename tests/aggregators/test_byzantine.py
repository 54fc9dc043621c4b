import math
import random
from collections import Counter
from dataclasses import replace
from typing import Final

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregators.base import GradientAggregator, ServerKnowledge, Update
from aggregators.byzantine import (
    ByzantineConfig,
    ByzantineRobustAggregator,
    RobustAggregate,
    stand_ins,
)
from aggregators.config import AggregatorConfig
from aggregators.errors import AggregationError, TooFewUpdatesError
from aggregators.rows.rows import Vector
from aggregators.unusable import Reason
from tests.aggregators.matrices import (
    EXTREME_ATTACKS,
    LARGEST,
    SMALLEST,
    Floats,
    Matrix,
    attack,
    honest_rows,
    same_bits,
)
from tests.looped import looped


def updates_of(rows: Matrix) -> list[Update]:
    return [Update(key=f"{i:03}", vector=row, num_samples=10) for i, row in enumerate(rows)]


def aggregator(
    rule: str, num_malicious: int = 0, *, may_degrade: bool = False
) -> ByzantineRobustAggregator:
    config = AggregatorConfig(rule=rule, num_malicious_nodes=num_malicious)
    return ByzantineRobustAggregator(ByzantineConfig(aggregator=config, may_degrade=may_degrade))


def by_share(share: float) -> ByzantineRobustAggregator:
    return ByzantineRobustAggregator(
        ByzantineConfig(aggregator=AggregatorConfig(), malicious_fraction=share)
    )


def spoiled(rows: Matrix, *places: int) -> Matrix:
    copied = rows.copy()
    copied[list(places), 0] = np.nan
    return copied


def test_every_share_of_at_most_a_hundred_updates_gives_its_number() -> None:
    truncated_wrongly = 0
    for num_updates in range(1, 101):
        for num_malicious in range((num_updates + 1) // 2):
            share = num_malicious / num_updates
            config = ByzantineConfig(aggregator=AggregatorConfig(), malicious_fraction=share)
            assert config.num_malicious(num_updates) == num_malicious
            truncated_wrongly += int(share * num_updates) != num_malicious
    # Taking the integer part loses one now and then: 3 / 47 * 47 is below 3.
    assert truncated_wrongly > 0


@looped(
    "share, num_updates, num_malicious",
    [
        (0.3, 10, 3),
        (0.29, 100, 29),
        (0.07, 100, 7),
        (3 / 47, 47, 3),
        (15 / 44, 44, 15),
        (0.3, 9, 2),
        (0.3, 3, 0),
        (0.0, 50, 0),
        (0.49999, 100, 49),
    ],
)
def test_a_share_of_the_updates_is_rounded_down(
    share: float, num_updates: int, num_malicious: int
) -> None:
    rows = honest_rows(seed=1, num_rows=num_updates, dim=3)
    found = by_share(share).aggregate(updates_of(rows))
    assert found.num_malicious_nodes == num_malicious


def test_the_share_is_of_all_updates_and_those_rejected_are_among_them() -> None:
    rows = spoiled(honest_rows(seed=1, num_rows=20, dim=3), 4, 7)
    assert by_share(0.25).aggregate(updates_of(rows)).num_malicious_nodes == 3


@pytest.mark.parametrize("share", [-0.1, 0.5, 1.0, math.nan, math.inf])
def test_a_share_that_leaves_no_honest_majority_is_refused(share: float) -> None:
    with pytest.raises(AggregationError, match=f"malicious_fraction={share}"):
        ByzantineConfig(aggregator=AggregatorConfig(), malicious_fraction=share)


@pytest.mark.parametrize("rule", ["bulian", "nmn+mean", "bucketing+aegis"])
def test_a_rule_that_cannot_be_is_refused_at_once(rule: str) -> None:
    with pytest.raises(AggregationError, match="rule="):
        aggregator(rule)


@pytest.mark.parametrize("rule", ["krum", "multi-krum", "trimmed-mean", "median", "nnm+mean"])
def test_usable_updates_are_combined_as_the_plain_aggregator_does(rule: str) -> None:
    updates = updates_of(honest_rows(seed=2, num_rows=9, dim=20))
    config = AggregatorConfig(rule=rule, num_malicious_nodes=2, clipping_norm=4.5)
    robust = ByzantineRobustAggregator(ByzantineConfig(aggregator=config)).aggregate(updates)
    plain = GradientAggregator(config).aggregate(updates)
    assert same_bits(robust.aggregate.vector, plain.vector)
    assert same_bits(robust.aggregate.weights, plain.weights)
    assert robust.aggregate.num_clipped == plain.num_clipped
    assert robust.aggregate.keys == plain.keys
    assert (robust.rule, robust.num_malicious_nodes) == (rule, 2)
    assert not robust.is_degraded
    assert robust.rejections == ()


@pytest.mark.parametrize("num_rejected", [0, 1, 2, 3, 5])
def test_each_rejected_update_was_one_of_the_malicious(num_rejected: int) -> None:
    rows = honest_rows(seed=3, num_rows=12, dim=10)
    bad = spoiled(rows, *range(num_rejected))
    found = aggregator("multi-krum", 3).aggregate(updates_of(bad))
    left = max(0, 3 - num_rejected)
    assert found.num_malicious_nodes == left
    alone = GradientAggregator(AggregatorConfig(rule="multi-krum", num_malicious_nodes=left))
    expected = alone.aggregate(updates_of(rows)[num_rejected:])
    assert same_bits(found.aggregate.vector, expected.vector)
    assert found.aggregate.keys == tuple(f"{i:03}" for i in range(num_rejected, 12))
    assert [rejection.key for rejection in found.rejections] == [
        f"{i:03}" for i in range(num_rejected)
    ]
    assert {rejection.reason for rejection in found.rejections} <= {Reason.NOT_FINITE}


def test_what_would_be_too_few_for_f_is_enough_once_the_malicious_gave_themselves_away() -> None:
    rows = honest_rows(seed=3, num_rows=8, dim=10)
    with pytest.raises(TooFewUpdatesError):
        aggregator("krum", 3).aggregate(updates_of(rows))
    found = aggregator("krum", 3).aggregate(updates_of(spoiled(rows, 5)))
    assert found.num_malicious_nodes == 2


@looped(
    "rule, num_updates, used",
    [
        ("bulyan", 11, "bulyan"),
        ("bulyan", 10, "multi-krum"),
        ("bulyan", 7, "multi-krum"),
        ("bulyan", 6, "trimmed-mean"),
        ("bulyan", 5, "trimmed-mean"),
        ("bulyan", 4, "median"),
        ("bulyan", 1, "median"),
        ("krum", 6, "trimmed-mean"),
        ("multi-krum", 6, "trimmed-mean"),
        ("trimmed-mean", 4, "median"),
        ("nnm+krum", 6, "trimmed-mean"),
        ("nnm+mean", 4, "median"),
        ("arc+median", 4, "median"),
        ("bucketing+median", 8, "multi-krum"),
    ],
)
def test_with_too_few_updates_a_rule_gives_way_to_the_first_that_admits_them(
    rule: str, num_updates: int, used: str
) -> None:
    rows = honest_rows(seed=4, num_rows=num_updates, dim=10)
    found = aggregator(rule, 2, may_degrade=True).aggregate(updates_of(rows))
    assert found.rule == used
    assert found.is_degraded == (used != rule)
    assert found.num_malicious_nodes == 2
    if found.is_degraded:
        config = AggregatorConfig(rule=used, num_malicious_nodes=2)
        expected = GradientAggregator(config).aggregate(updates_of(rows))
        assert same_bits(found.aggregate.vector, expected.vector)
        with pytest.raises(TooFewUpdatesError, match=f"n={num_updates}"):
            aggregator(rule, 2).aggregate(updates_of(rows))


def test_rules_give_way_in_the_documented_order() -> None:
    assert stand_ins() == ("multi-krum", "trimmed-mean", "median")


def test_settings_of_the_rule_that_gave_way_do_not_bind_the_next_one() -> None:
    config = AggregatorConfig(rule="bulyan", num_malicious_nodes=2, num_to_select=50, trim=40)
    robust = ByzantineRobustAggregator(ByzantineConfig(aggregator=config, may_degrade=True))
    for num_updates, used in ((9, "multi-krum"), (5, "trimmed-mean")):
        rows = honest_rows(seed=4, num_rows=num_updates, dim=10)
        assert robust.aggregate(updates_of(rows)).rule == used


def test_errors_that_more_updates_would_not_mend_are_not_degraded() -> None:
    updates = updates_of(honest_rows(seed=4, num_rows=9, dim=10))
    with pytest.raises(AggregationError, match="needs root_update"):
        aggregator("fltrust", may_degrade=True).aggregate(updates)


def test_a_round_without_a_usable_update_is_too_few() -> None:
    rows = spoiled(honest_rows(seed=5, num_rows=4, dim=3), 0, 1, 2, 3)
    with pytest.raises(TooFewUpdatesError, match="4 were rejected"):
        aggregator("median", may_degrade=True).aggregate(updates_of(rows))
    with pytest.raises(TooFewUpdatesError, match="0 were rejected"):
        aggregator("median").aggregate([])


def test_a_repeated_key_is_refused() -> None:
    updates = updates_of(honest_rows(seed=5, num_rows=4, dim=3))
    with pytest.raises(AggregationError, match="key '002' must be unique"):
        aggregator("median").aggregate([*updates, updates[2]])


def test_the_majority_decides_the_dimension() -> None:
    long = updates_of(honest_rows(seed=6, num_rows=3, dim=9))
    short = [replace(each, key=f"s{each.key}", vector=each.vector[:4]) for each in long]
    found = aggregator("median").aggregate([*short, *long, replace(long[0], key="zzz")])
    assert found.aggregate.vector.shape == (9,)
    assert [rejection.key for rejection in found.rejections] == ["s000", "s001", "s002"]


def test_a_dimension_that_is_known_overrules_the_majority() -> None:
    long = updates_of(honest_rows(seed=6, num_rows=3, dim=9))
    short = [replace(each, key=f"s{each.key}", vector=each.vector[:4]) for each in long]
    found = aggregator("median").aggregate([*short[:1], *long], dim=4)
    assert found.aggregate.vector.shape == (4,)
    assert {rejection.reason for rejection in found.rejections} == {Reason.WRONG_SHAPE}


def test_knowledge_reaches_the_rule_for_usable_updates_only() -> None:
    updates = updates_of(spoiled(honest_rows(seed=7, num_rows=6, dim=3), 2))
    outputs = np.random.default_rng(7).standard_normal((6, 8, 4))
    # What a model with NaN in it answers, nobody has asked.
    known = {
        each.key: answers
        for each, answers in zip(updates, outputs, strict=True)
        if each.key != "002"
    }
    found = aggregator("fedmi").aggregate(updates, ServerKnowledge(probe_outputs=known))
    assert len(found.aggregate.keys) == 5


@given(seed=st.integers(0, 10_000))
def test_order_of_arrival_does_not_change_a_bit(seed: int) -> None:
    rows = spoiled(honest_rows(seed, num_rows=11, dim=20), 3, 8)
    updates = updates_of(rows)
    updates[5] = replace(updates[5], vector=updates[5].vector[:7])
    updates[6] = replace(updates[6], num_samples=0)
    arrived = list(updates)
    random.Random(seed).shuffle(arrived)
    robust = aggregator("nnm+trimmed-mean", 4)
    first, second = robust.aggregate(updates), robust.aggregate(arrived)
    assert same_bits(first.aggregate.vector, second.aggregate.vector)
    assert same_bits(first.aggregate.weights, second.aggregate.weights)
    assert first.rejections == second.rejections
    assert len(first.rejections) == 4


SCALAR_RULES = ("median", "trimmed-mean", "mean-around-median")


@looped("name", EXTREME_ATTACKS)
@pytest.mark.parametrize("rule", [*SCALAR_RULES, "multi-krum", "nnm+trimmed-mean", "arc+nnm+krum"])
def test_three_of_ten_attackers_leave_the_result_near_the_honest(rule: str, name: str) -> None:
    honest = honest_rows(seed=8, num_rows=7, dim=30)
    rows = np.vstack([attack(name, honest, 3), honest])
    vector = aggregator(rule, 3).aggregate(updates_of(rows)).aggregate.vector
    slack = 0.0 if rule in {"median", "trimmed-mean"} else 3.0 * diameter(honest)
    assert_near(vector, honest, slack)


def test_the_plain_mean_would_not_pass() -> None:
    honest = honest_rows(seed=8, num_rows=7, dim=30)
    rows = np.vstack([attack("plus_1e30", honest, 3), honest])
    vector = aggregator("mean", 3).aggregate(updates_of(rows)).aggregate.vector
    with pytest.raises(AssertionError):
        assert_near(vector, honest, 3.0 * diameter(honest))


DIM: Final = 16
RULES: Final = (
    "multi-krum",
    "median",
    "trimmed-mean",
    "nnm+trimmed-mean",
    "geometric-median",
    "mean",
)
LEAST: Final = {"multi-krum": (2, 3), "trimmed-mean": (2, 1), "nnm+trimmed-mean": (2, 1)}
"""What n must be at least: so many times f, and so many more."""

SIGNALLING_NAN: Final = np.frombuffer(bytes.fromhex("0000a07f") * DIM, dtype="<f4")
NOT_FINITE: Final = (np.nan, np.inf, -np.inf)
EXTREMES: Final = (0.0, -0.0, SMALLEST, -1e-40, 1.0, 1e30, 3e38, -3e38, LARGEST, -LARGEST)


def diameter(rows: Matrix) -> float:
    wide = rows.astype(np.float64)
    differences = wide[:, np.newaxis] - wide
    return float(np.sqrt(np.square(differences).sum(axis=2)).max())


def assert_near(vector: Matrix, honest: Matrix, slack: float) -> None:
    """Check that no coordinate leaves the range of the honest by more than `slack`."""
    wide = honest.astype(np.float64)
    slack += 1e-6 * float(np.abs(wide).max())
    assert np.isfinite(vector).all()
    assert (vector >= wide.min(axis=0) - slack).all()
    assert (vector <= wide.max(axis=0) + slack).all()


def malicious_vectors(generator: np.random.Generator, honest: Matrix) -> list[Vector]:
    """Make vectors that are unusable, or usable and as bad as can be."""
    row = honest[0]
    some = generator.random(DIM) < 0.3
    some[generator.integers(DIM)] = True
    with np.errstate(over="ignore"):
        scaled = row * np.float32(generator.choice([-1.0, 0.0, 1000.0, -1e6]))
    shapes = [(1, DIM), (DIM, 1), (0,), (), (DIM + 1,), (DIM - 1,)]
    types = [np.dtype(name) for name in ("float64", "float16", "int32", ">f4", "object")]
    return [
        np.where(some, generator.choice(NOT_FINITE, DIM), row).astype(np.float32),
        SIGNALLING_NAN,
        np.zeros(shapes[int(generator.integers(len(shapes)))], dtype=np.float32),
        np.zeros(DIM, dtype=types[int(generator.integers(len(types)))]),
        np.full(DIM, generator.choice(EXTREMES), dtype=np.float32),
        np.where(some, generator.choice(EXTREMES, DIM), row).astype(np.float32),
        scaled,
        row + np.float32(0.5) * (honest.max(axis=0) - honest.min(axis=0)),
        row,
    ]


def malicious_update(generator: np.random.Generator, key: str, honest: Matrix) -> Update:
    """Make an update with a malicious vector, or with facts that cannot be."""
    vectors = malicious_vectors(generator, honest)
    kind = int(generator.integers(len(vectors) + 2))
    if kind == len(vectors):
        return Update(key=key, vector=honest[0], num_samples=int(generator.integers(-3, 1)))
    if kind > len(vectors):
        trust = float(generator.choice([np.nan, -1.0, 2.0]))
        return Update(key=key, vector=honest[0], num_samples=1, trust=trust)
    return Update(key=key, vector=vectors[kind], num_samples=10**9)


def honest_bound(rule: str, honest: Matrix, num_updates: int, num_malicious: int) -> float:
    """How far outside the range of the honest updates a coordinate may end up."""
    spread, left = diameter(honest), num_updates - num_malicious
    if rule == "multi-krum":
        # A selected row scores no worse than an honest one, and counts that many honest.
        return math.sqrt((left - 2) / (left - num_malicious - 1)) * spread
    if rule == "nnm+trimmed-mean":
        return spread
    if rule == "geometric-median":
        # Minsker (2015), Lemma 2.1, around any honest row.
        return 1.01 * 2.0 * left / (left - num_malicious) * spread
    return 0.0


@pytest.mark.slow
@pytest.mark.parametrize("num_rounds", [1_000, pytest.param(10_000, marks=pytest.mark.long)])
def test_hostile_rounds_end_in_a_bounded_aggregate_or_in_too_few_updates(num_rounds: int) -> None:
    """Every round some updates are NaN, infinite, misshapen, mistyped, extreme or merely biased."""
    generator = np.random.default_rng(2026)
    outcomes: Counter[str] = Counter()
    for number in range(num_rounds):
        rule = RULES[number % len(RULES)]
        num_updates = int(generator.integers(7, 13))
        num_malicious = int(generator.integers(0, (num_updates - 1) // 2 + 1))
        scale = 10.0 ** generator.uniform(-25, 25)
        honest = (scale * honest_rows(number, num_updates - num_malicious, DIM)).astype(np.float32)
        honest_norm = float(np.linalg.norm(honest.astype(np.float64), axis=1).max())
        updates = [
            Update(key=f"h{place}", vector=row, num_samples=100) for place, row in enumerate(honest)
        ]
        updates += [
            malicious_update(generator, f"{generator.choice(['a', 'z'])}{place}", honest)
            for place in range(num_malicious)
        ]
        config = AggregatorConfig(
            rule=rule,
            num_malicious_nodes=num_malicious,
            max_num_samples=100,
            clipping_norm=2.0 * honest_norm if rule == "mean" or number % 5 == 0 else None,
        )
        robust = ByzantineRobustAggregator(ByzantineConfig(aggregator=config))
        try:
            found = robust.aggregate(updates)
        except TooFewUpdatesError:
            factor, base = LEAST[rule]
            unusable = sum(not is_usable(update) for update in updates)
            assert num_updates - unusable < factor * max(0, num_malicious - unusable) + base
            outcomes["too few"] += 1
            continue
        outcomes[rule] += 1
        outcomes["rejected"] += len(found.rejections)
        assert_round(found, updates, honest, config)
    assert min(outcomes[rule] for rule in RULES) > num_rounds / 10
    assert outcomes["too few"] > num_rounds / 500
    assert outcomes["rejected"] > num_rounds


def is_usable(update: Update) -> bool:
    vector = update.vector
    return (
        vector.shape == (DIM,)
        and vector.dtype == np.float32
        and not (vector.view(np.uint32) & 0x7F800000 == 0x7F800000).any()
        and update.num_samples >= 1
        and 0.0 <= update.trust <= 1.0
    )


def assert_round(
    found: RobustAggregate, updates: list[Update], honest: Matrix, config: AggregatorConfig
) -> None:
    kept = sorted(update.key for update in updates if is_usable(update))
    num_rejected = len(updates) - len(kept)
    assert list(found.aggregate.keys) == kept
    assert len(found.rejections) == num_rejected
    num_malicious = max(0, config.num_malicious_nodes - num_rejected)
    assert found.num_malicious_nodes == num_malicious
    vector = found.aggregate.vector
    weights: Floats = found.aggregate.weights
    assert np.isfinite(weights).all()
    if config.rule == "mean":
        assert config.clipping_norm is not None
        assert np.linalg.norm(vector.astype(np.float64)) <= config.clipping_norm * (1 + 1e-6)
    else:
        assert_near(vector, honest, honest_bound(config.rule, honest, len(kept), num_malicious))
