"""What a version leaves to the next: kept bit for bit, refused where no round can have left it."""

import json
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from aggregators.aggregator_state import (
    STATE_KEY,
    AggregatorState,
    decode_state,
    encode_state,
    state_of_model,
)
from aggregators.errors import AggregationError
from aggregators.rules.aegis import AegisState
from aggregators.server_optimizer import OPTIMIZERS, ServerOptimizerConfig, initial_state

DIM = 3
FLOATS = st.floats(allow_nan=False, allow_infinity=False)


def state_of(name: str = "fedavg", **changes: object) -> AggregatorState:
    optimizer = initial_state(ServerOptimizerConfig(name=name), DIM)
    settings = {"weights": np.arange(DIM, dtype=np.float64), "optimizer": optimizer}
    return AggregatorState(**{**settings, **changes})  # type: ignore[arg-type]  # by name


@given(
    name=st.sampled_from(sorted(OPTIMIZERS)),
    weights=st.lists(FLOATS, min_size=DIM, max_size=DIM),
    center=st.none()
    | st.lists(
        st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=DIM, max_size=DIM
    ),
    reputations=st.none() | st.dictionaries(st.text(max_size=20), st.floats(0.0, 2.0), max_size=5),
)
def test_states_survive_encoding_bit_for_bit(
    name: str,
    weights: list[float],
    center: list[float] | None,
    reputations: Mapping[str, float] | None,
) -> None:
    state = state_of(
        name,
        weights=np.array(weights),
        center=None if center is None else np.array(center, np.float32),
        rule=None if reputations is None else AegisState(reputations=reputations, round=7),
    )
    data = encode_state(state)
    read = decode_state(memoryview(data))
    assert read.weights.tobytes() == state.weights.tobytes()
    assert (read.center is None) == (state.center is None)
    if read.center is not None and state.center is not None:
        assert read.center.tobytes() == state.center.tobytes()
    assert read.rule == state.rule
    assert (read.optimizer.name, read.optimizer.num_steps) == (name, 0)
    for each, vector in state.optimizer.vectors.items():
        assert read.optimizer.vectors[each].tobytes() == vector.tobytes()
    assert encode_state(read) == data


def test_the_state_of_a_model_is_its_weights() -> None:
    weights = np.array([1.5, -0.0, 3e38], np.float32)
    state = state_of_model(weights, ServerOptimizerConfig(name="fedadam"))
    assert state.weights.astype(np.float32).tobytes() == weights.tobytes()
    assert state.dim == DIM


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": np.zeros(DIM, np.float32)}, "weights of float32"),
        ({"weights": np.zeros(DIM + 1)}, "must be float64 of dim=3"),
        ({"weights": np.array([0.0, np.nan, 0.0])}, "weights in .* must be finite"),
        ({"center": np.zeros(DIM)}, "center of float64"),
        ({"center": np.array([0.0, np.inf, 0.0], np.float32)}, "center in .* must be finite"),
    ],
)
def test_states_no_round_could_have_left_are_refused(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(AggregationError, match=message):
        state_of("fedavg", **changes)


def test_a_memory_that_no_rule_returned_is_refused() -> None:
    with pytest.raises(AggregationError, match="must be what a rule returned"):
        encode_state(state_of(rule=object()))


def metadata(**changes: object) -> dict[str, str]:
    return {STATE_KEY: json.dumps({"name": "fedavg", "num_steps": 1} | changes)}


def remembering(text: str) -> bytes:
    memory = np.frombuffer(text.encode(), np.uint8)
    return save({**WEIGHTS, "rule": memory}, metadata=metadata())


WEIGHTS = {"weights": np.zeros(2)}
MOMENTUM = metadata(name="fedavgm")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not safetensors",
        save({}),
        save(WEIGHTS),
        save({}, metadata=metadata()),
        save(WEIGHTS, metadata={STATE_KEY: "{"}),
        save(WEIGHTS, metadata={STATE_KEY: "[1]"}),
        save(WEIGHTS, metadata={STATE_KEY: "[" * 100_000}),
        save(WEIGHTS, metadata=metadata(num_steps=1.5)),
        save(WEIGHTS, metadata=metadata(name=["fedavg"])),
        save(WEIGHTS, metadata=metadata(name="sgd")),
        save(WEIGHTS, metadata=MOMENTUM),
        save({**WEIGHTS, "optimizer.momentum": np.zeros(2)}, metadata=metadata()),
        save({**WEIGHTS, "optimizer.momentum": np.zeros(3)}, metadata=MOMENTUM),
        save({**WEIGHTS, "optimizer.momentum": np.full(2, np.nan)}, metadata=MOMENTUM),
        save({"weights": np.zeros((2, 2))}, metadata=metadata()),
        save({"weights": np.zeros(2, np.int64)}, metadata=metadata()),
        remembering(""),
        remembering("[" * 100_000),
        remembering("7"),
        remembering("null"),
        remembering('{"rule": "median"}'),
        remembering('{"rule": "nothing"}'),
        remembering('{"rule": 3}'),
        remembering('{"round": 1}'),
        remembering('{"rule": "aegis", "round": -1}'),
        remembering('{"rule": "aegis", "round": "1"}'),
        remembering('{"rule": "aegis", "rounds": 1}'),
        remembering('{"rule": "aegis", "reputations": [1]}'),
        remembering('{"rule": "aegis", "reputations": {"d": "x"}}'),
        remembering('{"rule": "aegis", "reputations": {"d": NaN}}'),
    ],
    ids=lambda data: f"{data[-60:]!r}",
)
def test_bytes_that_are_no_state_are_refused(data: bytes) -> None:
    with pytest.raises(AggregationError):
        decode_state(data)


@pytest.mark.slow
@pytest.mark.long
def test_a_memory_of_very_many_devices_is_kept() -> None:
    """More than a header of safetensors may hold."""
    reputations = {f"{number:064}": 0.5 for number in range(1_400_000)}
    state = state_of(rule=AegisState(reputations=reputations, round=3))
    assert decode_state(encode_state(state)).rule == state.rule
