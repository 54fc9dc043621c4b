"""The operations of a simulation of shared rounds, and how lists of them are drawn.

Holders are numbered from 1; devices and coordinators, and positions in sets, from 0.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

from hypothesis import strategies as st

from tests.chaos.faults import Fault, FaultKind, Moment
from tests.chaos.shared_wire import WireFault, WireFaultKind

THRESHOLD: Final = 2
HOLDERS: Final = 5
QUORUM: Final = 4  # ceil((HOLDERS + THRESHOLD) / 2)
LIAR: Final = 3
COORDINATORS: Final = 2
DEVICES: Final = 5
GOAL: Final = 4
MIN_MEMBERS: Final = 2
LEASE_MS: Final = 10_000
HOLDER_TIMEOUT_MS: Final = 5_000
COLLECTION_MS: Final = 1_000_000
MAX_WAIT_MS: Final = 50_000_000


class Lie(Enum):
    """What the dishonest holder does to answers; every time in another way."""

    COIN = "coin"
    OPENINGS = "openings"
    SUM = "sum"
    GARBAGE = "garbage"  # what it answers cannot be read
    REFUSAL = "refusal"  # it refuses with a reason that is not true
    BAD_SIGNATURE = "bad_signature"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """The task."""

    share_format: str = "shamir-seeded"
    checks: str = "norm"
    group_size: int = 0
    degraded: str = "wait"


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """Every device offers itself and the coordinator chooses them."""

    via: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Admit:
    """Updates are admitted; of `damaged` ones a holder's body was changed on the way."""

    devices: tuple[int, ...]
    damaged: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Drive:
    """One coordinator does all there is to do, unless a fault of its stores stops it."""

    via: int = 0
    ticks: int = 50
    faults: tuple[WireFault, ...] = ()
    store_fault: Fault | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """One coordinator dies, also where it stands still, and another takes its place."""

    via: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """A coordinator that stood still goes on."""

    via: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StopHolder:
    """A holder dies."""

    holder: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StartHolder:
    """A holder is there again, with what was in its folder."""

    holder: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Crash:
    """A holder dies at a transaction, before it or right after it."""

    holder: int
    moment: Moment
    write: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Deliver:
    """Calls that were delayed arrive, the last one first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Advance:
    """Time passes."""

    ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lying:
    """The dishonest holder begins to lie like this; empty: it stops."""

    lies: frozenset[Lie]


class Step(Enum):
    """How far an attack goes."""

    FREEZE = 1
    COIN = 2
    OPENINGS = 3
    COMMIT = 4
    RELEASE = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """A coordinator that follows no rule, with the dishonest holder's keys.

    Attributes:
        until: the last step.
        leave_out: devices that are not in its set.
        attempt: of its set.
        holders: whom it asks.
        evidence: of whose statements it shows.
        degraded: whether it asks for a degraded selection.
        spin: how the dishonest holder's own statements are made up; 0: the truth.
    """

    until: Step = Step.RELEASE
    leave_out: int = -1
    attempt: int = 1
    holders: frozenset[int] = frozenset(range(1, HOLDERS + 1))
    evidence: frozenset[int] = frozenset(range(1, HOLDERS + 1))
    degraded: bool = False
    spin: int = 0


HolderOperation = StopHolder | StartHolder | Crash | Deliver | Lying
Operation = HolderOperation | Open | Admit | Drive | Kill | Resume | Advance | Attack

ALL: Final = tuple(range(DEVICES))
EVERY_HOLDER: Final = frozenset(range(1, HOLDERS + 1))

_via = st.integers(0, COORDINATORS - 1)
_holder = st.integers(1, HOLDERS)
_most = st.sets(_holder, max_size=2).map(lambda without: EVERY_HOLDER - without)
_wire_faults = st.lists(
    st.builds(
        WireFault,
        holder=_holder,
        kind=st.sampled_from(WireFaultKind),
        call=st.integers(0, 9),
    ),
    max_size=3,
).map(tuple)
_store_faults = st.none() | st.builds(
    Fault,
    kind=st.sampled_from(FaultKind),
    moment=st.sampled_from(Moment),
    call=st.integers(0, 24),
)
_attack = st.builds(
    Attack,
    until=st.sampled_from(Step),
    leave_out=st.integers(-1, GOAL - 1),
    attempt=st.integers(1, 3),
    holders=_most,
    evidence=st.just(EVERY_HOLDER) | _most,
    degraded=st.booleans(),
    spin=st.integers(0, 2),
)
_drive = st.builds(Drive, via=_via, faults=_wire_faults)
_operation = st.one_of(
    _drive,
    _drive,
    st.builds(Drive, via=_via, ticks=st.integers(1, 3), faults=_wire_faults),
    st.builds(Drive, via=_via, store_fault=_store_faults),
    st.builds(Kill, via=_via),
    st.builds(Resume, via=_via),
    st.builds(StopHolder, holder=_holder),
    st.builds(StartHolder, holder=_holder),
    st.builds(Crash, holder=_holder, moment=st.sampled_from(Moment), write=st.integers(0, 5)),
    st.just(Deliver()),
    st.builds(
        Advance,
        ms=st.sampled_from([1, HOLDER_TIMEOUT_MS + 1, LEASE_MS + 1, COLLECTION_MS, MAX_WAIT_MS]),
    ),
    st.builds(Lying, lies=st.frozensets(st.sampled_from(Lie), max_size=2)),
    _attack,
)
_operations = st.lists(_operation, max_size=5)


@st.composite
def _round(draw: st.DrawFn) -> list[Operation]:
    """A round, with trouble between any two of its steps."""
    damaged = draw(st.sets(st.sampled_from(ALL), max_size=1).map(tuple))
    story: list[Operation] = [Open(via=draw(_via)), Admit(devices=ALL, damaged=damaged)]
    story += draw(st.lists(_attack, max_size=3)) and [Drive(via=draw(_via), ticks=1)]
    story += draw(_operations)
    story += [Drive(via=draw(_via), ticks=draw(st.integers(1, 4)), faults=draw(_wire_faults))]
    story += draw(_operations)
    return story


@st.composite
def _attacked(draw: st.DrawFn) -> list[Operation]:
    """Shares are relayed and sets are proposed by a coordinator that means no good."""
    via = draw(_via)
    story: list[Operation] = [Open(via=via), Admit(devices=ALL), Drive(via=via, ticks=1)]
    story += draw(st.lists(_attack, min_size=1, max_size=4))
    story += draw(st.lists(_operation, max_size=2))
    return story


@st.composite
def _taken_over(draw: st.DrawFn) -> list[Operation]:
    via = draw(_via)
    return [
        Open(via=via),
        Admit(devices=ALL),
        Drive(via=via, ticks=draw(st.integers(1, 5)), store_fault=draw(_store_faults)),
        *draw(_operations),
        Advance(ms=LEASE_MS + 1),
        Drive(via=1 - via, faults=draw(_wire_faults)),
        Resume(via=via),
    ]


setups = st.builds(
    Setup,
    share_format=st.sampled_from(["shamir-seeded", "cnf-seeded"]),
    checks=st.sampled_from(["norm", "norm", "sum"]),
    group_size=st.sampled_from([0, 0, 2]),
    degraded=st.sampled_from(["wait", "unchecked"]),
)
shared_operation_lists = st.lists(st.one_of(_round(), _attacked(), _taken_over()), max_size=2).map(
    lambda stories: [operation for story in stories for operation in story]
)
