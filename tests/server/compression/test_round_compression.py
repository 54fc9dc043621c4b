"""The plans of rounds: the same on every coordinator, and different from round to round."""

import hashlib
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pytest
from numpy.typing import NDArray

from server.compression.round_compression import (
    MAX_KNOWN_PLANS,
    RoundCompression,
    announced_coordinates,
)
from server.compression.task_compression import (
    MAX_COORDINATES_BYTES,
    TaskCompression,
    compression_name,
)
from server.config import TaskConfig
from server.processes.thread_pool import Workers
from server.production_server import MAX_MESSAGE_BYTES
from server.round.blob_names import model_blob
from server.round.ports import ModelVersion
from server.task.resolving import task_compression
from updates import plan_message
from updates.compression_plan import Method, ValueType
from updates.compressor import compress
from updates.errors import CompressionError
from updates.index_coding import decode_coordinates
from updates.stage import zstd_version
from updates.vectors import encode_model

SIZES: Final = (90, 10)
DIM: Final = 100
METHODS: Final = ["announced", "projection", "rand-k", "top-k"]


def model_of(values: NDArray[np.float32]) -> bytes:
    return encode_model({"weight": values[:90].reshape(9, 10), "bias": values[90:]})


@dataclass
class Models:
    """Two versions of a model, each changed in other places than the one before."""

    files: dict[str, bytes] = field(default_factory=dict)
    versions: list[ModelVersion] = field(default_factory=list)
    reads: int = 0

    def publish(self, values: NDArray[np.float32]) -> None:
        data = model_of(values)
        sha256 = hashlib.sha256(data).hexdigest()
        number = len(self.versions) + 1
        self.files[model_blob("t", number - 1 or None, sha256)] = data
        self.versions.append(
            ModelVersion(
                version=number,
                parent=number - 1 or None,
                round_number=number - 1 or None,
                sha256=sha256,
                size_bytes=len(data),
                dim=DIM,
                created_at_ms=0,
                metrics={},
            )
        )

    async def model(self, task: str, version: int) -> ModelVersion:
        assert task == "t"
        self.reads += 1
        return self.versions[version - 1]

    async def get(self, key: str) -> bytes:
        return self.files[key]


@pytest.fixture
def models() -> Models:
    found = Models()
    found.publish(np.zeros(DIM, np.float32))
    changed = np.zeros(DIM, np.float32)
    changed[[3, 50, 99]] = [1.0, -2.0, 0.5]
    found.publish(changed)
    return found


@pytest.fixture(scope="module")
def workers() -> Any:
    pool = Workers("test", threads=1)
    yield pool
    pool.close()


def task(method: str, **settings: object) -> TaskCompression:
    given = {name.replace("-", "_"): value for name, value in settings.items()}
    value_type = ValueType(given.pop("value_type", "float32"))
    defaults: dict[str, Any] = {
        "ratio": 0.1,
        "error_feedback": True,
        "residual_decay": 1.0,
        "max_residual_age": 20,
        "random_share": 0.5,
    }
    return TaskCompression(
        task="t",
        layer_sizes=SIZES,
        method=Method(method),
        value_type=value_type,
        **(defaults | given),
    )


def rounds(method: str, models: Models, workers: Workers, **settings: object) -> RoundCompression:
    return RoundCompression(task(method, **settings), models=models, files=models, workers=workers)


@pytest.mark.parametrize("method", METHODS)
async def test_every_coordinator_finds_the_same_plan(
    method: str, models: Models, workers: Workers
) -> None:
    here, there = rounds(method, models, workers), rounds(method, models, workers)
    plan = await here.plan(round_number=7, base_version=2)
    assert plan == await there.plan(round_number=7, base_version=2)
    assert (plan.dim, plan.num_values, plan.method.value) == (DIM, 10, method)
    # As a device reads it.
    assert plan_message.from_message(plan_message.to_message(plan), dim=DIM) == plan


@pytest.mark.parametrize("method", ["announced", "projection", "rand-k"])
async def test_each_round_has_a_map_of_its_own(
    method: str, models: Models, workers: Workers
) -> None:
    compression = rounds(method, models, workers)
    plans = [
        await compression.plan(round_number=number, base_version=version)
        for number, version in ((1, 1), (2, 1), (2, 2))
    ]
    vector = np.arange(1, DIM + 1, dtype=np.float32)
    mapped = {np.asarray(compress(plan, vector)).tobytes() for plan in plans}
    assert len(mapped) == len(plans)


