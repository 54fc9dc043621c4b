"""Lists of operations that are always replayed: found by the simulation, or worth keeping.

A list that fails is added here as it was shrunk, under a name that says what went wrong.
"""

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
    Kill,
    Link,
    Operation,
    Path,
    Resume,
    Rollback,
    Upload,
)

_ASSIGNED: Final = (CheckIn(devices=ALL), Drive(), CheckIn(devices=ALL))
_TWO: Final = (0, 1)


def _stopped(kind: FaultKind, call: int, moment: Moment = Moment.BEFORE) -> Drive:
    return Drive(fault=Fault(kind=kind, moment=moment, call=call))


def _takeover(kind: FaultKind, call: int, moment: Moment) -> Sequence[Operation]:
    """A leader stops while it ends a round, another one ends it, the first one comes back."""
    return (
        *_ASSIGNED,
        Upload(devices=ALL),
        _stopped(kind, call, moment),
        Advance(ms=LEASE_MS + 1),
        Drive(via=1),
        Resume(),
        Drive(),
    )


REPRODUCTIONS: Final[Mapping[str, Sequence[Operation]]] = {
    "nothing_happens": (),
    "an_answer_is_lost_and_the_update_sent_again": (
        *_ASSIGNED,
        Upload(devices=_TWO, link=Link.DROP_RESPONSE),
        Upload(devices=_TWO, via=1, path=Path.STREAM),
        Upload(devices=(2,)),
        Drive(),
        Upload(devices=ALL, path=Path.BATCH),
    ),
    "two_payloads_race_under_one_id": (
        *_ASSIGNED,
        Upload(devices=ALL, link=Link.RACE),
        Upload(devices=ALL, path=Path.STREAM, link=Link.RACE),
        Drive(),
    ),
    "two_streams_of_one_update_race": (
        *_ASSIGNED,
        Upload(devices=ALL, path=Path.STREAM, link=Link.TWICE),
        Drive(),
    ),
    "a_broken_stream_is_resumed": (
        *_ASSIGNED,
        Upload(devices=ALL, path=Path.STREAM, link=Link.END_EARLY),
        Upload(devices=ALL, via=1, path=Path.RESUME),
        Drive(),
    ),
    "updates_come_after_the_deadline_and_before_anybody_noticed": (
        *_ASSIGNED,
        Upload(devices=_TWO),
        Advance(ms=COLLECTION_MS),
        Upload(devices=ALL),
        Drive(),
    ),
    "updates_come_in_the_last_millisecond": (
        *_ASSIGNED,
        Advance(ms=COLLECTION_MS - 1),
        Upload(devices=_TWO),
        Advance(ms=1),
        Upload(devices=ALL),
        Drive(via=1),
    ),
    "the_store_admits_and_does_not_answer": (
        *_ASSIGNED,
        *(
            Upload(
                devices=(device,),
                path=path,
                store_fault=Fault(kind=FaultKind.LOSE, moment=Moment.AFTER, call=call),
            )
            for device, path, call in ((0, Path.INLINE, 0), (1, Path.STREAM, 1), (2, Path.BATCH, 0))
        ),
        Drive(),
    ),
    "nobody_is_selected_and_everybody_uploads": (
        CheckIn(devices=(0, 1, 2, 3)),
        Drive(),
        CheckIn(devices=(0, 1, 2, 3)),
        Upload(devices=ALL, intrude=True),
        Upload(devices=ALL),
        Drive(),
    ),
    "a_device_changes_its_mind": (
        *_ASSIGNED,
        Upload(devices=_TWO),
        Upload(devices=_TWO, payload=1),
        Upload(devices=_TWO, via=1, path=Path.STREAM, payload=1),
        Upload(devices=_TWO, path=Path.BATCH, submission=1, payload=1),
        Upload(devices=(2,)),
        Drive(),
    ),
    "a_rollback_ends_the_round": (
        *_ASSIGNED,
        Upload(devices=ALL),
        Drive(),
        *_ASSIGNED,
        Upload(devices=_TWO),
        Rollback(back=1),
        Upload(devices=ALL),
        Drive(),
        Rollback(back=0),
    ),
    "a_driver_dies_standing_still": (
        *_ASSIGNED,
        Upload(devices=ALL),
        _stopped(FaultKind.PAUSE, 6),
        Kill(),
        Drive(),
        Drive(via=1),
    ),
    # With call 2 of the new leader its first commit: it leads, and the round is as it was.
    **{
        f"a_leader_stops_at_call_{call}_and_goes_on_while_another_leads": (
            *_ASSIGNED,
            Upload(devices=ALL),
            _stopped(FaultKind.PAUSE, call),
            Advance(ms=LEASE_MS + 1),
            Drive(via=1, fault=Fault(kind=FaultKind.CRASH, moment=Moment.BEFORE, call=2)),
            Resume(),
            Drive(via=1),
        )
        for call in range(20)
    },
    **{
        f"a_leader_meets_{kind.value}_{moment.value}_call_{call}_and_is_replaced": _takeover(
            kind, call, moment
        )
        for kind in FaultKind
        for moment in Moment
        for call in range(20)
    },
}
