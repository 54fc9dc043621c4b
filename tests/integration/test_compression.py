"""Compressed rounds with real devices: they learn, on few bytes, and nothing else is taken."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from client import ClientConfig, MobileClient, Plan, RetryPolicy, TrainingResult, Weights
from protos.fedagg.v1 import federation_pb2 as pb
from protos.fedagg.v1.errors_pb2 import ErrorReason
from tests.integration.service import CLOCK, TASK, Service, header, refusal_of, serving
from updates import plan_message
from updates.codec import dense_payload_bytes, encode_dense
from updates.compression_plan import CompressionPlan, Method
from updates.compressor import compress
from updates.coordinate_maps import linear_map
from updates.update_codec import codec_for
from updates.vectors import decode_model, encode_model

FEATURES: Final = 64
CLASSES: Final = 10
DIM: Final = FEATURES * CLASSES + CLASSES
SIZES: Final = (FEATURES * CLASSES, CLASSES)
DEVICES: Final = 4
ROUNDS: Final = 10
METHODS: Final = ["announced", "projection", "rand-k", "top-k"]

Samples = tuple[NDArray[np.float32], NDArray[np.int64]]


@cache
def digits() -> Samples:
    images, labels = load_digits(return_X_y=True)
    return images.astype(np.float32) / 16, labels.astype(np.int64)


def shard(device: int) -> Samples:
    images, labels = digits()
    return images[device::DEVICES], labels[device::DEVICES]


def probabilities(weights: Weights, images: NDArray[np.float32]) -> NDArray[np.float32]:
    logits = images @ weights["weight"] + weights["bias"]
    logits -= logits.max(axis=1, keepdims=True)
    exps = np.exp(logits)
    shares: NDArray[np.float32] = exps / exps.sum(axis=1, keepdims=True)
    return shares


def accuracy(model: bytes) -> float:
    weights, _ = decode_model(model)
    images, labels = digits()
    return float((probabilities(weights, images).argmax(axis=1) == labels).mean())


@dataclass(frozen=True)
class Softmax:
    """Some steps of gradient descent on a device's own digits."""

    device: int
    steps: int = 20

    def train(
        self, weights: Weights, plan: Plan, should_stop: Callable[[], bool]
    ) -> TrainingResult:
        del should_stop
        images, labels = shard(self.device)
        trained = {name: tensor.copy() for name, tensor in weights.items()}
        for _ in range(self.steps):
            error = probabilities(trained, images)
            error[np.arange(len(labels)), labels] -= 1
            error /= len(labels)
            trained["weight"] -= np.float32(plan.learning_rate) * (images.T @ error)
            trained["bias"] -= np.float32(plan.learning_rate) * error.sum(axis=0)
        return TrainingResult(weights=trained, num_samples=len(labels))


def write_model(folder: Path) -> bytes:
    data = encode_model(
        {
            "weight": np.zeros((FEATURES, CLASSES), np.float32),
            "bias": np.zeros(CLASSES, np.float32),
        }
    )
    (folder / "digits.safetensors").write_bytes(data)
    return data


def task_of(folder: Path, **settings: object) -> dict[str, object]:
    return {
        "initial-model": str(folder / "digits.safetensors"),
        "reporting-goal": DEVICES,
        "num-rounds": ROUNDS,
        "plan": {"learning-rate": 1.0},
    } | settings


async def run_devices(service: Service) -> list[int]:
    async def run(device: int) -> int:
        config = ClientConfig(
            servers=(service.address,),
            task=TASK,
            device_id=f"d{device}",
            insecure=True,
            retry=RetryPolicy(initial_s=0.01, max_s=0.05),
        )
        async with MobileClient(config, Softmax(device)) as client:
            return await client.run()

    return await asyncio.gather(*(run(device) for device in range(DEVICES)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "value_type"),
    [("dense", "int8"), *((method, "float16") for method in METHODS), ("top-k", "int8")],
)
async def test_devices_learn_on_few_bytes(
    method: str, value_type: str, tmp_path: Path, redis_url: str
) -> None:
    write_model(tmp_path)
    compression = {"method": method, "ratio": 0.1, "value-type": value_type}
    task = task_of(tmp_path, compression=compression)
    async with serving(tmp_path, redis_url, task=task) as service:
        assert await run_devices(service) == [ROUNDS] * DEVICES
        # A model of zeros calls every digit a zero: one in ten.
        assert accuracy(await service.fetch()) > 0.5
        sent = await service.metric("federated_update_payload_bytes_total", task=TASK)
        dense = await service.metric("federated_update_dense_bytes_total", task=TASK)
        assert dense == ROUNDS * DEVICES * dense_payload_bytes(DIM)
        assert 0 < sent < dense / (3 if method == "dense" else 8)


def plan_in(assignment: pb.Assignment) -> CompressionPlan:
    return plan_message.from_message(assignment.plan.compression, dim=assignment.dim)


