"""Whatever is lost, repeated, delayed or killed: acknowledged updates count exactly once."""

from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, Phase, event, given, settings

from tests.chaos.conftest import Simulate
from tests.chaos.operations import Operation, operation_lists
from tests.chaos.reproductions import REPRODUCTIONS
from tests.chaos.stores import Sabotage
from tests.chaos.stories import thinned

SOUND = Sabotage()


@pytest.mark.slow
@pytest.mark.timeout(0)
@given(operations=operation_lists)
@settings(
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    phases=set(Phase) - {Phase.explain},
)
def test_an_acknowledged_update_counts_exactly_once(
    simulate: Simulate, operations: list[Operation]
) -> None:
    event(f"{simulate(operations, SOUND)} rounds published")


@pytest.mark.slow
@pytest.mark.parametrize("name", thinned(REPRODUCTIONS, every=3))
def test_what_once_went_wrong_does_not_come_back(simulate: Simulate, name: str) -> None:
    operations: Sequence[Operation] = REPRODUCTIONS[name]
    simulate(operations, SOUND)
