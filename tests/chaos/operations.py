"""The operations of a simulation, and how lists of them are drawn.

Devices, coordinators and versions are given by small numbers, so that lists shrink well and read
well: `Upload(devices=(0, 1), link=Link.DROP_RESPONSE)`.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

from hypothesis import strategies as st

from tests.chaos.faults import Fault, FaultKind, Moment

DEVICES: Final = 5
COORDINATORS: Final = 2
GOAL: Final = 3
QUORUM: Final = 2
LEASE_MS: Final = 300_000
COLLECTION_MS: Final = 1_000_000
SELECTION_MS: Final = 500_000
OFFER_MS: Final = 3_000_000


class Link(Enum):
    """What the network does to a call."""

    FINE = "fine"
    DROP_REQUEST = "drop_request"
    DROP_RESPONSE = "drop_response"
    TWICE = "twice"  # sent to both coordinators at the same time
    RACE = "race"  # at the same time another payload under the same id goes to the other one
    BREAK = "break"  # STREAM: the connection breaks in the middle; else as DROP_REQUEST
    END_EARLY = "end_early"  # STREAM: the stream ends in order, but too early


class Path(Enum):
    """How an update travels."""

    INLINE = "inline"
    STREAM = "stream"
    RESUME = "resume"  # STREAM from where the server says it stands
    BATCH = "batch"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckIn:
    """Devices offer themselves, or ask again under the same id."""

    devices: tuple[int, ...]
    via: int = 0
    again: bool = True
    link: Link = Link.FINE


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """Devices upload for a round; the same operation again is a retry.

    Attributes:
        submission: which of a device's submission ids for the round.
        payload: which of its two payloads; another one under the same id is a conflict.
        stale: for the round before its newest one.
        intrude: for the newest round any device knows of, though not assigned to it.
        store_fault: a fault of the round store during the call.
    """

    devices: tuple[int, ...]
    via: int = 0
    path: Path = Path.INLINE
    link: Link = Link.FINE
    submission: int = 0
    payload: int = 0
    stale: bool = False
    intrude: bool = False
    store_fault: Fault | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Drive:
    """One coordinator's driver does all there is to do, unless a fault stops it."""

    via: int = 0
    fault: Fault | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """One coordinator's driver dies, also where it stands still, and another takes its place."""

    via: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """A coordinator that stood still goes on, not knowing what happened meanwhile."""

    via: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Advance:
    """Time passes."""

    ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollback:
    """The operator makes an earlier model version current; 0 is the newest."""

    back: int


Operation = CheckIn | Upload | Drive | Kill | Resume | Advance | Rollback

ALL: Final = tuple(range(DEVICES))
_via = st.integers(0, COORDINATORS - 1)
_few = st.lists(st.sampled_from(ALL), unique=True, min_size=1, max_size=GOAL - 1).map(tuple)
_devices = st.just(ALL) | _few
_mostly_fine = st.one_of(st.just(Link.FINE), st.sampled_from(Link))
_seldom = st.sampled_from([False] * 3 + [True])


def _faults(*kinds: FaultKind, calls: int) -> st.SearchStrategy[Fault]:
    return st.builds(
        Fault,
        kind=st.sampled_from(kinds),
        moment=st.sampled_from(Moment),
        call=st.integers(0, calls),
    )


_operation = st.one_of(
    st.builds(CheckIn, devices=_devices, via=_via, again=st.booleans(), link=_mostly_fine),
    st.builds(CheckIn, devices=st.just(ALL), via=_via),
    st.builds(Drive, via=_via),
    st.builds(Drive, via=_via),
    st.builds(Drive, via=_via, fault=_faults(*FaultKind, calls=24)),
    st.builds(
        Upload,
        devices=_devices,
        via=_via,
        path=st.sampled_from(Path),
        link=_mostly_fine,
        submission=_seldom.map(int),
        payload=_seldom.map(int),
        stale=_seldom,
        intrude=_seldom,
    ),
    st.builds(Upload, devices=_devices, via=_via, path=st.sampled_from(Path)),
    st.builds(
        Upload,
        devices=_devices,
        via=_via,
        path=st.sampled_from(Path),
        store_fault=_faults(FaultKind.LOSE, calls=2),
    ),
    st.builds(
        Advance,
        ms=st.sampled_from(
            [1, LEASE_MS - 1, LEASE_MS + 1, COLLECTION_MS - 1, COLLECTION_MS, OFFER_MS + 1]
        ),
    ),
    st.builds(Resume, via=_via),
    st.builds(Kill, via=_via),
    st.builds(Rollback, back=st.integers(0, 2)),
)


# Some stories need several steps in order, which chance alone would seldom find.
@st.composite
def _assigned(draw: st.DrawFn) -> tuple[Operation, ...]:
    via = draw(_via)
    return (
        CheckIn(devices=ALL, again=draw(st.booleans())),
        Drive(via=via),
        Drive(via=1 - via),
        CheckIn(devices=ALL),
    )


@st.composite
def _uploaded(draw: st.DrawFn) -> tuple[Operation, ...]:
    via, path = draw(_via), draw(st.sampled_from(Path))
    return (
        Upload(devices=draw(_devices), path=path, payload=draw(_seldom.map(int))),
        Upload(devices=ALL, path=path, via=via, intrude=draw(_seldom)),
        Upload(devices=ALL, path=path, via=via, submission=draw(_seldom.map(int))),
        Drive(via=via),
        Drive(via=1 - via),
    )


@st.composite
def _late(draw: st.DrawFn) -> tuple[Operation, ...]:
    path = draw(st.sampled_from(Path))
    return (
        Upload(devices=draw(_few), path=path, link=draw(_mostly_fine)),
        Advance(ms=draw(st.sampled_from([COLLECTION_MS, COLLECTION_MS - 1]))),
        Upload(devices=draw(_devices), path=path),
    )


@st.composite
def _taken_over(draw: st.DrawFn) -> tuple[Operation, ...]:
    via = draw(_via)
    return (
        Upload(devices=ALL, path=draw(st.sampled_from(Path))),
        Drive(via=via, fault=draw(_faults(*FaultKind, calls=16))),
        Advance(ms=LEASE_MS + 1),
        Drive(via=1 - via, fault=draw(st.none() | _faults(*FaultKind, calls=4))),
        Resume(via=via),
    )


_steps = st.one_of(
    _operation.map(lambda one: (one,)),
    _assigned(),
    _assigned(),
    _uploaded(),
    _late(),
    _taken_over(),
)


def _joined(lists: list[list[tuple[Operation, ...]]]) -> list[Operation]:
    return [operation for steps in lists for step in steps for operation in step]


# Lists of lists, because one list alone would mostly be short.
operation_lists = st.lists(st.lists(_steps, max_size=8), max_size=8).map(_joined)
