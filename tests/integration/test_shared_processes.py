"""Share holders and coordinators that are killed as processes, in every phase of a shared round."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Final

import numpy as np
import pytest
import pytest_asyncio

from server.round.ports import FinishedRound
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

TASKS: Final = {
    "sum": TaskSettings(),
    "unchecked": TaskSettings(checks="norm", degraded="unchecked"),
    "sum-of-three": TaskSettings(quorum=3),
    "unchecked-of-three": TaskSettings(quorum=3, checks="norm", degraded="unchecked"),
    "grouped-of-three": TaskSettings(quorum=3, checks="norm", degraded="grouped"),
    "waiting-of-three": TaskSettings(quorum=3, checks="norm"),
    "aborted-of-three": TaskSettings(quorum=3, checks="norm", degraded="abort"),
}
NOTHING: Final = "nothing"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SharedCluster]:
    async with shared_cluster(tmp_path_factory.mktemp("shared"), TASKS) as running:
        yield running


async def round_with_deaths(
    cluster: SharedCluster, task: str, *, kind: str, victims: Iterable[int]
) -> FinishedRound:
    """Run a round in which holders are killed once they have stated something, or before."""
    await cluster.mend()
    params = await cluster.open(task)
    if kind == NOTHING:
        await asyncio.gather(*(kill(cluster, victim) for victim in victims))
        await cluster.submit(params, DEVICES)
        return await cluster.finished(params)
    await cluster.submit(params, DEVICES[:-1])
    await cluster.relayed(params, len(DEVICES) - 1)

    async def watch(victim: int) -> None:
        await cluster.stated(victim, kind, params)
        await kill(cluster, victim)

    watching = asyncio.gather(*(watch(victim) for victim in victims))
    await cluster.submit(params, DEVICES[-1:])
    await watching
    return await cluster.finished(params)


async def kill(cluster: SharedCluster, victim: int) -> None:
    cluster.holders[victim].kill()


async def check_published(cluster: SharedCluster, task: str, record: FinishedRound) -> None:
    assert record.decision == "published", record
    expected = mean_of({device: update_of(device, DIM) for device in DEVICES})
    # The step is the difference of two float32 models.
    np.testing.assert_allclose(await cluster.step(task, record), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        ("sum", NOTHING),
        pytest.param("sum", "receipt", marks=pytest.mark.long),
        pytest.param("sum", "vote", marks=pytest.mark.long),
        ("sum", "coin"),
        ("unchecked", "openings"),
        pytest.param("sum", "commitment", marks=pytest.mark.long),
        ("sum", "sum"),
    ],
)
async def test_a_holder_dies_and_four_of_five_finish(
    cluster: SharedCluster, task: str, kind: str
) -> None:
    record = await round_with_deaths(cluster, task, kind=kind, victims=[4])
    await check_published(cluster, task, record)


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        pytest.param("sum-of-three", NOTHING, marks=pytest.mark.long),
        ("sum-of-three", "receipt"),
        pytest.param("sum-of-three", "vote", marks=pytest.mark.long),
        pytest.param("sum-of-three", "coin", marks=pytest.mark.long),
        ("sum-of-three", "commitment"),
        ("unchecked-of-three", NOTHING),
        pytest.param("unchecked-of-three", "openings", marks=pytest.mark.long),
        ("grouped-of-three", "vote"),
    ],
)
async def test_two_holders_die_and_three_of_five_finish(
    cluster: SharedCluster, task: str, kind: str
) -> None:
    record = await round_with_deaths(cluster, task, kind=kind, victims=[2, 5])
    await check_published(cluster, task, record)


async def test_a_round_that_waits_is_finished_when_the_holders_are_back(
    cluster: SharedCluster,
) -> None:
    task = "waiting-of-three"
    await cluster.mend()
    params = await cluster.open(task)
    await cluster.submit(params, DEVICES[:-1])
    await cluster.relayed(params, len(DEVICES) - 1)
    for victim in (1, 3):
        cluster.holders[victim].kill()
    await cluster.submit(params, DEVICES[-1:])
    # No box is made of three votes: its members alone open the checks.
    await cluster.stated(5, "vote", params)
    await cluster.mend()
    await check_published(cluster, task, await cluster.finished(params))


async def test_a_round_that_must_not_degrade_is_given_up(cluster: SharedCluster) -> None:
    record = await round_with_deaths(cluster, "aborted-of-three", kind=NOTHING, victims=[1, 3])
    assert record.decision == "abandoned"
    assert record.reason.startswith("checks_failed: 3 of at least 5 share holders"), record


@pytest.mark.parametrize(
    "kind",
    [
        "receipt",
        pytest.param("vote", marks=pytest.mark.long),
        "coin",
        pytest.param("commitment", marks=pytest.mark.long),
        "sum",
    ],
)
async def test_the_leader_dies_and_the_other_one_finishes(
    cluster: SharedCluster, kind: str
) -> None:
    await cluster.mend()
    params = await cluster.open("sum")
    await cluster.submit(params, DEVICES[:-1])
    await cluster.relayed(params, len(DEVICES) - 1)
    leader = await cluster.leader("sum")

    async def watch() -> None:
        await cluster.stated(1, kind, params)
        leader.kill()

    watching = asyncio.create_task(watch())
    await cluster.submit(params, DEVICES[-1:], avoid=leader)
    await watching
    await check_published(cluster, "sum", await cluster.finished(params))
