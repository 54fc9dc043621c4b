"""The simulation finds defects: each one put in on purpose breaks a promise."""

from collections.abc import Mapping
from importlib import resources
from typing import Final

import pytest

from tests.chaos.conftest import Simulate
from tests.chaos.promise import BrokenPromise
from tests.chaos.reproductions import REPRODUCTIONS
from tests.chaos.stores import Sabotage
from tests.looped import looped

SABOTAGES: Final[Mapping[str, Sabotage]] = {
    "an_update_counts_twice": Sabotage(doubled_contribution=True),
    "an_update_is_lost": Sabotage(dropped_contribution=True),
    "a_retry_is_admitted_anew": Sabotage(scripts={"if known then": "if false then"}),
    "another_payload_under_the_same_id_gets_a_receipt": Sabotage(
        scripts={"if string.sub(known, 1, #mark) ~= mark then return 2, 0 end": ""}
    ),
    "updates_are_admitted_after_the_deadline": Sabotage(
        scripts={"and now < tonumber(r[3])": ""},
    ),
    "updates_are_admitted_after_the_collection": Sabotage(
        scripts={"if n < number or not open or accepted >= goal then return 5, 0 end": ""}
    ),
    "everybody_may_submit": Sabotage(
        scripts={"redis.call('HEXISTS', cohort, device) == 0": "false"},
    ),
    "an_outdated_leader_may_commit": Sabotage(
        scripts={"redis.call('HGET', prefix .. 'lease', 'fence') ~= ARGV[1]": "false"}
    ),
    "a_new_leader_may_use_an_old_token": Sabotage(scripts={"fence = fence + 1": "fence = 1"}),
}
# What is replayed first, where the first lists would not find the defect.
_FIRST: Final[Mapping[str, str]] = {
    "another_payload_under_the_same_id_gets_a_receipt": "two_payloads_race_under_one_id",
    "updates_are_admitted_after_the_deadline": "updates_come_in_the_last_millisecond",
    "updates_are_admitted_after_the_collection": "the_store_admits_and_does_not_answer",
    "everybody_may_submit": "nobody_is_selected_and_everybody_uploads",
    "an_outdated_leader_may_commit": "a_leader_stops_at_call_1_and_goes_on_while_another_leads",
    "a_new_leader_may_use_an_old_token": "a_driver_dies_standing_still",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SABOTAGES)
def test_the_simulation_finds_it(simulate: Simulate, name: str) -> None:
    def replay_all() -> None:
        for story in (_FIRST.get(name, "nothing_happens"), *REPRODUCTIONS):
            simulate(REPRODUCTIONS[story], SABOTAGES[name])

    with pytest.raises(BrokenPromise):
        replay_all()


@looped("name", SABOTAGES)
def test_the_sabotage_changes_a_script(name: str) -> None:
    folder = resources.files("server.storage") / "scripts"
    scripts = [file.read_text(encoding="utf-8") for file in folder.iterdir()]
    for sound in SABOTAGES[name].scripts:
        assert any(sound in script for script in scripts)
