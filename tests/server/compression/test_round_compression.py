"""The plans of rounds: the same on every coordinator, and different from round to round."""

from typing import Any, Final

import numpy as np
import pytest

from server.compression.round_compression import (
    MAX_KNOWN_PLANS,
    RoundCompression,
    announced_coordinates,
)
from server.processes.thread_pool import Workers
from tests.server.compression.compressed_task import DIM, Models, model_of, task
from updates import plan_message
from updates.compressor import compress
from updates.index_coding import decode_coordinates

METHODS: Final = ["announced", "projection", "rand-k", "top-k"]


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


def rounds(method: str, models: Models, workers: Workers, **settings: object) -> RoundCompression:
    return RoundCompression(
        task(method, **settings), registry=models, files=models, workers=workers
    )


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
