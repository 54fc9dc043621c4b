"""Whatever is lost, repeated, delayed or killed: no release without a charge, none over budget."""

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Final

import pytest
from hypothesis import HealthCheck, Phase, event, given, settings

from tests.chaos.conftest import Simulate
from tests.chaos.faults import Fault, FaultKind, Moment
from tests.chaos.operations import (
    ALL,
    COLLECTION_MS,
    LEASE_MS,
    Advance,
    CheckIn,
    Drive,
    Operation,
    Resume,
    Rollback,
    Upload,
    operation_lists,
)
from tests.chaos.promise import BrokenPromise
from tests.chaos.stores import SOUND, Sabotage

# The profile may ask for more: `--hypothesis-profile=chaos`.
EXAMPLES = max(200, settings().max_examples)

_ROUND: Final = (CheckIn(devices=ALL, again=False), Drive(), CheckIn(devices=ALL))
_PUBLISHED: Final = (*_ROUND, Upload(devices=ALL), Drive())
_FAULTS: Final = (
    (FaultKind.CRASH, Moment.BEFORE),
    (FaultKind.CRASH, Moment.AFTER),
    (FaultKind.LOSE, Moment.AFTER),
    (FaultKind.PAUSE, Moment.BEFORE),
)


def _stopped(kind: FaultKind, moment: Moment, call: int) -> tuple[Operation, ...]:
    """A leader meets a fault while it ends a round; the model is rolled back; another ends it."""
    return (
        *_PUBLISHED,
        *_ROUND,
        Upload(devices=ALL),
        Drive(fault=Fault(kind=kind, moment=moment, call=call)),
        Rollback(back=1),
        Advance(ms=LEASE_MS + 1),
        Drive(via=1),
        Resume(),
        Drive(),
    )


def _opening(kind: FaultKind, moment: Moment, call: int) -> tuple[Operation, ...]:
    """A leader meets a fault while it opens the first round; another one goes on."""
    return (
        Drive(fault=Fault(kind=kind, moment=moment, call=call)),
        Advance(ms=LEASE_MS + 1),
        Drive(via=1),
        Resume(),
        Drive(),
    )


def _closing(kind: FaultKind, moment: Moment, call: int) -> tuple[Operation, ...]:
    """A leader meets a fault while the budget ends; another one finds it ended."""
    return (
        *(_PUBLISHED * 2),
        *_ROUND,
        Upload(devices=ALL),
        Drive(fault=Fault(kind=kind, moment=moment, call=call)),
        Advance(ms=LEASE_MS + 1),
        Drive(via=1),
        Resume(),
        Drive(),
        CheckIn(devices=ALL),
    )


REPRODUCTIONS: Final[Mapping[str, Sequence[Operation]]] = {
    "nothing_happens": (),
    "the_budget_is_spent": _PUBLISHED * 4,
    "nobody_uploads": (*_ROUND, Advance(ms=COLLECTION_MS), Drive(), *_PUBLISHED),
    **{
        f"{story.__name__.strip('_')}_{kind.value}_{moment.value}_call_{call}": story(
            kind, moment, call
        )
        for story, calls in ((_opening, 6), (_stopped, 24), (_closing, 28))
        for kind, moment in _FAULTS
        for call in range(calls)
    },
}

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


@pytest.mark.slow
@pytest.mark.timeout(0)
@given(operations=operation_lists)
@settings(
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    phases=set(Phase) - {Phase.explain},
)
def test_no_release_is_without_its_charge(
    simulate_private: Simulate, operations: list[Operation]
) -> None:
    event(f"{simulate_private(operations, SOUND)} rounds published")


@pytest.mark.slow
@pytest.mark.parametrize("name", REPRODUCTIONS)
def test_a_fault_at_any_call_is_survived(simulate_private: Simulate, name: str) -> None:
    simulate_private(REPRODUCTIONS[name], SOUND)


@pytest.mark.slow
@pytest.mark.parametrize("name", SABOTAGES)
def test_the_simulation_finds_it(simulate_private: Simulate, name: str) -> None:
    def replay_all() -> None:
        for operations in REPRODUCTIONS.values():
            simulate_private(operations, SABOTAGES[name])

    with pytest.raises(BrokenPromise):
        replay_all()


@pytest.mark.parametrize("name", SABOTAGES)
def test_the_sabotage_changes_a_script(name: str) -> None:
    folder = resources.files("server.storage") / "scripts"
    scripts = [file.read_text(encoding="utf-8") for file in folder.iterdir()]
    for sound in SABOTAGES[name].scripts:
        assert any(sound in script for script in scripts)
