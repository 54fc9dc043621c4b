"""Shared rounds over a common map: nobody sees an update, nor what the map made of it."""

from pathlib import Path
from typing import Final

import numpy as np
import pytest
from numpy.typing import NDArray

from privacy.clipping import clip_by_norm
from protos.fedagg.v1 import federation_pb2 as pb
from security.shared_round.terms.parameters import RoundParameters
from tests.integration.service import TASK, Service, serving
from tests.integration.shared_committee import Holders, running
from tests.integration.test_shared_round import DEVICES, step_of, submit, task_settings
from updates import plan_message
from updates.compression_plan import CompressionPlan
from updates.coordinate_maps import linear_map

DIM: Final = 200
SETTINGS: Final = {"method": "projection", "ratio": 0.1}


def vectors_of(round_number: int) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(round_number)
    return {device: rng.normal(size=DIM).astype(np.float32) for device in DEVICES}


async def take_round(
    service: Service, holders: Holders, number: int
) -> tuple[CompressionPlan, RoundParameters, NDArray[np.float64]]:
    """Submit what the round's map makes of the devices' updates; the sum of that."""
    assignments = await service.open_round(*DEVICES, check_in_id=f"c{number}")
    (told,) = {assignment.shared_parameters for assignment in assignments}
    params = RoundParameters.from_bytes(told)
    plan = plan_of(assignments[0])
    map_ = linear_map(plan)
    mapped = {
        device: clip_by_norm(map_.compress(vector), 1.0)
        for device, vector in vectors_of(number).items()
    }
    await submit(service, holders, params, mapped)
    assert (await service.finished(number))["decision"] == "published"
    total = np.zeros(plan.num_values)
    for vector in mapped.values():
        total += vector
    return plan, params, total


def plan_of(assignment: pb.Assignment) -> CompressionPlan:
    return plan_message.from_message(assignment.plan.compression, dim=assignment.dim)


@pytest.mark.slow
async def test_the_mean_of_what_was_shared_is_expanded(tmp_path: Path, redis_url: str) -> None:
    async with running(tmp_path / "c", threshold=2, holders=3) as holders:
        task = task_settings(holders, compression=SETTINGS)
        async with serving(tmp_path, redis_url, task=task, dim=DIM) as service:
            plan, params, total = await take_round(service, holders, 1)
            assert params.dim == plan.num_values == 20
            assert len(params.compression_sha256) == 32
            expected = linear_map(plan).expand(total / len(DEVICES))
            # Rounded to 2^-20 by each device, to float32 once.
            np.testing.assert_allclose(await step_of(service, 2), expected, atol=1e-5)


@pytest.mark.slow
async def test_the_holders_noise_is_in_the_mean_and_is_charged(
    tmp_path: Path, redis_url: str
) -> None:
    z, rounds = 2.0, 3
    privacy = {"noise": "holders", "noise-multiplier": z, "epsilon": 50.0}
    async with running(tmp_path / "c", threshold=2, holders=3) as holders:
        task = task_settings(
            holders, compression=SETTINGS, privacy=privacy, **{"num-rounds": rounds}
        )
        async with serving(tmp_path, redis_url, task=task, dim=DIM) as service:
            noises = []
            for number in range(1, rounds + 1):
                plan, params, total = await take_round(service, holders, number)
                step = await step_of(service, number + 1)
                noises.append(linear_map(plan).compress(step) * len(DEVICES) - total)
            assert params.noise_dealers == params.quorum
            told = await service.get(f"/api/v1/tasks/{TASK}/privacy")
            assert told["rounds_committed"] == rounds
            assert told["epsilon_spent"] > 0
    # Both dealers', of whom each alone would do: sqrt(2) z C, in 60 numbers.
    stddev = np.ldexp(params.noise_stddev * np.sqrt(params.noise_dealers), -params.fraction_bits)
    measured = float(np.std(noises))
    assert stddev >= z
    assert 0.7 * stddev < measured < 1.3 * stddev
