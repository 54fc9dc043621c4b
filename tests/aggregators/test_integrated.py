import random
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregators.base import GradientAggregator, ServerKnowledge, Update
from aggregators.byzantine import ByzantineConfig, ByzantineRobustAggregator
from aggregators.config import AggregatorConfig
from aggregators.errors import AggregationError, TooFewUpdatesError
from aggregators.integrated import (
    IntegratedConfig,
    IntegratedFederatedAggregator,
    IntegratedResult,
    IntegratedState,
)
from aggregators.rules.aegis import AegisState
from aggregators.rules.centered_clipping import centered_clipping
from aggregators.server_optimizer import (
    CONTROL,
    ControlUpdate,
    ServerOptimizerConfig,
    decode_state,
    encode_state,
    initial_state,
    step,
)
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

DIM = 20


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


def assert_same(first: IntegratedResult, second: IntegratedResult) -> None:
    assert same_bits(first.step, second.step)
    assert same_bits(first.robust.aggregate.vector, second.robust.aggregate.vector)
    assert same_bits(first.robust.aggregate.weights, second.robust.aggregate.weights)
    assert first.robust.aggregate.keys == second.robust.aggregate.keys
    assert first.robust.rejections == second.robust.rejections
    assert_same_state(first.state, second.state)


def assert_same_state(first: IntegratedState, second: IntegratedState) -> None:
    assert encode_state(first.optimizer) == encode_state(second.optimizer)
    assert first.rule == second.rule
    if first.center is None or second.center is None:
        assert first.center is None
        assert second.center is None
    else:
        assert same_bits(first.center, second.center)


def test_a_round_is_what_its_stages_are_by_hand() -> None:
    updates = hostile_updates(1)
    result = IntegratedFederatedAggregator(config_of()).aggregate(
        updates, IntegratedFederatedAggregator(config_of()).initial_state(DIM)
    )
    usable = [update.vector for i, update in enumerate(updates) if i not in {1, 4}]
    clipped = np.array([clip_by_norm(vector, 6.0) for vector in usable])
    # Two of three malicious ones gave themselves away.
    nearest = np.argsort(exact_distances(clipped), axis=1)[:, :7]
    mixed = clipped.astype(np.float64)[nearest].mean(axis=1).astype(np.float32)
    expected = brute_force_trimmed_mean(mixed, 1)
    np.testing.assert_allclose(result.robust.aggregate.vector, expected, rtol=3e-7)
    np.testing.assert_array_equal(result.step, result.robust.aggregate.vector)
    assert result.robust.aggregate.num_clipped == 1
    assert {each.key: each.reason for each in result.robust.rejections} == {
        "01": Reason.NOT_FINITE,
        "04": Reason.WRONG_SHAPE,
    }


