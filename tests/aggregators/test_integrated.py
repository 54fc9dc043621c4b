"""One step from contributions to weights, in every mode: what its stages are by hand, in turn."""

import random
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from aggregators.aggregator_state import AggregatorState, decode_state, encode_state
from aggregators.base import GradientAggregator, ServerKnowledge, Update
from aggregators.byzantine import ByzantineConfig, ByzantineRobustAggregator, RobustAggregate
from aggregators.config import AggregatorConfig
from aggregators.dp import DPConfig, DPGradientAggregator, RoundNoise
from aggregators.errors import AggregationError, TooFewUpdatesError
from aggregators.integrated import (
    IntegratedConfig,
    IntegratedFederatedAggregator,
    OpenedMeans,
    PlainUpdates,
    PrivateUpdates,
    SharedSums,
    StepReport,
)
from aggregators.rules.aegis import AegisState
from aggregators.rules.centered_clipping import centered_clipping
from aggregators.server_optimizer import ServerOptimizerConfig, initial_state, step
from aggregators.unusable import Reason
from privacy.clipping import clip_by_norm
from tests.aggregators.matrices import (
    Floats,
    Matrix,
    brute_force_trimmed_mean,
    cancelling_rows,
    exact_distances,
    honest_rows,
    same_bits,
)
from tests.looped import looped
from updates.compression_plan import CompressionPlan, Method
from updates.coordinate_maps import linear_map

DIM = 20


START: NDArray[np.float32] = np.linspace(-3.0, 5.0, DIM, dtype=np.float32)
Stepped = tuple[AggregatorState, NDArray[np.float32], StepReport]


def updates_of(rows: Matrix) -> list[Update]:
    return [Update(key=f"{i:02}", vector=row, num_samples=10 + i) for i, row in enumerate(rows)]


def hostile_updates(seed: int) -> list[Update]:
    """Ten updates: one is not finite, one misshapen, one a thousand times too long."""
    rows = honest_rows(seed, num_rows=10, dim=DIM)
    rows[1, 3] = np.nan
    rows[6] *= 1000
    updates = updates_of(rows)
    updates[4] = replace(updates[4], vector=updates[4].vector[:5])
    return updates


def plain(updates: list[Update], *, seed: int = 0) -> PlainUpdates:
    return PlainUpdates(updates=updates, knowledge=ServerKnowledge(seed=seed))


def config_of(
    rule: str = "nnm+trimmed-mean",
    optimizer: str = "fedavg",
    *,
    num_malicious: int = 3,
    clipping_norm: float | None = 6.0,
) -> IntegratedConfig:
    aggregator = AggregatorConfig(
        rule=rule, num_malicious_nodes=num_malicious, clipping_norm=clipping_norm
    )
    return IntegratedConfig(
        byzantine=ByzantineConfig(aggregator=aggregator),
        optimizer=ServerOptimizerConfig(name=optimizer),
    )


def robust_of(report: StepReport) -> RobustAggregate:
    assert isinstance(report.combined, RobustAggregate)
    return report.combined


def assert_same(first: Stepped, second: Stepped) -> None:
    assert encode_state(first[0]) == encode_state(second[0])
    assert same_bits(first[1], second[1])
    assert same_bits(first[2].aggregate, second[2].aggregate)


def test_a_round_is_what_its_stages_are_by_hand() -> None:
    updates = hostile_updates(1)
    whole = IntegratedFederatedAggregator(config_of())
    after, weights, report = whole.step(whole.initial_state(START), plain(updates))
    usable = [update.vector for i, update in enumerate(updates) if i not in {1, 4}]
    clipped = np.array([clip_by_norm(vector, 6.0) for vector in usable])
    # Two of three malicious ones gave themselves away.
    nearest = np.argsort(exact_distances(clipped), axis=1)[:, :7]
    mixed = clipped.astype(np.float64)[nearest].mean(axis=1).astype(np.float32)
    expected = brute_force_trimmed_mean(mixed, 1)
    np.testing.assert_allclose(report.aggregate, expected, rtol=3e-7)
    moved = START.astype(np.float64) + report.aggregate
    np.testing.assert_array_equal(after.weights, moved)
    np.testing.assert_array_equal(weights, moved.astype(np.float32))
    robust = robust_of(report)
    assert robust.aggregate.num_clipped == 1
    assert {each.key: each.reason for each in robust.rejections} == {
        "01": Reason.NOT_FINITE,
        "04": Reason.WRONG_SHAPE,
    }


