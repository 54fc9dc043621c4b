"""Whatever fails at whichever call: no release without a charge, none over budget."""

import pytest

from tests.chaos.conftest import Simulate
from tests.chaos.private_reproductions import REPRODUCTIONS
from tests.chaos.stores import SOUND
from tests.chaos.stories import thinned


@pytest.mark.slow
@pytest.mark.parametrize("name", thinned(REPRODUCTIONS, every=5))
def test_a_fault_at_any_call_is_survived(simulate_private: Simulate, name: str) -> None:
    simulate_private(REPRODUCTIONS[name], SOUND)