@pytest.mark.parametrize("rule", ["mean", "multi-krum", "median", "arc+nnm+krum", "clip+hybrid"])
@pytest.mark.parametrize("optimizer", ["fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_rounds_equal_the_aggregator_and_the_optimizer_in_turn(rule: str, optimizer: str) -> None:
    config = config_of(rule, optimizer, num_malicious=2)
    whole = IntegratedFederatedAggregator(config)
    robust = ByzantineRobustAggregator(config.byzantine)
    state, moments = whole.initial_state(DIM), initial_state(config.optimizer, DIM)
    for number in range(4):
        updates = updates_of(honest_rows(number, num_rows=9, dim=DIM))
        result = whole.aggregate(updates, state)
        vector = robust.aggregate(updates, dim=DIM).aggregate.vector
        moments, change = step(config.optimizer, moments, vector)
        assert same_bits(result.step, change)
        assert same_bits(result.robust.aggregate.vector, vector)
        assert encode_state(result.state.optimizer) == encode_state(moments)
        state = result.state
    assert state.optimizer.num_steps == 4


@pytest.mark.parametrize(
    "rule", ["nnm+trimmed-mean", "aegis", "centered-clipping", "bucketing+median", "mean"]
)
@settings(max_examples=10)
@given(seed=st.integers(0, 10_000))
def test_order_of_arrival_does_not_change_a_bit(rule: str, seed: int) -> None:
    config = config_of(rule, "fedadam", num_malicious=1)
    whole = IntegratedFederatedAggregator(config)
    shuffler = random.Random(seed)
    states = [whole.initial_state(DIM)] * 2
    for number in range(3):
        updates = hostile_updates(seed + number)
        arrived = list(updates)
        shuffler.shuffle(arrived)
        knowledge = ServerKnowledge(seed=number)
        first = whole.aggregate(updates, states[0], knowledge)
        second = whole.aggregate(arrived, states[1], knowledge)
        assert_same(first, second)
        states = [first.state, second.state]


@pytest.mark.parametrize("rule", ["nnm+trimmed-mean", "aegis", "centered-clipping"])
def test_a_round_may_be_run_again(rule: str) -> None:
    whole = IntegratedFederatedAggregator(config_of(rule, "fedadam", num_malicious=2))
    state = whole.aggregate(hostile_updates(1), whole.initial_state(DIM)).state
    before = encode_state(state.optimizer)
    updates = hostile_updates(2)
    assert_same(whole.aggregate(updates, state), whole.aggregate(updates, state))
    # Also by another process, that read the state from where it was stored.
    stored = replace(state, optimizer=decode_state(before))
    other = IntegratedFederatedAggregator(config_of(rule, "fedadam", num_malicious=2))
    assert_same(other.aggregate(updates, stored), whole.aggregate(updates, state))
    assert encode_state(state.optimizer) == before


def test_centered_clipping_starts_where_the_last_round_ended() -> None:
    whole = IntegratedFederatedAggregator(config_of("centered-clipping", clipping_norm=None))
    rows = [honest_rows(number, num_rows=7, dim=DIM) for number in range(3)]
    state, center = whole.initial_state(DIM), None
    for each in rows:
        result = whole.aggregate(updates_of(each), state)
        expected = centered_clipping(each, center=center)
        assert same_bits(result.robust.aggregate.vector, expected.vector)
        center, state = expected.vector, result.state
        assert state.center is not None
        assert same_bits(state.center, center)


def test_aegis_remembers_devices_from_round_to_round() -> None:
    whole = IntegratedFederatedAggregator(config_of("aegis", clipping_norm=None))
    rows = honest_rows(3, num_rows=8, dim=DIM)
    rows[2] *= -1.0
    state = whole.initial_state(DIM)
    assert state.rule is None
    for number in range(1, 4):
        state = whole.aggregate(updates_of(rows), state).state
        assert isinstance(state.rule, AegisState)
        assert state.rule.round == number
    assert isinstance(state.rule, AegisState)
    reputations = state.rule.reputations
    assert reputations["02"] > 10 * max(reputations[key] for key in reputations if key != "02")


def test_rules_without_memory_leave_no_state() -> None:
    whole = IntegratedFederatedAggregator(config_of("median"))
    assert whole.aggregate(hostile_updates(1), whole.initial_state(DIM)).state.rule is None


def test_scaffold_takes_a_step_and_moves_its_control_variate() -> None:
    whole = IntegratedFederatedAggregator(config_of("mean", "scaffold", num_malicious=0))
    state = whole.initial_state(DIM)
    mean_delta = np.linspace(-1.0, 1.0, DIM)
    control = ControlUpdate(mean_delta=mean_delta, num_reporting=10, num_devices=40)
    result = whole.aggregate(hostile_updates(4), state, control=control)
    np.testing.assert_array_equal(result.step, result.robust.aggregate.vector)
    np.testing.assert_allclose(result.state.optimizer.vectors[CONTROL], 0.25 * mean_delta)
    assert not state.optimizer.vectors[CONTROL].any()
    with pytest.raises(AggregationError, match="control must be given to scaffold"):
        whole.aggregate(hostile_updates(4), state)


def test_control_variates_are_refused_where_no_one_wants_them() -> None:
    whole = IntegratedFederatedAggregator(config_of("mean"))
    control = ControlUpdate(mean_delta=np.zeros(DIM), num_reporting=1, num_devices=1)
    with pytest.raises(AggregationError, match="control must be given to scaffold"):
        whole.aggregate(hostile_updates(4), whole.initial_state(DIM), control=control)


def test_knowledge_reaches_the_rule() -> None:
    rows = honest_rows(5, num_rows=7, dim=DIM)
    rows[3] *= -1.0
    whole = IntegratedFederatedAggregator(config_of("fltrust", clipping_norm=None))
    knowledge = ServerKnowledge(root_update=np.ones(DIM, dtype=np.float32))
    found = whole.aggregate(updates_of(rows), whole.initial_state(DIM), knowledge)
    expected = GradientAggregator(AggregatorConfig(rule="fltrust")).aggregate(
        updates_of(rows), knowledge
    )
    assert same_bits(found.robust.aggregate.vector, expected.vector)
    assert found.robust.aggregate.selected.tolist() == [i != 3 for i in range(7)]


def test_the_seed_of_a_round_reaches_the_rule() -> None:
    config = config_of("bucketing+median", num_malicious=1)
    whole = IntegratedFederatedAggregator(config)
    state = whole.initial_state(DIM)
    steps = {
        whole.aggregate(hostile_updates(6), state, ServerKnowledge(seed=seed)).step.tobytes()
        for seed in range(6)
    }
    assert len(steps) > 1


@pytest.mark.parametrize(
    "knowledge",
    [
        ServerKnowledge(center=np.zeros(DIM, dtype=np.float32)),
        ServerKnowledge(state=AegisState()),
    ],
)
def test_a_center_or_state_beside_that_of_the_last_round_is_refused(
    knowledge: ServerKnowledge,
) -> None:
    whole = IntegratedFederatedAggregator(config_of())
    with pytest.raises(AggregationError, match="they come from the last round"):
        whole.aggregate(hostile_updates(1), whole.initial_state(DIM), knowledge)


def test_the_model_decides_the_dimension_not_the_majority() -> None:
    whole = IntegratedFederatedAggregator(config_of("median", num_malicious=0))
    rows = honest_rows(7, num_rows=5, dim=DIM)
    updates = updates_of(rows)
    short = [replace(each, key=f"s{each.key}", vector=each.vector[:4]) for each in updates]
    result = whole.aggregate([*short, *updates[:2]], whole.initial_state(DIM))
    assert result.step.shape == (DIM,)
    assert len(result.robust.rejections) == 5


def test_too_few_usable_updates_leave_the_state_to_be_used_again() -> None:
    whole = IntegratedFederatedAggregator(config_of("multi-krum", "fedadam"))
    state = whole.initial_state(DIM)
    before = encode_state(state.optimizer)
    with pytest.raises(TooFewUpdatesError):
        whole.aggregate(updates_of(honest_rows(8, num_rows=4, dim=DIM)), state)
    assert encode_state(state.optimizer) == before


def test_a_model_without_weights_is_refused() -> None:
    with pytest.raises(AggregationError, match="dim=0"):
        IntegratedFederatedAggregator(config_of()).initial_state(0)


def test_an_unknown_rule_is_refused_at_once() -> None:
    with pytest.raises(AggregationError, match="rule='bulian'"):
        IntegratedFederatedAggregator(config_of("bulian"))


@pytest.mark.slow
def test_a_model_is_right_to_1e_minus_6_after_a_thousand_rounds() -> None:
    """Every round values from 1e-8 to 1e8 cancel but for small ones, which plain float32 loses."""
    num_rows, dim = 20, 8
    whole = IntegratedFederatedAggregator(
        config_of("mean", num_malicious=0, clipping_norm=None, optimizer="fedavg")
    )
    state = whole.initial_state(dim)
    exact = [Fraction()] * dim
    model, plain_model = np.zeros(dim), np.zeros(dim, dtype=np.float32)
    for number in range(1000):
        rows = cancelling_rows(number, num_rows, dim)
        updates = [replace(update, num_samples=1) for update in updates_of(rows)]
        result = whole.aggregate(updates, state)
        state = result.state
        model += result.step
        plain = np.zeros(dim, dtype=np.float32)
        for row in rows:
            plain += row
        plain_model += plain / np.float32(num_rows)
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
