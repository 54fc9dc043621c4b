"""Whatever fails or lies: holders state nothing twice, and what is published is the exact mean."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, event, given, settings

from tests.chaos.shared_coordinator import SharedLaboratory
from tests.chaos.shared_operations import Operation, Setup, setups, shared_operation_lists
from tests.chaos.shared_reproductions import SHARED_REPRODUCTIONS
from tests.chaos.shared_simulation import SharedSimulation

SimulateShared = Callable[[Setup, Sequence[Operation]], int]


@pytest.fixture(scope="module")
def simulate(store_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulateShared]:
    """Runs one list of operations from a fresh start; gives the number of published rounds."""
    # One loop for all: gRPC's threads and the connections to the store belong to it.
    with asyncio.Runner() as runner:
        lab = runner.run(_started(store_url, tmp_path_factory.mktemp("shared")))
        yield lambda setup, operations: runner.run(SharedSimulation(lab, setup).run(operations))
        runner.run(lab.close())


async def _started(store_url: str, folder: Path) -> SharedLaboratory:
    """Made within the loop: gRPC's servers take the one that runs."""
    lab = SharedLaboratory(store_url, folder)
    await lab.start()
    return lab


@pytest.mark.slow
@pytest.mark.timeout(0)
@given(setup=setups, operations=shared_operation_lists)
@settings(
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    phases=set(Phase) - {Phase.explain},
)
def test_no_two_things_are_opened_and_what_is_published_is_exact(
    simulate: SimulateShared, setup: Setup, operations: list[Operation]
) -> None:
    event(f"{simulate(setup, operations)} rounds published")


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARED_REPRODUCTIONS)
def test_what_once_went_wrong_does_not_come_back(simulate: SimulateShared, name: str) -> None:
    setup, operations = SHARED_REPRODUCTIONS[name]
    simulate(setup, operations)
