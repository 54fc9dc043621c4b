import math
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from aggregators.aggregator_state import AggregatorState, decode_state, encode_state
from aggregators.errors import AggregationError
from aggregators.server_optimizer import (
    MOMENTUM,
    OPTIMIZERS,
    SECOND_MOMENT,
    OptimizerState,
    ServerOptimizerConfig,
    initial_state,
    step,
)
from tests.looped import looped
from tests.peers import flower, flower_strategies

Floats = NDArray[np.float64]

DIM = 4
ADAPTIVE = ("fedadagrad", "fedadam", "fedyogi")
ALL_CONFIGS = [
    ServerOptimizerConfig(name=name, learning_rate=0.3, momentum=0.8, beta2=0.95)
    for name in OPTIMIZERS
]


def draw_aggregates(seed: int, num_rounds: int, dim: int = DIM) -> list[Floats]:
    """Aggregates of very different sizes, one coordinate always zero."""
    generator = np.random.default_rng(seed)
    sizes = np.logspace(-6, 1, dim)
    drawn = sizes * generator.standard_normal((num_rounds, dim))
    drawn[:, 0] = 0.0
    return list(drawn)


def run(
    config: ServerOptimizerConfig, state: OptimizerState, aggregates: list[Floats]
) -> tuple[OptimizerState, list[Floats]]:
    updates = []
    for aggregate in aggregates:
        state, update = step(config, state, aggregate)
        updates.append(update)
    return state, updates


def stored_and_read(state: OptimizerState) -> OptimizerState:
    whole = AggregatorState(weights=np.zeros(state.dim), optimizer=state)
    return decode_state(encode_state(whole)).optimizer


def with_second_moment(state: OptimizerState, value: float) -> OptimizerState:
    return replace(state, vectors={**state.vectors, SECOND_MOMENT: np.full(state.dim, value)})


def assert_same_state(first: OptimizerState, second: OptimizerState) -> None:
    assert (first.name, first.dim, first.num_steps) == (second.name, second.dim, second.num_steps)
    assert first.vectors.keys() == second.vectors.keys()
    for name, vector in first.vectors.items():
        assert vector.dtype == second.vectors[name].dtype == np.float64
        assert vector.tobytes() == second.vectors[name].tobytes()


class DecimalReference:
    """One coordinate of the optimizers' formulas in 50-digit arithmetic."""

    def __init__(self, config: ServerOptimizerConfig) -> None:
        self.name = config.name
        self.eta, self.b1 = Decimal(config.eta), Decimal(config.beta1)
        self.b2, self.tau = Decimal(config.beta2), Decimal(config.adaptivity)
        self.m, self.v = Decimal(0), self.tau * self.tau

    def step(self, value: float) -> Decimal:
        delta = Decimal(value)
        if self.name == "fedavg":
            return self.eta * delta
        if self.name == "fedavgm":
            self.m = self.b1 * self.m + delta
            return self.eta * self.m
        self.m = self.b1 * self.m + (1 - self.b1) * delta
        square = delta * delta
        if self.name == "fedadagrad":
            self.v += square
        elif self.name == "fedadam":
            self.v = self.b2 * self.v + (1 - self.b2) * square
        else:
            sign = (self.v > square) - (self.v < square)
            self.v -= (1 - self.b2) * square * sign
        return self.eta * self.m / (self.v.sqrt() + self.tau)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_thousand_rounds_stay_within_1e_9_of_exact_arithmetic(name: str) -> None:
    config = ServerOptimizerConfig(name=name)
    aggregates = draw_aggregates(seed=1, num_rounds=1000)
    _, updates = run(config, initial_state(config, DIM), aggregates)
    for column in range(DIM):
        values = [float(aggregate[column]) for aggregate in aggregates]
        with localcontext(prec=50):
            reference = DecimalReference(config)
            exact = [reference.step(value) for value in values]
            errors = [
                abs(Decimal(float(update[column])) - value)
                for update, value in zip(updates, exact, strict=True)
            ]
            # Relative to the largest step: one that happens to cancel has no digits of its own.
            assert max(errors) <= Decimal("1e-9") * max(map(abs, exact))
            assert sum(errors, Decimal(0)) <= Decimal("1e-9") * sum(map(abs, exact), Decimal(0))


