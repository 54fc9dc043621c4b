"""Whatever is lost, repeated, delayed or killed: no release without a charge, none over budget."""

import pytest
from hypothesis import HealthCheck, Phase, event, given, settings

from tests.chaos.conftest import Simulate
from tests.chaos.operations import Operation, operation_lists
from tests.chaos.stores import SOUND


@pytest.mark.slow
@pytest.mark.timeout(0)
@given(operations=operation_lists)
@settings(
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    phases=set(Phase) - {Phase.explain},
)
def test_no_release_is_without_its_charge(
    simulate_private: Simulate, operations: list[Operation]
) -> None:
    event(f"{simulate_private(operations, SOUND)} rounds published")
