"""The simulation of private rounds finds defects: each one put in breaks a promise."""

from collections.abc import Mapping
from importlib import resources
from typing import Final

import pytest

from tests.chaos.conftest import Simulate
from tests.chaos.private_reproductions import REPRODUCTIONS
from tests.chaos.promise import BrokenPromise
from tests.chaos.stores import Sabotage
from tests.looped import looped

_CHARGING: Final = "redis.call('HINCRBY', prefix .. 'charges', charge, 1)"
SABOTAGES: Final[Mapping[str, Sabotage]] = {
    "what_failed_validation_is_released": Sabotage(
        scripts={"phase == 'aggregating' or phase == 'validating'": "phase == 'aggregating'"}
    ),
    "what_was_aggregating_is_released": Sabotage(
        scripts={"phase == 'aggregating' or phase == 'validating'": "phase == 'validating'"}
    ),
    "a_round_is_charged_in_a_step_of_its_own": Sabotage(scripts={_CHARGING: ""}, late_charge=True),
    "a_round_is_not_charged": Sabotage(scripts={_CHARGING: ""}),
    "a_round_is_charged_twice": Sabotage(scripts={_CHARGING: _CHARGING.replace("1)", "2)")}),
    "the_reservation_is_forgotten": Sabotage(
        scripts={"redis.call('HSET', prefix .. 'reserved', ARGV[2], ARGV[11])": ""}
    ),
    "the_reservation_is_never_settled": Sabotage(
        scripts={"redis.call('HDEL', prefix .. 'reserved', number)": ""}
    ),
    "participations_are_not_counted": Sabotage(
        scripts={"redis.call('HSET', prefix .. 'privacy', 'max_participations', most)": ""}
    ),
    "the_budget_is_not_asked": Sabotage(boundless_budget=True),
}
# What is replayed first, where the first lists would not find the defect.
_FIRST: Final[Mapping[str, str]] = {
    "what_failed_validation_is_released": "stopped_crash_before_call_14",
    "what_was_aggregating_is_released": "stopped_crash_before_call_3",
    "a_round_is_charged_in_a_step_of_its_own": "stopped_pause_before_call_5",
    "the_budget_is_not_asked": "the_budget_is_spent",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SABOTAGES)
def test_the_simulation_finds_it(simulate_private: Simulate, name: str) -> None:
    def replay_all() -> None:
        for story in (_FIRST.get(name, "nothing_happens"), *REPRODUCTIONS):
            simulate_private(REPRODUCTIONS[story], SABOTAGES[name])

    with pytest.raises(BrokenPromise):
        replay_all()


@looped("name", SABOTAGES)
def test_the_sabotage_changes_a_script(name: str) -> None:
    folder = resources.files("server.storage") / "scripts"
    scripts = [file.read_text(encoding="utf-8") for file in folder.iterdir()]
    for sound in SABOTAGES[name].scripts:
        assert any(sound in script for script in scripts)