class FlowerServer:
    """Rounds of one flwr strategy, fed with aggregates."""

    def __init__(self, strategy: Any, weights: Floats) -> None:
        self.strategy = strategy
        self.weights = weights
        self.num_rounds = 0

    def step(self, aggregate: Floats) -> Floats:
        self.num_rounds += 1
        result = flower.FitRes(
            status=flower.Status(code=flower.Code.OK, message=""),
            parameters=flower.ndarrays_to_parameters([self.weights + aggregate]),
            num_examples=1,
            metrics={},
        )
        # The client a result came from is not read.
        new, _ = self.strategy.aggregate_fit(self.num_rounds, [(None, result)], [])
        assert new is not None
        self.weights = flower.parameters_to_ndarrays(new)[0]
        return self.weights


def assert_follows_flower(
    config: ServerOptimizerConfig,
    state: OptimizerState,
    server: FlowerServer,
    *,
    has_bias_correction: bool = False,
) -> None:
    weights = server.weights.copy()
    for number, aggregate in enumerate(draw_aggregates(2, num_rounds=30), start=1):
        now = config
        if has_bias_correction:
            # flwr's FedAdam has the bias correction of Adam, one round ahead of itself;
            # Algorithm 2 of Reddi et al. has none.
            factor = math.sqrt(1 - config.beta2 ** (number + 1)) / (
                1 - config.beta1 ** (number + 1)
            )
            now = replace(config, learning_rate=config.eta * factor)
        state, update = step(now, state, aggregate)
        weights += update
        # flwr gets the aggregate back as a difference of weights around 1, rounded at 1e-16.
        np.testing.assert_allclose(server.step(aggregate), weights, rtol=1e-8, atol=1e-12)


START = np.linspace(-1.0, 1.0, DIM)


@pytest.mark.peers
def test_fedavgm_agrees_with_flower() -> None:
    config = ServerOptimizerConfig(name="fedavgm", learning_rate=0.7, momentum=0.9)
    strategy = flower_strategies.FedAvgM(
        initial_parameters=flower.ndarrays_to_parameters([START]),
        server_learning_rate=0.7,
        server_momentum=0.9,
        fit_metrics_aggregation_fn=lambda _: {},
    )
    assert_follows_flower(config, initial_state(config, DIM), FlowerServer(strategy, START))


@pytest.mark.peers
def test_fedadam_agrees_with_flower_but_for_bias_correction_and_start() -> None:
    config = ServerOptimizerConfig(name="fedadam", learning_rate=0.1, momentum=0.9)
    strategy = flower_strategies.FedAdam(
        initial_parameters=flower.ndarrays_to_parameters([START]),
        eta=0.1,
        beta_1=0.9,
        beta_2=0.99,
        tau=1e-3,
        fit_metrics_aggregation_fn=lambda _: {},
    )
    # flwr starts second moments at 0, Algorithm 2 at tau^2.
    state = with_second_moment(initial_state(config, DIM), 0.0)
    server = FlowerServer(strategy, START)
    assert_follows_flower(config, state, server, has_bias_correction=True)


@pytest.mark.peers
def test_fedyogi_agrees_with_flower_but_for_start() -> None:
    config = ServerOptimizerConfig(name="fedyogi", learning_rate=0.01)
    strategy = flower_strategies.FedYogi(
        initial_parameters=flower.ndarrays_to_parameters([START]),
        eta=0.01,
        beta_1=0.9,
        beta_2=0.99,
        tau=1e-3,
        fit_metrics_aggregation_fn=lambda _: {},
    )
    state = with_second_moment(initial_state(config, DIM), 0.0)
    assert_follows_flower(config, state, FlowerServer(strategy, START))


