"""Lists of operations on a private task that are always replayed: faults at any call of a story."""

from collections.abc import Mapping, Sequence
from typing import Final

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
)

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
