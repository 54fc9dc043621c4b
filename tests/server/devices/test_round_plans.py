"""What each round's plan tells a device beyond the task's."""

from typing import Any

import numpy as np
import pytest

from privacy.charge import Charge
from server.compression.round_compression import RoundCompression
from server.config import TaskConfig
from server.devices.round_plans import MAX_KNOWN_PLANS, RoundPlans
from server.processes.thread_pool import Workers
from server.round.ports import CheckInAnswer, CheckInVerdict
from server.round.round_privacy import RoundPrivacy
from server.task.resolving import task_compression, task_info
from server.task.task_info import TaskInfo
from tests.server.compression.compressed_task import DIM, SIZES, Models
from updates import plan_message
from updates.compression_plan import Method


@pytest.fixture(scope="module")
def workers() -> Any:
    pool = Workers("test", threads=1)
    yield pool
    pool.close()


def info_of(**settings: object) -> TaskInfo:
    tree = {"name": "t", "initial-model": "m", "plan": {"clipping-norm": 2.0}} | settings
    config = TaskConfig.model_validate(tree)
    return task_info(config, dim=DIM, compression=task_compression(config, SIZES))


def plans_of(info: TaskInfo, workers: Workers) -> RoundPlans:
    models = Models()
    models.publish(np.zeros(DIM, np.float32))
    if info.compression is None:
        return RoundPlans({})
    made = RoundCompression(info.compression, registry=models, files=models, workers=workers)
    return RoundPlans({"t": made})


def answer(
    number: int = 1,
    *,
    clipping_norm: float | None = None,
    noise: str = "central",
    noise_multiplier: float = 1.0,
) -> CheckInAnswer:
    privacy = None
    if clipping_norm is not None:
        privacy = RoundPrivacy(
            charge=Charge(noise_multiplier=noise_multiplier).to_text(),
            noise=noise,
            clipping_norm=clipping_norm,
            sensitivity=1.0,
            expected_updates=2.0,
        )
    return CheckInAnswer(
        verdict=CheckInVerdict.ASSIGNED,
        round_number=number,
        ttl_ms=1,
        base_version=1,
        traceparent="",
        privacy=privacy,
    )


async def test_a_dense_task_has_one_plan_as_ever(workers: Workers) -> None:
    info = info_of()
    plans = plans_of(info, workers)
    plan = await plans.plan(info, answer())
    assert plan is await plans.plan(info, answer(2))
    assert not plan.HasField("compression")
    assert not plan.HasField("privacy")


async def test_each_round_has_its_compression(workers: Workers) -> None:
    info = info_of(compression={"method": "rand-k"})
    plans = plans_of(info, workers)
    first = await plans.plan(info, answer(1))
    second = await plans.plan(info, answer(2))
    told = plan_message.from_message(first.compression, dim=DIM)
    assert told.method is Method.RAND_K
    assert told.num_values == 10
    assert first.compression.map_seed != second.compression.map_seed
    assert first.clipping_norm == 2.0
    assert await plans.plan(info, answer(1)) is first


@pytest.mark.parametrize("method", ["dense", "projection"])
async def test_the_clipping_norm_is_the_rounds_own(method: str, workers: Workers) -> None:
    info = info_of(compression={"method": method})
    plans = plans_of(info, workers)
    moved = await plans.plan(info, answer(3, clipping_norm=0.75))
    assert moved.clipping_norm == 0.75
    assert info.plan.clipping_norm == 2.0


@pytest.mark.parametrize("settings", [{}, {"noise": "device", "noise-multiplier": 0.5}])
async def test_the_noise_of_devices_is_the_rounds_own(
    settings: dict[str, object], workers: Workers
) -> None:
    """What was charged is what devices add, whatever the settings say by now."""
    info = info_of(privacy=settings)
    plans = plans_of(info, workers)
    charged = await plans.plan(
        info, answer(clipping_norm=2.0, noise="device", noise_multiplier=3.0)
    )
    assert charged.privacy.device_noise_multiplier == 3.0
    central = await plans.plan(info, answer(clipping_norm=2.0, noise_multiplier=3.0))
    assert central.privacy.device_noise_multiplier == 0.0


async def test_few_plans_are_kept(workers: Workers) -> None:
    info = info_of(compression={"method": "rand-k"})
    plans = plans_of(info, workers)
    for number in range(1, 2 * MAX_KNOWN_PLANS):
        await plans.plan(info, answer(number))
    assert len(plans._plans) == MAX_KNOWN_PLANS
