"""From contributions to a candidate, against numpy; and what keeps a candidate from publication."""

import hashlib
from typing import Final

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from aggregators.config import AggregatorConfig
from aggregators.errors import AggregationError
from server.round.candidate import BaseVersion, candidate_problem, layer_sizes
from server.round.ports import Contribution
from tests.server.round.stepping import plain_step, settings_of
from updates.codec import encode_dense
from updates.compression_plan import CompressionPlan, Method
from updates.compressor import compress
from updates.coordinate_maps import linear_map
from updates.errors import ModelError
from updates.update_codec import codec_for
from updates.vectors import decode_model, encode_model

BASE_VALUES: Final = np.array([1.0, -2.0, 0.5, 4.0], np.float32)
BASE: Final = encode_model({"w": BASE_VALUES[:3].reshape(3, 1), "b": BASE_VALUES[3:]}, {"k": "v"})
MEAN: Final = settings_of()
MULTI_KRUM: Final = settings_of(AggregatorConfig(rule="multi-krum", num_malicious_nodes=1))


def contribution(
    device: str,
    payload: bytes,
    *,
    num_samples: int = 1,
    losses: tuple[float | None, float | None] = (None, None),
) -> Contribution:
    return Contribution(
        device_id=device,
        submission_id="s1",
        num_samples=num_samples,
        payload_bytes=len(payload),
        digest=xxhash.xxh3_128_digest(payload),
        accepted_at_ms=0,
        inline=True,
        loss_before=losses[0],
        loss_after=losses[1],
    )


def values_of(model: bytes) -> NDArray[np.float32]:
    tensors, _ = decode_model(model)
    return np.concatenate([tensor.ravel() for tensor in tensors.values()])


def model_of(values: NDArray[np.float32]) -> bytes:
    return encode_model({"w": values[:3].reshape(3, 1), "b": values[3:]})


def problem_of(candidate: bytes, *, max_update_norm: float | None) -> str | None:
    return candidate_problem(BaseVersion(model=candidate), BASE, max_update_norm=max_update_norm)


@given(
    updates=npst.arrays(
        np.float32, (3, 4), elements=st.floats(-1e3, 1e3, width=32, allow_subnormal=False)
    ),
    samples=st.lists(st.integers(1, 1_000), min_size=3, max_size=3),
    rate=st.sampled_from([0.5, 1.0, 2.0]),
)
def test_a_candidate_is_the_base_moved_by_the_weighted_mean(
    updates: NDArray[np.float32], samples: list[int], rate: float
) -> None:
    payloads = [encode_dense(row) for row in updates]
    contributions = [
        contribution(f"d{i}", payload, num_samples=samples[i]) for i, payload in enumerate(payloads)
    ]
    settings = settings_of(learning_rate=rate)
    built = plain_step(BASE, contributions, payloads, settings)
    mean = np.average(updates.astype(np.float64), axis=0, weights=samples)
    # One rounding to float32 of the result; the oracle's own sum errs far less.
    np.testing.assert_allclose(
        values_of(built.data), BASE_VALUES + rate * mean, rtol=2.0**-23, atol=1e-9
    )
    assert built.sha256 == hashlib.sha256(built.data).hexdigest()
    assert built.facts.excluded == ()
    assert decode_model(built.data)[1] == {"k": "v"}


def test_who_got_no_weight_is_told() -> None:
    rows = [np.full(4, value, np.float32) for value in (1.0, 1.1, 0.9, 1.05, -90.0)]
    payloads = [encode_dense(row) for row in rows]
    contributions = [contribution(f"d{i}", payload) for i, payload in enumerate(payloads)]
    built = plain_step(BASE, contributions, payloads, MULTI_KRUM)
    assert "d4" in built.facts.excluded
    assert built.facts.metrics["excluded"] == len(built.facts.excluded)
    assert built.facts.metrics["max_contribution_norm"] == pytest.approx(180.0)
    assert built.facts.metrics["contributions"] == 5


def test_losses_are_weighted_and_only_those_that_were_told() -> None:
    payload = encode_dense(np.zeros(4, np.float32))
    contributions = [
        contribution("d1", payload, num_samples=10, losses=(1.0, 0.5)),
        contribution("d2", payload, num_samples=30, losses=(3.0, None)),
        contribution("d3", payload, num_samples=99),
    ]
    metrics = plain_step(BASE, contributions, [payload] * 3, MEAN).facts.metrics
    assert metrics["loss_before"] == pytest.approx((10 * 1.0 + 30 * 3.0) / 40)
    assert metrics["loss_after"] == 0.5
    assert metrics["num_samples"] == 139


def test_a_payload_of_another_length_is_damage() -> None:
    payload = encode_dense(np.zeros(4, np.float32))
    with pytest.raises(AggregationError, match="d1 has 28 bytes, 32 were admitted"):
        plain_step(BASE, [contribution("d1", payload)], [payload[:-4]], MEAN)


