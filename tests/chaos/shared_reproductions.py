"""Lists of operations that are always replayed: found by the simulation, or worth keeping.

A list that fails is added here as it was shrunk, under a name that says what went wrong.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from tests.chaos.faults import Fault, FaultKind, Moment
from tests.chaos.shared_operations import (
    ALL,
    LEASE_MS,
    Admit,
    Advance,
    Attack,
    Crash,
    Deliver,
    Drive,
    Kill,
    Lie,
    Lying,
    Open,
    Operation,
    Resume,
    Setup,
    StartHolder,
    Step,
    StopHolder,
)
from tests.chaos.shared_wire import WireFault, WireFaultKind

_ADMITTED: Final = (Open(), Admit(devices=ALL), Drive(ticks=1))

_SOME: Final = frozenset({1, 2})
_OTHERS: Final = frozenset({4, 5})


def _faulty(kind: WireFaultKind, call: int) -> Drive:
    """The same call of every holder but the dishonest one."""
    holders = (1, 2, 4, 5)
    return Drive(faults=tuple(WireFault(holder=j, kind=kind, call=call) for j in holders))


SHARED_REPRODUCTIONS: Final[Mapping[str, tuple[Setup, Sequence[Operation]]]] = {
    "nothing_happens": (Setup(), ()),
    "no_fault": (Setup(), (*_ADMITTED, Drive())),
    # gRPC gives None for an answer that cannot be parsed: the driver never got past it.
    "a_holder_answers_with_what_is_no_message": (
        Setup(),
        (*_ADMITTED, Lying(lies=frozenset({Lie.GARBAGE})), Drive()),
    ),
    "one_holder_lies_about_everything": (
        Setup(),
        (*_ADMITTED, Lying(lies=frozenset({Lie.COIN, Lie.OPENINGS})), Drive()),
    ),
    "every_answer_is_lost_once": (
        Setup(),
        (*_ADMITTED, *(_faulty(WireFaultKind.LOSE_ANSWER, call) for call in range(5)), Drive()),
    ),
    "old_calls_arrive_late": (
        Setup(),
        (
            *_ADMITTED,
            *(_faulty(WireFaultKind.DELAY, call) for call in range(4)),
            Drive(),
            Deliver(),
            Drive(),
        ),
    ),
    "a_holder_dies_after_it_bound_itself_and_before_it_released": (
        Setup(),
        (*_ADMITTED, Crash(holder=1, moment=Moment.AFTER, write=4), Drive()),
    ),
    "the_leader_dies_with_two_holders_stopped": (
        Setup(checks="sum"),
        (
            *_ADMITTED,
            Drive(ticks=1),
            StopHolder(holder=1),
            StopHolder(holder=5),
            Kill(),
            Advance(ms=LEASE_MS + 1),
            Drive(via=1),
            StartHolder(holder=1),
            Drive(via=1),
        ),
    ),
    "a_leader_that_stood_still_goes_on": (
        Setup(),
        (
            *_ADMITTED,
            Drive(store_fault=Fault(kind=FaultKind.PAUSE, moment=Moment.BEFORE, call=9)),
            Advance(ms=LEASE_MS + 1),
            Drive(via=1),
            Resume(),
        ),
    ),
    "two_sets_in_one_attempt": (
        Setup(),
        (
            *_ADMITTED,
            Attack(until=Step.FREEZE, holders=_SOME),
            Attack(until=Step.FREEZE, leave_out=1, holders=_OTHERS),
            Drive(),
        ),
    ),
    "another_set_after_the_coin_of_the_first": (
        Setup(),
        (*_ADMITTED, Attack(until=Step.COIN), Attack(leave_out=0, attempt=2), Attack()),
    ),
    "two_selections_from_one_coin": (
        Setup(degraded="unchecked"),
        (
            *_ADMITTED,
            Attack(until=Step.OPENINGS),
            Attack(holders=_SOME, spin=1),
            Attack(holders=_OTHERS, degraded=True),
            Attack(holders=_OTHERS, evidence=frozenset({1, 2, 4, 5})),
        ),
    ),
    "groups": (Setup(group_size=2, share_format="cnf-seeded"), (*_ADMITTED, Drive())),
}