@pytest.mark.peers
def test_fedadagrad_agrees_with_flower_but_for_start() -> None:
    config = ServerOptimizerConfig(name="fedadagrad", learning_rate=0.1)
    strategy = flower_strategies.FedAdagrad(
        initial_parameters=flower.ndarrays_to_parameters([START]),
        eta=0.1,
        tau=1e-3,
        fit_metrics_aggregation_fn=lambda _: {},
    )
    state = with_second_moment(initial_state(config, DIM), 0.0)
    assert_follows_flower(config, state, FlowerServer(strategy, START))


def assert_follows_torch(
    config: ServerOptimizerConfig,
    state: OptimizerState,
    weights: torch.Tensor,
    optimizer: torch.optim.Optimizer,
) -> None:
    moved = np.zeros(DIM)
    for aggregate in draw_aggregates(3, num_rounds=30):
        # torch divides both moments of Adam by their bias; an optimizer without that takes the
        # same step with another learning rate and tau.
        now = config
        if config.name == "fedadam":
            number = state.num_steps + 1
            root = math.sqrt(1 - config.beta2**number)
            rate = config.eta * root / (1 - config.beta1**number)
            now = replace(config, learning_rate=rate, adaptivity=config.adaptivity * root)
        state, update = step(now, state, aggregate)
        moved += update
        weights.grad = torch.from_numpy(-aggregate)
        optimizer.step()
        np.testing.assert_allclose(weights.detach().numpy(), moved, rtol=1e-11, atol=1e-14)


def zero_weights() -> torch.Tensor:
    return torch.zeros(DIM, dtype=torch.float64, requires_grad=True)


@pytest.mark.slow  # torch imports its compiler at the first step
def test_fedavgm_is_sgd_with_momentum() -> None:
    config = ServerOptimizerConfig(name="fedavgm", learning_rate=0.7, momentum=0.9)
    weights = zero_weights()
    optimizer = torch.optim.SGD([weights], lr=0.7, momentum=0.9)
    assert_follows_torch(config, initial_state(config, DIM), weights, optimizer)


@pytest.mark.slow  # torch imports its compiler at the first step
def test_fedadagrad_is_adagrad_started_at_tau_squared() -> None:
    config = ServerOptimizerConfig(name="fedadagrad", learning_rate=0.7)
    weights = zero_weights()
    optimizer = torch.optim.Adagrad(
        [weights], lr=0.7, eps=1e-3, initial_accumulator_value=1e-3 * 1e-3
    )
    assert_follows_torch(config, initial_state(config, DIM), weights, optimizer)


@pytest.mark.slow  # torch imports its compiler at the first step
def test_fedadam_is_adam_without_bias_correction() -> None:
    config = ServerOptimizerConfig(name="fedadam", learning_rate=0.7)
    state = with_second_moment(initial_state(config, DIM), 0.0)
    weights = zero_weights()
    optimizer = torch.optim.Adam([weights], lr=0.7, betas=(0.9, 0.99), eps=1e-3)
    assert_follows_torch(config, state, weights, optimizer)


@given(
    hnp.arrays(np.float32, DIM, elements=st.floats(allow_nan=False, allow_infinity=False, width=32))
)
def test_a_learning_rate_of_1_returns_the_aggregate_itself(
    aggregate: NDArray[np.float32],
) -> None:
    config = ServerOptimizerConfig()
    state, update = step(config, initial_state(config, DIM), aggregate)
    assert update.tobytes() == aggregate.astype(np.float64).tobytes()
    assert state.num_steps == 1