def test_a_change_is_measured_from_the_base() -> None:
    moved = BASE_VALUES + np.array([3.0, 0.0, 4.0, 0.0], np.float32)
    assert problem_of(model_of(moved), max_update_norm=None) is None
    assert problem_of(model_of(moved), max_update_norm=5.0) is None
    problem = problem_of(model_of(moved), max_update_norm=4.99)
    assert problem == "update norm 5 exceeds max-update-norm=4.99"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_candidate_must_be_finite(value: float) -> None:
    broken = BASE_VALUES.copy()
    broken[2] = value
    problem = problem_of(model_of(broken), max_update_norm=None)
    assert problem == "the candidate holds NaN or infinity"


def test_an_overflow_is_found() -> None:
    payload = encode_dense(np.full(4, 3e38, np.float32))
    settings = settings_of(learning_rate=10.0)
    built = plain_step(BASE, [contribution("d1", payload)], [payload], settings)
    assert problem_of(built.data, max_update_norm=None) is not None


@pytest.mark.parametrize(
    ("candidate", "words"),
    [
        (b"garbage", "does not decode"),
        (encode_model({"w": BASE_VALUES}), "tensors are not those"),
        (encode_model({"b": BASE_VALUES[3:], "w": BASE_VALUES[:3].reshape(3, 1)}), "not those"),
    ],
)
def test_a_candidate_must_be_a_model_like_its_base(candidate: bytes, words: str) -> None:
    problem = problem_of(candidate, max_update_norm=None)
    assert problem is not None
    assert words in problem


def plan_of(method: Method, num_values: int = 3) -> CompressionPlan:
    seed = bytes(32) if method in {Method.RAND_K, Method.PROJECTION} else b""
    return CompressionPlan(method=method, dim=4, num_values=num_values, map_seed=seed)


@pytest.mark.parametrize("method", [Method.PROJECTION, Method.RAND_K])
def test_a_rule_picks_among_what_the_map_gave(method: Method) -> None:
    """Four devices agree and one does not; what is expanded is the mean of those that do."""
    plan = plan_of(method)
    codec = codec_for(plan, (3, 1))
    rows = [np.full(4, value, np.float32) for value in (1.0, 1.1, 0.9, 1.05, -90.0)]
    payloads = [codec.encode(compress(plan, row), seed=b"") for row in rows]
    contributions = [contribution(f"d{i}", payload) for i, payload in enumerate(payloads)]
    built = plain_step(BASE, contributions, payloads, MULTI_KRUM, plan)
    assert "d4" in built.facts.excluded
    kept = [row for i, row in enumerate(rows) if f"d{i}" not in built.facts.excluded]
    map_ = linear_map(plan)
    mean = np.stack([map_.compress(row) for row in kept]).astype(np.float64).mean(axis=0)
    expected: NDArray[np.float64] = BASE_VALUES + map_.expand(np.asarray(mean))
    np.testing.assert_allclose(values_of(built.data), expected, rtol=1e-5, atol=1e-6)
    order = [4, 2, 0, 1, 3]
    again = plain_step(
        BASE, [contributions[i] for i in order], [payloads[i] for i in order], MULTI_KRUM, plan
    )
    assert again.data == built.data


@pytest.mark.parametrize("rule", ["median", "trimmed-mean"])
def test_devices_that_send_nothing_do_not_stop_a_rule_that_ranks(rule: str) -> None:
    """The settings were checked when the task began; no device makes a round fail after that."""
    plan = plan_of(Method.TOP_K, 2)
    codec = codec_for(plan, (3, 1))
    rows = [np.array([2, 0, -1, 0], np.float32)] * 3 + [np.zeros(4, np.float32)] * 2
    payloads = [codec.encode(compress(plan, row), seed=b"") for row in rows]
    contributions = [contribution(f"d{i}", payload) for i, payload in enumerate(payloads)]
    settings = settings_of(AggregatorConfig(rule=rule, num_malicious_nodes=2))
    built = plain_step(BASE, contributions, payloads, settings, plan)
    np.testing.assert_array_equal(values_of(built.data), BASE_VALUES + rows[0])


def test_chosen_coordinates_are_averaged_with_the_zeros_of_others() -> None:
    plan = plan_of(Method.TOP_K, 1)
    codec = codec_for(plan, (3, 1))
    rows = np.array([[4, 0, 0, 1], [0, -2, 1, 0]], np.float32)
    payloads = [codec.encode(compress(plan, row), seed=b"") for row in rows]
    contributions = [contribution(f"d{i}", payload) for i, payload in enumerate(payloads)]
    built = plain_step(BASE, contributions, payloads, MEAN, plan)
    np.testing.assert_array_equal(
        values_of(built.data), BASE_VALUES + np.array([2, -1, 0, 0], np.float32)
    )


def test_losses_are_not_told_of_private_devices() -> None:
    payload = encode_dense(np.zeros(4, np.float32))
    contributions = [contribution("d1", payload, losses=(1.0, 0.5))]
    built = plain_step(BASE, contributions, [payload], MEAN, tells_losses=False)
    metrics = built.facts.metrics
    assert not {"loss_before", "loss_after"} & set(metrics)


def test_the_sizes_are_those_of_the_tensors_in_order() -> None:
    assert layer_sizes(BASE) == (3, 1)
    with pytest.raises(ModelError):
        layer_sizes(b"garbage")
