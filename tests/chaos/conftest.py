"""A laboratory per module, on the real store."""

import asyncio
import itertools
import pathlib
from collections.abc import Callable, Iterator, Sequence

import pytest

from tests.chaos.coordinator import Laboratory
from tests.chaos.operations import COORDINATORS, Operation
from tests.chaos.private_simulation import PrivateSimulation
from tests.chaos.simulation import Simulation
from tests.chaos.stores import Sabotage

Simulate = Callable[[Sequence[Operation], Sabotage], int]


@pytest.fixture(scope="module")
def simulate(store_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulate]:
    """Runs one list of operations from a fresh start; gives the number of published rounds."""
    yield from _simulating(Simulation, store_url, tmp_path_factory.mktemp("chaos"))


@pytest.fixture(scope="module")
def simulate_private(
    store_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Simulate]:
    """As `simulate`, with a privacy budget."""
    yield from _simulating(PrivateSimulation, store_url, tmp_path_factory.mktemp("chaos"))


def _simulating(
    simulation: type[Simulation], store_url: str, root: pathlib.Path
) -> Iterator[Simulate]:
    folders = (root / str(number) for number in itertools.count())
    labs: dict[int, Laboratory] = {}

    async def run(operations: Sequence[Operation], sabotage: Sabotage) -> int:
        lab = labs.get(id(sabotage))
        if lab is None:
            lab = labs[id(sabotage)] = Laboratory(
                store_url, coordinators=COORDINATORS, sabotage=sabotage
            )
        folder = next(folders)
        folder.mkdir()
        return await simulation(lab, folder).run(operations)

    async def close() -> None:
        for lab in labs.values():
            await lab.close()

    # One loop for all: gRPC's threads and the connections to the store belong to it.
    with asyncio.Runner() as runner:
        yield lambda operations, sabotage: runner.run(run(operations, sabotage))
        runner.run(close())