async def test_the_coordinates_that_changed_most_are_announced(
    models: Models, workers: Workers
) -> None:
    compression = rounds("announced", models, workers, **{"ratio": 0.06, "random-share": 0.5})
    plan = await compression.plan(round_number=3, base_version=2)
    indices = decode_coordinates(plan.coordinates, DIM)
    assert len(indices) == 6
    assert {3, 50, 99} <= set(indices.tolist())


async def test_the_first_round_announces_random_coordinates(
    models: Models, workers: Workers
) -> None:
    compression = rounds("announced", models, workers)
    drawn = {
        tuple(
            decode_coordinates(
                (await compression.plan(round_number=number, base_version=1)).coordinates, DIM
            ).tolist()
        )
        for number in (1, 2, 3)
    }
    assert len(drawn) == 3


def test_a_base_that_is_not_finite_still_gives_coordinates() -> None:
    base = np.zeros(DIM, np.float32)
    base[[5, 6, 7]] = [np.nan, np.inf, -np.inf]
    data = announced_coordinates(
        task("announced"), seed=bytes(32), base=model_of(base), parent=model_of(base[::-1].copy())
    )
    assert len(decode_coordinates(data, DIM)) == 10


async def test_a_plan_is_made_once(models: Models, workers: Workers) -> None:
    compression = rounds("projection", models, workers)
    for _ in range(3):
        await compression.plan(round_number=1, base_version=1)
    assert models.reads == 1
    for number in range(2, 3 * MAX_KNOWN_PLANS):
        await compression.plan(round_number=number, base_version=1)
    assert len(compression._plans) == MAX_KNOWN_PLANS


@pytest.mark.parametrize("method", METHODS)
async def test_one_codec_reads_the_updates_of_every_round(
    method: str, models: Models, workers: Workers
) -> None:
    compression = rounds(method, models, workers, **{"value-type": "float16"})
    codec = compression.task.codec()
    vector = np.linspace(-1, 1, DIM, dtype=np.float32)
    for number in (1, 2):
        plan = await compression.plan(round_number=number, base_version=1)
        payload = codec.encode(compress(plan, vector), seed=b"s")
        assert len(payload) <= codec.max_payload_bytes < 4 * DIM
        codec.decode(payload)


@pytest.mark.parametrize(("ratio", "expected"), [(0.001, 1), (0.125, 12), (1.0, DIM)])
def test_at_least_one_number_is_sent(ratio: float, expected: int) -> None:
    assert task("projection", ratio=ratio).num_values == expected


def test_dense_updates_have_every_number() -> None:
    dense = task("dense", **{"value-type": "int8"})
    plan = dense.plan(round_number=1, base_sha256="0" * 64)
    assert plan.method is Method.DENSE
    assert plan.num_values == DIM
    assert not plan.error_feedback


def configured(**settings: object) -> TaskConfig:
    tree = {"name": "t", "initial-model": "m", "compression": settings}
    return TaskConfig.model_validate(tree)


def test_dense_float32_is_no_compression() -> None:
    assert task_compression(configured(), SIZES) is None
    assert task_compression(configured(method="dense", zstd=False), SIZES) is None
    quantized = task_compression(configured(**{"value-type": "int8"}), SIZES)
    assert quantized is not None
    assert quantized.zstd_version > 0


def test_frames_are_taken_only_where_the_settings_say_so() -> None:
    taken = task_compression(configured(method="top-k"), SIZES)
    refused = task_compression(configured(method="top-k", zstd=False), SIZES)
    assert taken is not None
    assert taken.zstd_version == zstd_version()
    assert refused is not None
    assert refused.zstd_version == 0


def test_coordinates_that_do_not_fit_into_an_assignment_are_refused() -> None:
    sizes = (60_000_000, 10)
    with pytest.raises(CompressionError, match="announced coordinates"):
        task_compression(configured(method="announced", ratio=0.1), sizes)
    assert task_compression(configured(method="announced", ratio=0.02), sizes) is not None
    assert task_compression(configured(method="projection", ratio=0.1), sizes) is not None
    # The rest of an assignment, with the parameters of a shared round, needs room as well.
    assert MAX_COORDINATES_BYTES + (32 << 10) < MAX_MESSAGE_BYTES


def test_settings_that_change_what_an_update_means_change_their_name() -> None:
    assert compression_name(None) == ""
    told = [
        task("top-k"),
        task("rand-k"),
        task("rand-k", ratio=0.2),
        task("rand-k", **{"value-type": "int8"}),
        task("announced"),
        task("announced", **{"random-share": 0.1}),
    ]
    assert len({compression_name(one) for one in told}) == len(told)
    same = task("rand-k", **{"residual-decay": 0.5, "random-share": 0.1})
    assert compression_name(same) == compression_name(task("rand-k"))