@pytest.mark.parametrize("method", METHODS)
async def test_a_round_publishes_the_mean_of_what_was_sent(
    method: str, tmp_path: Path, redis_url: str
) -> None:
    """Two replicas hand out one plan; their updates by hand become what numpy says."""
    write_model(tmp_path)
    compression = {"method": method, "ratio": 0.1, "value-type": "float32"}
    task = task_of(tmp_path, compression=compression, **{"reporting-goal": 2})
    async with (
        serving(tmp_path, redis_url, task=task) as service,
        serving(tmp_path, redis_url, task=task) as other,
    ):
        first, second = await asyncio.gather(service.check_in("d1"), other.check_in("d2"))
        assert first.assignment.plan == second.assignment.plan
        plan = plan_in(first.assignment)
        codec = codec_for(plan, SIZES)
        rng = np.random.default_rng(3)
        vectors = [rng.normal(size=DIM).astype(np.float32) for _ in range(2)]
        for device, vector in zip(("d1", "d2"), vectors, strict=True):
            payload = codec.encode(compress(plan, vector), seed=b"")
            assert len(payload) <= first.assignment.max_update_bytes < dense_payload_bytes(DIM)
            head = header(device, payload)
            await (service.inline if device == "d1" else service.stream)(head, payload)
        assert (await service.finished(1))["decision"] == "published"
        weights, _ = decode_model(await service.fetch(2))
    published = np.concatenate([weights["weight"].ravel(), weights["bias"]])
    np.testing.assert_allclose(published, expected_mean(plan, vectors), rtol=1e-5, atol=1e-6)


def expected_mean(plan: CompressionPlan, vectors: list[NDArray[np.float32]]) -> NDArray[np.float64]:
    if plan.method is not Method.TOP_K:
        map_ = linear_map(plan)
        total = np.zeros(plan.num_values)
        for vector in vectors:
            total += map_.compress(vector)
        return map_.expand(total / len(vectors))
    kept = np.zeros((len(vectors), DIM))
    for row, vector in zip(kept, vectors, strict=True):
        largest = np.argsort(-np.abs(vector), kind="stable")[: plan.num_values]
        row[largest] = vector[largest]
    mean: NDArray[np.float64] = kept.mean(axis=0)
    return mean


@pytest.mark.parametrize("path", ["batch", "inline", "stream"])
async def test_only_the_rounds_own_encoding_is_taken(
    path: str, tmp_path: Path, redis_url: str
) -> None:
    write_model(tmp_path)
    task = task_of(tmp_path, compression={"method": "top-k", "ratio": 0.1}, **{"reporting-goal": 2})
    async with serving(tmp_path, redis_url, task=task, clock=CLOCK) as service:
        assignment, _ = await service.open_round("d1", "d2")
        plan = plan_in(assignment)
        vector = np.linspace(-1, 1, DIM, dtype=np.float32)
        good = codec_for(plan, SIZES).encode(compress(plan, vector), seed=b"")
        wrong = {
            "UPDATE_TOO_LARGE": encode_dense(vector),
            "MALFORMED_UPDATE": good[:-1],
            "WRONG_SHAPE": good[:8] + (DIM + 1).to_bytes(8, "little") + good[16:],
        }
        for reason, payload in wrong.items():
            assert await refused(service, path, payload) == reason
        assert (await service.get(f"/api/v1/tasks/{TASK}"))["accepted"] == 0
        await service.inline(header("d1", good), good)
        assert (await service.get(f"/api/v1/tasks/{TASK}"))["accepted"] == 1


async def refused(service: Service, path: str, payload: bytes, device: str = "d1") -> str:
    head = header(device, payload)
    if path == "batch":
        (outcome,) = await service.batch((head, payload))
        return ErrorReason.Name(outcome.error.reason)
    call = service.inline if path == "inline" else service.stream
    return (await refusal_of(call(head, payload))).reason


@pytest.mark.parametrize("path", ["batch", "inline", "stream"])
async def test_a_large_update_is_decoded_only_for_who_may_send_one(
    path: str, tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frame of a few bytes may hold as much as the largest update."""
    monkeypatch.setattr("server.task.payload_format.QUICK_VALUES", 0)
    write_model(tmp_path)
    task = task_of(tmp_path, compression={"method": "top-k", "ratio": 0.1}, **{"reporting-goal": 2})
    async with serving(tmp_path, redis_url, task=task, clock=CLOCK) as service:
        assignment, _ = await service.open_round("d1", "d2")
        plan = plan_in(assignment)
        vector = np.linspace(-1, 1, DIM, dtype=np.float32)
        good = codec_for(plan, SIZES).encode(compress(plan, vector), seed=b"")
        assert await refused(service, path, good[:-1]) == "MALFORMED_UPDATE"
        assert await refused(service, path, good[:-1], "stranger") == "DEVICE_NOT_SELECTED"
        receipt = await service.inline(header("d1", good), good)
        assert receipt == await service.inline(header("d1", good), good)


@pytest.mark.parametrize("after", ["projection", "announced"])
async def test_a_round_is_given_up_when_its_compression_was_changed_meanwhile(
    after: str, tmp_path: Path, redis_url: str
) -> None:
    """Numbers of one map read as those of another are noise, and nothing about them looks wrong."""
    write_model(tmp_path)
    before, changed = (
        task_of(tmp_path, compression={"method": method, "ratio": 0.1}, **{"reporting-goal": 2})
        for method in ("rand-k", after)
    )
    async with serving(tmp_path, redis_url, task=before, clock=CLOCK) as service:
        plan = plan_in((await service.open_round("d1", "d2"))[0])
        payload = codec_for(plan, SIZES).encode(
            compress(plan, np.linspace(-1, 1, DIM, dtype=np.float32)), seed=b""
        )
        await service.inline(header("d1", payload), payload)
    async with serving(tmp_path, redis_url, task=changed, clock=CLOCK) as service:
        await service.inline(header("d2", payload), payload)
        record = await service.finished(1)
        assert record["decision"] == "abandoned"
        assert "compression=rand-k" in record["reason"]