@pytest.mark.parametrize("config", ALL_CONFIGS, ids=lambda config: config.name)
def test_arguments_are_not_modified_nor_shared(config: ServerOptimizerConfig) -> None:
    aggregates = draw_aggregates(4, num_rounds=3)
    state, _ = run(config, initial_state(config, DIM), aggregates[:2])
    before = {name: vector.tobytes() for name, vector in state.vectors.items()}
    aggregate = aggregates[2]
    aggregate.setflags(write=False)
    new_state, update = step(config, state, aggregate)
    held = [aggregate, *state.vectors.values(), *new_state.vectors.values()]
    assert not any(np.shares_memory(update, vector) for vector in held)
    update[:] = 0.0
    assert {name: vector.tobytes() for name, vector in state.vectors.items()} == before


@pytest.mark.parametrize("config", ALL_CONFIGS, ids=lambda config: config.name)
def test_a_run_continued_from_a_stored_state_equals_an_uninterrupted_one(
    config: ServerOptimizerConfig,
) -> None:
    aggregates = draw_aggregates(5, num_rounds=40)
    whole, updates = run(config, initial_state(config, DIM), aggregates)
    half, first = run(config, initial_state(config, DIM), aggregates[:17])
    resumed, second = run(config, stored_and_read(half), aggregates[17:])
    assert_same_state(whole, resumed)
    assert np.stack(updates).tobytes() == np.stack(first + second).tobytes()


@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_steps_do_not_depend_on_the_unit_of_the_aggregate(name: str) -> None:
    aggregates = draw_aggregates(8, num_rounds=20)
    config = ServerOptimizerConfig(name=name)
    # A power of two scales without rounding.
    unit = 2.0**-90
    _, updates = run(config, initial_state(config, DIM), aggregates)
    small = replace(config, adaptivity=config.adaptivity * unit)
    scaled = [aggregate * unit for aggregate in aggregates]
    _, same = run(small, initial_state(small, DIM), scaled)
    assert np.stack(updates).tobytes() == np.stack(same).tobytes()


@pytest.mark.parametrize("name", ["fedavgm", *ADAPTIVE])
def test_without_aggregates_nothing_moves(name: str) -> None:
    config = ServerOptimizerConfig(name=name)
    _, updates = run(config, initial_state(config, DIM), [np.zeros(DIM)] * 5)
    assert not np.stack(updates).any()


@pytest.mark.parametrize("config", ALL_CONFIGS, ids=lambda config: config.name)
@looped("size", [1e30, 3e38, 1e-30, 1e-45])
def test_every_float32_is_in_range(config: ServerOptimizerConfig, size: float) -> None:
    aggregate = np.array([size, -size, 0.0, 1.0], dtype=np.float32)
    state = initial_state(config, DIM)
    for _ in range(3):
        state, update = step(config, state, aggregate)
        assert np.isfinite(update).all()
        assert (np.sign(update) == np.sign(aggregate)).all()


def test_defaults_are_those_the_documentation_names() -> None:
    for name in OPTIMIZERS:
        config = ServerOptimizerConfig(name=name)
        assert config.eta == (0.01 if name in ADAPTIVE else 1.0)
        assert config.beta1 == (0.0 if name == "fedadagrad" else 0.9)
    state = initial_state(ServerOptimizerConfig(name="fedyogi", adaptivity=0.5), 2)
    assert state.vectors[SECOND_MOMENT].tolist() == [0.25, 0.25]
    assert state.vectors[MOMENTUM].tolist() == [0.0, 0.0]


