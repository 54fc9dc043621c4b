"""Noise of holders that are processes of their own: what is published has the right variance."""

import asyncio
import contextlib
import math
import sqlite3
from collections.abc import AsyncIterator
from typing import Final

import numpy as np
import pytest
import pytest_asyncio

from protos.fedagg.v1 import share_holder_pb2 as pb
from security.shared_round.terms.parameters import RoundParameters
from tests.integration.shared_committee import mean_of, update_of
from tests.integration.shared_processes import (
    DEVICES,
    DIM,
    SharedCluster,
    TaskSettings,
    shared_cluster,
)

pytestmark = [
    pytest.mark.process,
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.asyncio(loop_scope="module"),
]

TASK: Final = "noised"
ROUNDS: Final = 12  # of 40 numbers each
MULTIPLIER: Final = 3.0
PRIVACY: Final = f"""[task.privacy]
noise = "holders"
noise-multiplier = {MULTIPLIER}
epsilon = 1000.0
"""
TASKS: Final = {TASK: TaskSettings(more=PRIVACY)}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SharedCluster]:
    async with shared_cluster(tmp_path_factory.mktemp("noise"), TASKS) as running:
        yield running


async def noised_round(cluster: SharedCluster) -> tuple[RoundParameters, np.ndarray]:
    """Run a round; what its sum holds besides the updates, in units of 2^-f."""
    params = await cluster.open(TASK)
    await cluster.submit(params, DEVICES)
    record = await cluster.finished(params)
    assert record.decision == "published", record
    exact = len(DEVICES) * mean_of({device: update_of(device, DIM) for device in DEVICES})
    step = (await cluster.step(TASK, record)).astype(np.float64)
    # The sum is divided by the reporting goal, which is the number of devices.
    return params, (len(DEVICES) * step - exact) * 2.0**params.fraction_bits


def dealers_of(cluster: SharedCluster, params: RoundParameters) -> list[str]:
    """Whose noise a holder voted for last, from its own files."""
    question = "SELECT proposal FROM votes WHERE params_sha256 = ? ORDER BY attempt DESC"
    with contextlib.closing(sqlite3.connect(cluster.holders[2].database, timeout=5.0)) as sql:
        (proposal,) = sql.execute(question, (params.sha256,)).fetchone()
    return [dealer.device_id for dealer in pb.FreezeRequest.FromString(proposal).dealers]


def has_stddev(noise: np.ndarray, wanted: float) -> bool:
    """Whether the noise has this standard deviation, within five standard errors.

    Holders draw from the machine's secure source: an honest one fails once in a million.
    """
    found = float(np.sqrt(np.mean(noise**2)))
    return abs(found / wanted - 1) < 5 / math.sqrt(2 * len(noise))


async def test_what_is_published_has_the_dealers_noise(cluster: SharedCluster) -> None:
    await cluster.mend()
    parts = []
    for _ in range(ROUNDS):
        params, noise = await noised_round(cluster)
        parts.append(noise)
    together = np.concatenate(parts)
    # (3, 5): four deal, two may collude, so that two must have what was asked for.
    assert params.noise_dealers == 4
    asked = MULTIPLIER * params.norm_bound
    wanted = asked * math.sqrt(4 / 2)
    assert has_stddev(together, wanted)
    assert not has_stddev(0.6 * together, wanted)
    assert not has_stddev(together, asked / 2)


async def test_a_dealer_that_is_killed_is_replaced_before_and_not_missed_after(
    cluster: SharedCluster,
) -> None:
    await cluster.mend()
    cluster.holders[1].kill()
    params, noise = await noised_round(cluster)
    assert dealers_of(cluster, params) == [f"noise:{holder}" for holder in (2, 3, 4, 5)]
    assert np.abs(noise).max() > params.noise_stddev
    await cluster.mend()
    params = await cluster.open(TASK)
    await cluster.submit(params, DEVICES[:-1])
    await cluster.relayed(params, len(DEVICES) - 1 + len(cluster.holders))

    async def dies() -> None:
        await cluster.stated(1, "vote", params)
        cluster.holders[1].kill()

    watching = asyncio.create_task(dies())
    await cluster.submit(params, DEVICES[-1:])
    await watching
    assert (await cluster.finished(params)).decision == "published"
    assert dealers_of(cluster, params) == [f"noise:{holder}" for holder in (1, 2, 3, 4)]
