"""The log of statements finds every pair of them that no honest holder makes."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import pytest

from protos.fedagg.v1 import shared_round_pb2 as pb
from security.secret_sharing.threshold import Threshold
from security.shared_round.opening.ballot_box import BallotBox
from security.shared_round.opening.openings import OpeningValues
from security.shared_round.opening.statements import Speaker
from tests.chaos.promise import BrokenPromise
from tests.chaos.shared_operations import LIAR
from tests.chaos.shared_statements import StatementLog
from tests.looped import looped

_NONE: Final = np.zeros(0, dtype=np.uint64)
_VALUES: Final = OpeningValues(consistency=_NONE, norms=_NONE, wraps=_NONE, distances=_NONE)
_SPOKEN: Final = {holder: Speaker(params_sha256=b"r" * 32, holder=holder) for holder in range(1, 6)}
Said = tuple[int, pb.HolderStatement]


def _vote(holder: int, name: str, attempt: int = 1) -> Said:
    spoken = _SPOKEN[holder].vote(
        attempt=attempt, set_sha256=name.encode(), commitments=[bytes(32)] * 4
    )
    return holder, spoken


def _box(name: str, others: int = 0) -> BallotBox:
    return BallotBox(
        scheme=Threshold(2, 5),
        set_sha256=name.encode(),
        holders=(1, 2, 4),
        commitments=(bytes([others]) * 32,) * 5,
    )


def _lock(holder: int, name: str, others: int = 0) -> Said:
    return holder, _SPOKEN[holder].lock(_box(name, others))


def _coin(holder: int, name: str, piece: int = 0, others: int = 0) -> Said:
    return holder, _SPOKEN[holder].coin(_box(name, others), [bytes([piece]) * 32] * 4)


def _openings(holder: int, name: str, coin: str) -> Said:
    spoken = _SPOKEN[holder].openings(
        set_sha256=name.encode(), coin_sha256=coin.encode(), values=_VALUES
    )
    return holder, spoken


def _commitment(holder: int, selection: str) -> Said:
    spoken = _SPOKEN[holder].commitment(set_sha256=b"a", selection_sha256=selection.encode())
    return holder, spoken


def _sum(holder: int, selection: str, data: str = "d") -> Said:
    spoken = _SPOKEN[holder].sum_share(
        selection_sha256=selection.encode(), num_sums=1, data_sha256=data.encode()
    )
    return holder, spoken


_VOTES: Final = tuple(_vote(holder, "a") for holder in (1, 2, 4))
_COMMITTED: Final = tuple(_commitment(holder, "s") for holder in (1, 2, 4))
_LATER: Final = tuple(_vote(holder, "b", 2) for holder in (1, 2, 4))
_LOCKS: Final = (*_VOTES, *(_lock(holder, "a") for holder in (1, 2, 4)))

BROKEN: Final[Mapping[str, Sequence[Said]]] = {
    "two votes in an attempt": (_vote(1, "a"), _vote(1, "b")),
    "another's name": ((1, _vote(2, "a")[1]),),
    "a lock without a quorum": (*_VOTES[:2], _lock(1, "a")),
    "locks to two boxes": (*_VOTES, _lock(1, "a"), _lock(1, "a", others=1)),
    "a vote after a lock": (*_VOTES, _lock(1, "a"), _vote(1, "b", 2)),
    "a coin without a quorum": (*_LOCKS[:5], _coin(1, "a")),
    "a coin of another box than those of the locks": (*_LOCKS, _coin(5, "a", others=1)),
    "two shares of a coin": (*_LOCKS, _coin(1, "a"), _coin(1, "a", piece=1)),
    "shares of two coins": (*_LOCKS, _coin(1, "a"), _coin(1, "b")),
    "openings under two coins": (_openings(1, "a", "x"), _openings(1, "b", "y")),
    "two holders' openings under two coins": (_openings(1, "a", "x"), _openings(2, "a", "y")),
    "two commitments": (_commitment(1, "s"), _commitment(1, "t")),
    "a sum without a quorum": (*_COMMITTED[:2], _sum(1, "s")),
    "another sum than that of the commitment": (*_COMMITTED, _commitment(5, "t"), _sum(5, "s")),
    "two shares of a sum": (*_COMMITTED, _sum(1, "s"), _sum(1, "s", "e")),
}


def _hear(said: Sequence[Said]) -> None:
    log = StatementLog()
    for holder, statement in said:
        log.hear(holder, pb.SignedStatement(statement=statement.SerializeToString()))


@looped("name", BROKEN)
def test_what_no_honest_holder_states_is_found(name: str) -> None:
    *before, last = BROKEN[name]
    _hear(before)
    with pytest.raises(BrokenPromise):
        _hear([*before, last])


def test_a_whole_round_and_all_repetitions_of_it_are_sound() -> None:
    story = [
        *_VOTES,
        *_LATER,
        *(_lock(holder, "b") for holder in (1, 2, 4)),
        *(_coin(holder, "b") for holder in (1, 2, 4)),
        *(_openings(holder, "b", "x") for holder in (1, 2, 4)),
        *_COMMITTED,
        *(_sum(holder, "s") for holder in (1, 2, 4)),
    ]
    _hear([*story, *story])


def test_the_dishonest_holder_may_state_what_it_likes() -> None:
    _hear([_vote(LIAR, "a"), _vote(LIAR, "b"), _commitment(LIAR, "s"), _commitment(LIAR, "t")])