@pytest.mark.parametrize("rule", ["mean", "multi-krum", "median", "arc+nnm+krum", "clip+hybrid"])
@looped("optimizer", ["fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_rounds_equal_the_aggregator_and_the_optimizer_in_turn(rule: str, optimizer: str) -> None:
    config = config_of(rule, optimizer, num_malicious=2)
    whole = IntegratedFederatedAggregator(config)
    robust = ByzantineRobustAggregator(config.byzantine)
    state, moments = whole.initial_state(START), initial_state(config.optimizer, DIM)
    weights = START.astype(np.float64)
    for number in range(4):
        updates = updates_of(honest_rows(number, num_rows=9, dim=DIM))
        state, model, report = whole.step(state, plain(updates))
        vector = robust.aggregate(updates, dim=DIM).aggregate.vector
        moments, change = step(config.optimizer, moments, vector)
        weights = weights + change
        assert same_bits(report.aggregate, vector)
        assert same_bits(state.weights, weights)
        assert same_bits(model, weights.astype(np.float32))
        assert state.optimizer.num_steps == moments.num_steps == number + 1
        for name, each in moments.vectors.items():
            assert same_bits(state.optimizer.vectors[name], each)


@pytest.mark.parametrize(
    "rule", ["nnm+trimmed-mean", "aegis", "centered-clipping", "bucketing+median", "mean"]
)
@settings(max_examples=10)
@given(seed=st.integers(0, 10_000))
def test_order_of_arrival_does_not_change_a_bit(rule: str, seed: int) -> None:
    whole = IntegratedFederatedAggregator(config_of(rule, "fedadam", num_malicious=1))
    shuffler = random.Random(seed)
    states = [whole.initial_state(START)] * 2
    for number in range(3):
        updates = hostile_updates(seed + number)
        arrived = list(updates)
        shuffler.shuffle(arrived)
        first = whole.step(states[0], plain(updates, seed=number))
        second = whole.step(states[1], plain(arrived, seed=number))
        assert_same(first, second)
        states = [first[0], second[0]]


@pytest.mark.parametrize("rule", ["nnm+trimmed-mean", "aegis", "centered-clipping"])
def test_a_round_may_be_run_again_also_by_whoever_reads_the_stored_state(rule: str) -> None:
    whole = IntegratedFederatedAggregator(config_of(rule, "fedadam", num_malicious=2))
    state, _, _ = whole.step(whole.initial_state(START), plain(hostile_updates(1)))
    before = encode_state(state)
    updates = plain(hostile_updates(2))
    assert_same(whole.step(state, updates), whole.step(state, updates))
    other = IntegratedFederatedAggregator(config_of(rule, "fedadam", num_malicious=2))
    assert_same(other.step(decode_state(before), updates), whole.step(state, updates))
    assert encode_state(state) == before


def test_centered_clipping_starts_where_the_last_round_ended() -> None:
    whole = IntegratedFederatedAggregator(config_of("centered-clipping", clipping_norm=None))
    state, center = whole.initial_state(START), None
    for number in range(3):
        rows = honest_rows(number, num_rows=7, dim=DIM)
        state, _, report = whole.step(state, plain(updates_of(rows)))
        center = centered_clipping(rows, center=center).vector
        assert same_bits(report.aggregate, center)
        assert state.center is not None
        assert same_bits(state.center, center)


def test_the_center_is_seen_through_each_round_s_own_map() -> None:
    """Maps differ from round to round: what is remembered is the aggregate of the whole model."""
    whole = IntegratedFederatedAggregator(config_of("centered-clipping", clipping_norm=None))
    state = whole.initial_state(START)
    center: NDArray[np.float32] | None = None
    for number in range(3):
        map_ = linear_map(
            CompressionPlan(
                method=Method.RAND_K, dim=DIM, num_values=6, map_seed=bytes([number] * 32)
            )
        )
        rows = honest_rows(number, num_rows=7, dim=6)
        contributions = PlainUpdates(updates=updates_of(rows), linear_map=map_)
        state, _, report = whole.step(state, contributions)
        mapped = None if center is None else map_.compress(center)
        expanded = map_.expand(centered_clipping(rows, center=mapped).vector.astype(np.float64))
        np.testing.assert_array_equal(report.aggregate, expanded)
        center = np.asarray(expanded).astype(np.float32)


def test_aegis_remembers_devices_from_round_to_round() -> None:
    whole = IntegratedFederatedAggregator(config_of("aegis", clipping_norm=None))
    rows = honest_rows(3, num_rows=8, dim=DIM)
    rows[2] *= -1.0
    state = whole.initial_state(START)
    assert state.rule is None
    for number in range(1, 4):
        state, _, _ = whole.step(state, plain(updates_of(rows)))
        assert isinstance(state.rule, AegisState)
        assert state.rule.round == number
    assert isinstance(state.rule, AegisState)
    reputations = state.rule.reputations
    assert reputations["02"] > 10 * max(reputations[key] for key in reputations if key != "02")


def test_other_settings_keep_the_weights_and_start_the_rest_anew() -> None:
    before = IntegratedFederatedAggregator(config_of("aegis", "fedadam", clipping_norm=None))
    updates = plain(updates_of(honest_rows(3, num_rows=8, dim=DIM)))
    state, _, _ = before.step(before.initial_state(START), updates)
    after = IntegratedFederatedAggregator(config_of("centered-clipping", "fedavgm"))
    fresh = replace(after.initial_state(START), weights=state.weights)
    assert_same(after.step(state, updates), after.step(fresh, updates))
    moved, _, _ = after.step(state, updates)
    assert moved.rule is None
    assert set(moved.optimizer.vectors) == {"momentum"}


def test_rules_without_memory_leave_no_state() -> None:
    whole = IntegratedFederatedAggregator(config_of("median"))
    after, _, _ = whole.step(whole.initial_state(START), plain(hostile_updates(1)))
    assert after.rule is None
    assert after.center is None


def test_a_private_round_moves_the_model_by_its_noisy_mean() -> None:
    whole = IntegratedFederatedAggregator(config_of("mean", "fedavgm", num_malicious=0))
    config = DPConfig(clipping_norm=1.0, noise_multiplier=2.0, expected_updates=5.0)
    noise = RoundNoise(noise_key=bytes(32), round_number=3, manifest_sha256=bytes(32))
    updates = updates_of(honest_rows(2, num_rows=5, dim=DIM))
    private = DPGradientAggregator(config).aggregate(updates, noise)
    state, _, report = whole.step(
        whole.initial_state(START), PrivateUpdates(updates=updates, config=config, noise=noise)
    )
    assert same_bits(report.aggregate, private.vector)
    assert same_bits(state.weights, START.astype(np.float64) + private.vector)
    assert same_bits(state.optimizer.vectors["momentum"], private.vector)


def test_one_opened_sum_is_the_mean_and_of_several_the_rule_picks() -> None:
    whole = IntegratedFederatedAggregator(config_of("median", num_malicious=1, clipping_norm=None))
    totals = [np.full(DIM, value << 20, np.int64) for value in (4, 6, 800)]
    state = whole.initial_state(START)
    one, _, _ = whole.step(state, SharedSums(sums=totals[:1], divisors=[4], fraction_bits=20))
    np.testing.assert_array_equal(one.weights, START.astype(np.float64) + 1.0)
    several = SharedSums(sums=totals, divisors=[4, 4, 4], fraction_bits=20)
    median, _, report = whole.step(state, several)
    np.testing.assert_array_equal(median.weights, START.astype(np.float64) + 1.5)
    assert isinstance(report.combined, OpenedMeans)
    assert report.combined.num_groups == 3
    with pytest.raises(AggregationError, match="at least one sum"):
        whole.step(state, SharedSums(sums=[], divisors=[], fraction_bits=20))


def test_groups_drawn_anew_each_round_get_no_reputation() -> None:
    whole = IntegratedFederatedAggregator(config_of("aegis", clipping_norm=None))
    totals = [np.full(DIM, value << 20, np.int64) for value in (4, 5, 6, 7)]
    sums = SharedSums(sums=totals, divisors=[4] * 4, fraction_bits=20)
    after, _, _ = whole.step(whole.initial_state(START), sums)
    assert after.rule is None


def test_knowledge_reaches_the_rule() -> None:
    rows = honest_rows(5, num_rows=7, dim=DIM)
    rows[3] *= -1.0
    whole = IntegratedFederatedAggregator(config_of("fltrust", clipping_norm=None))
    knowledge = ServerKnowledge(root_update=np.ones(DIM, dtype=np.float32))
    contributions = PlainUpdates(updates=updates_of(rows), knowledge=knowledge)
    _, _, report = whole.step(whole.initial_state(START), contributions)
    expected = GradientAggregator(AggregatorConfig(rule="fltrust")).aggregate(
        updates_of(rows), knowledge
    )
    assert same_bits(report.aggregate, expected.vector)
    assert robust_of(report).aggregate.selected.tolist() == [i != 3 for i in range(7)]


def test_the_seed_of_a_round_reaches_the_rule() -> None:
    whole = IntegratedFederatedAggregator(config_of("bucketing+median", num_malicious=1))
    state = whole.initial_state(START)
    models = {
        whole.step(state, plain(hostile_updates(6), seed=seed))[1].tobytes() for seed in range(6)
    }
    assert len(models) > 1


@pytest.mark.parametrize(
    "knowledge",
    [
        ServerKnowledge(center=np.zeros(DIM, dtype=np.float32)),
        ServerKnowledge(state=AegisState()),
    ],
)
def test_a_center_or_state_beside_that_of_the_version_is_refused(
    knowledge: ServerKnowledge,
) -> None:
    whole = IntegratedFederatedAggregator(config_of())
    contributions = PlainUpdates(updates=hostile_updates(1), knowledge=knowledge)
    with pytest.raises(AggregationError, match="they come from the version before"):
        whole.step(whole.initial_state(START), contributions)


def test_the_model_decides_the_dimension_not_the_majority() -> None:
    whole = IntegratedFederatedAggregator(config_of("median", num_malicious=0))
    updates = updates_of(honest_rows(7, num_rows=5, dim=DIM))
    short = [replace(each, key=f"s{each.key}", vector=each.vector[:4]) for each in updates]
    _, weights, report = whole.step(whole.initial_state(START), plain([*short, *updates[:2]]))
    assert weights.shape == (DIM,)
    assert len(robust_of(report).rejections) == 5


def test_too_few_usable_updates_leave_the_state_to_be_used_again() -> None:
    whole = IntegratedFederatedAggregator(config_of("multi-krum", "fedadam"))
    state = whole.initial_state(START)
    before = encode_state(state)
    with pytest.raises(TooFewUpdatesError):
        whole.step(state, plain(updates_of(honest_rows(8, num_rows=4, dim=DIM))))
    assert encode_state(state) == before


def test_a_model_without_weights_is_refused() -> None:
    with pytest.raises(AggregationError, match="dim=0"):
        IntegratedFederatedAggregator(config_of()).initial_state(START[:0])


def test_an_unknown_rule_is_refused_at_once() -> None:
    with pytest.raises(AggregationError, match="rule='bulian'"):
        IntegratedFederatedAggregator(config_of("bulian"))


def test_steps_below_the_resolution_of_float32_add_up() -> None:
    """A thousand steps of 1e-6 from 100.0, none of which float32 can show."""
    whole = IntegratedFederatedAggregator(config_of("mean", num_malicious=0, clipping_norm=None))
    state = whole.initial_state(np.full(1, 100.0, np.float32))
    update = Update(key="d", vector=np.full(1, 1e-6, np.float32), num_samples=1)
    for _ in range(1000):
        state, weights, _ = whole.step(decode_state(encode_state(state)), plain([update]))
    assert weights[0] == np.float32(100.001)
    lost = np.float32(100.0)
    for _ in range(1000):
        lost += np.float32(1e-6)
    assert lost == 100.0


@pytest.mark.slow
def test_a_model_is_right_to_1e_minus_6_after_a_thousand_rounds() -> None:
    """Every round values from 1e-8 to 1e8 cancel but for small ones, which plain float32 loses."""
    num_rows, dim = 20, 8
    whole = IntegratedFederatedAggregator(
        config_of("mean", num_malicious=0, clipping_norm=None, optimizer="fedavg")
    )
    model, plain_model = np.zeros(dim, np.float32), np.zeros(dim, np.float32)
    state = whole.initial_state(model)
    exact = [Fraction()] * dim
    for number in range(1000):
        rows = cancelling_rows(number, num_rows, dim)
        updates = [replace(update, num_samples=1) for update in updates_of(rows)]
        state, model, _ = whole.step(state, plain(updates))
        naive = np.zeros(dim, dtype=np.float32)
        for row in rows:
            naive += row
        plain_model += naive / np.float32(num_rows)
        exact = [
            value + sum(map(Fraction, column), Fraction()) / num_rows
            for value, column in zip(exact, rows.T.tolist(), strict=True)
        ]
    assert state.optimizer.num_steps == 1000
    assert worst_relative_error(model, exact) < 1e-6
    assert worst_relative_error(plain_model, exact) > 1e-3


def worst_relative_error(found: Matrix | Floats, exact: list[Fraction]) -> float:
    return max(
        float(abs(Fraction(x) - value) / abs(value))
        for x, value in zip(found.tolist(), exact, strict=True)
    )