@looped(
    "settings, message",
    [
        ({"name": "adam"}, "name='adam' must be one of fedavg, fedavgm, fedadam"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 of fedavg must be finite and above 0"),
        ({"learning_rate": math.nan}, "learning_rate=nan"),
        ({"learning_rate": math.inf}, "learning_rate=inf"),
        ({"name": "fedavgm", "momentum": 1.0}, "momentum=1.0 of fedavgm must satisfy 0 <="),
        ({"name": "fedavgm", "momentum": -0.1}, "momentum=-0.1"),
        ({"beta2": math.nan}, "beta2=nan"),
        ({"adaptivity": 0.0}, "adaptivity=0.0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(AggregationError, match=message):
        ServerOptimizerConfig(**settings)  # type: ignore[arg-type]  # the refusal is under test


@looped("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("config", ALL_CONFIGS, ids=lambda config: config.name)
def test_aggregates_that_are_not_finite_are_refused(
    config: ServerOptimizerConfig, bad: float
) -> None:
    aggregate = np.array([0.0, bad, 1.0, 2.0])
    with pytest.raises(AggregationError, match=f"aggregate of {config.name} must be finite"):
        step(config, initial_state(config, DIM), aggregate)


@pytest.mark.parametrize(
    "aggregate",
    [np.zeros(DIM + 1), np.zeros((DIM, 1)), np.zeros(DIM, dtype=np.int64)],
    ids=["length", "shape", "type"],
)
def test_aggregates_of_another_shape_or_type_are_refused(aggregate: Floats) -> None:
    config = ServerOptimizerConfig()
    with pytest.raises(AggregationError, match="must be float32 or float64 of dim=4"):
        step(config, initial_state(config, DIM), aggregate)


def test_the_state_of_another_optimizer_is_refused() -> None:
    state = initial_state(ServerOptimizerConfig(name="fedadam"), DIM)
    with pytest.raises(AggregationError, match="state of fedadam must be one of fedyogi"):
        step(ServerOptimizerConfig(name="fedyogi"), state, np.zeros(DIM))


@pytest.mark.parametrize(
    ("name", "size"), [("fedavg", 1e300), ("fedavgm", 1e300), ("fedadam", 1e200)]
)
def test_values_beyond_float64_are_refused(name: str, size: float) -> None:
    config = ServerOptimizerConfig(name=name, learning_rate=1e10)
    with pytest.raises(AggregationError, match="must be finite"):
        step(config, initial_state(config, DIM), np.full(DIM, size))


@looped(
    "changes, message",
    [
        ({"name": "sgd"}, "name='sgd' of the state must be one of"),
        ({"dim": 0}, "dim=0 of the state"),
        ({"num_steps": -1}, "num_steps=-1"),
        ({"vectors": {}}, r"vectors \[\] of the state of fedavgm must be \['momentum'\]"),
        ({"vectors": {MOMENTUM: np.zeros(3)}}, "must be float64 of dim=4"),
        ({"vectors": {MOMENTUM: np.zeros(4, dtype=np.float32)}}, "must be float64 of dim=4"),
        ({"vectors": {MOMENTUM: np.full(4, np.inf)}}, "must be finite"),
    ],
)
def test_states_no_round_could_have_left_are_refused(
    changes: Mapping[str, object], message: str
) -> None:
    settings = {"name": "fedavgm", "dim": 4, "num_steps": 0, "vectors": {MOMENTUM: np.zeros(4)}}
    with pytest.raises(AggregationError, match=message):
        OptimizerState(**{**settings, **changes})  # type: ignore[arg-type]  # under test


def test_negative_second_moments_are_refused() -> None:
    state = initial_state(ServerOptimizerConfig(name="fedyogi"), DIM)
    with pytest.raises(AggregationError, match="not negative where it is a second moment"):
        with_second_moment(state, -1e-9)


def test_a_dimension_below_1_is_refused() -> None:
    with pytest.raises(AggregationError, match="dim=0 of the state of fedadam"):
        initial_state(ServerOptimizerConfig(name="fedadam"), 0)


def test_second_moments_stay_at_least_zero() -> None:
    # Yogi takes (1 - b2) D^2 off v only while v is above D^2.
    config = ServerOptimizerConfig(name="fedyogi", beta2=0.0, adaptivity=1e-3)
    state = initial_state(config, DIM)
    for aggregate in draw_aggregates(9, num_rounds=200):
        state, _ = step(config, state, aggregate)
        assert (state.vectors[SECOND_MOMENT] >= 0.0).all()
