"""The way from trained weights to a payload."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from client.errors import ModelIntegrityError, TrainingError
from client.round.local_update import encode_update, local_update
from client.round.model_cache import ModelCache, ReceivedModel
from client.trainer import Plan, TrainingResult
from client.transport.messages import Assignment
from tests.client.federation import TASK, make_tensors
from tests.looped import looped
from updates.codec import decode
from updates.vectors import encode_model


def received(dim: int = 7, data: bytes | None = None) -> ReceivedModel:
    data = encode_model(make_tensors()) if data is None else data
    assignment = Assignment(
        task=TASK,
        round=1,
        model_version=1,
        model_sha256=hashlib.sha256(data).hexdigest(),
        model_bytes=len(data),
        dim=dim,
        ttl_s=60.0,
        max_update_bytes=1 << 20,
        plan=Plan(),
    )
    return ReceivedModel(data, assignment)


def trained(shift: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    tensors = make_tensors()
    # In another order than the model's, which must not matter.
    return {
        "bias": tensors["bias"] + shift[6:],
        "weight": tensors["weight"] + shift[:6].reshape(2, 3),
    }


def result(shift: NDArray[np.float32], **changes: object) -> TrainingResult:
    fields: dict[str, object] = {"weights": trained(shift), "num_samples": 5, **changes}
    return TrainingResult(**fields)  # type: ignore[arg-type]  # a table of fields of many types


def test_the_update_is_trained_minus_received_in_model_order() -> None:
    # Powers of two: the differences are exact.
    shift = np.array([1, 2, 4, 8, 16, 32, 64], dtype=np.float32)
    update = local_update(received(), result(shift), clipping_norm=0.0)
    tensors, after = make_tensors(), trained(shift)
    expected = [*(after["weight"] - tensors["weight"]).ravel(), *(after["bias"] - tensors["bias"])]
    np.testing.assert_array_equal(update.vector, np.array(expected, dtype=np.float32))
    assert update.vector.dtype == np.float32
    assert update.norm == pytest.approx(np.linalg.norm(update.vector.astype(np.float64)))


@given(clip=st.floats(1e-3, 1e3), scale=st.floats(1e-2, 1e2), seed=st.integers(0, 1_000))
def test_the_update_is_never_longer_than_the_clipping_norm(
    clip: float, scale: float, seed: int
) -> None:
    shift = np.random.default_rng(seed).normal(size=7).astype(np.float32) * np.float32(scale)
    update = local_update(received(), result(shift), clipping_norm=clip)
    assert float(np.linalg.norm(update.vector.astype(np.float64))) <= clip
    unclipped = local_update(received(), result(shift), clipping_norm=0.0)
    assert update.norm == unclipped.norm


@looped(
    "changes",
    [
        {"num_samples": 0},
        {"num_samples": 2**31},
        {"weights": {"bias": np.zeros(1, np.float32)}},
        {"weights": {"bias": np.zeros(1, np.float32), "weight": np.zeros((3, 2), np.float32)}},
        {
            "weights": {
                "bias": np.full(1, np.nan, np.float32),
                "weight": np.zeros((2, 3), np.float32),
            }
        },
        {
            "weights": {
                "bias": np.full(1, np.inf, np.float32),
                "weight": np.zeros((2, 3), np.float32),
            }
        },
    ],
)
def test_a_result_that_cannot_be_sent_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(TrainingError):
        local_update(received(), result(np.zeros(7, np.float32), **changes), clipping_norm=0.0)


def test_a_loss_that_is_not_finite_is_not_told() -> None:
    update = local_update(
        received(),
        result(np.zeros(7, np.float32), loss_before=float("nan"), loss_after=0.25),
        clipping_norm=0.0,
    )
    assert update.loss_before is None
    assert update.loss_after == 0.25


def test_encoding_keeps_every_bit() -> None:
    vector = np.array([1.5, -0.0, 1e-40], dtype=np.float32)
    payload = encode_update(vector, dim=3)
    assert decode(payload, dim=3).tobytes() == vector.tobytes()


@pytest.mark.parametrize(
    "vector",
    [np.zeros(4, np.float32), np.zeros((3, 1), np.float32), np.full(3, np.nan, np.float32)],
)
def test_a_vector_that_is_no_update_is_refused(vector: NDArray[np.float32]) -> None:
    with pytest.raises(TrainingError):
        encode_update(vector, dim=3)


def test_a_received_model_is_read_only_and_in_order() -> None:
    model = received()
    assert list(model.tensors) == ["weight", "bias"]
    with pytest.raises(ValueError, match="read-only"):
        model.tensors["bias"][0] = 1.0


def test_a_file_that_is_no_model_of_that_size_is_refused() -> None:
    with pytest.raises(ModelIntegrityError, match="unreadable"):
        received(data=b"garbage")
    with pytest.raises(ModelIntegrityError, match="7 elements"):
        received(dim=8)


def test_the_cache_holds_the_last_model() -> None:
    cache, first = ModelCache(), received()
    assert cache.get(first.sha256) is None
    cache.put(first)
    assert cache.get(first.sha256) is first
    second = received(data=encode_model({"other": np.zeros(7, np.float32)}))
    cache.put(second)
    assert cache.get(first.sha256) is None
