"""An adversarial coordinator, lost memories and repeated calls: a holder keeps every promise.

Holders of (2, 3) are driven by random questions, also contradicting ones, and each may lose
everything it has in memory between any two of them. The third holder is the coordinator's own: it
votes for everything and commits itself to everything.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import hypothesis.strategies as st
import pytest
from hypothesis import given

from protos.fedagg.v1 import share_holder_pb2 as pb
from protos.fedagg.v1 import shared_round_pb2 as shared_pb
from security.errors import SharedRoundError
from security.shared_round.keys.signing import sign_statement, verify_statement
from security.shared_round.opening.ballot_box import BallotBox
from security.shared_round.opening.coins import coin_commitments, coin_pieces
from security.shared_round.opening.statements import Speaker
from security.shared_round.terms.member_set import FrozenSet, Member, Selection, SelectionMode
from security.shared_round.terms.parameter_facts import Checks
from security.shared_round.terms.parameters import RoundParameters
from server.errors import ServiceError
from server.holder.app import Holder, open_holder
from server.holder.shares.intake import ShareReceipt
from tests.server.holder.rig import NOW_S, Bundle, Rig, members_of, round_parameters

HONEST: Final = (1, 2)
LIAR: Final = 3
HOLDERS: Final = (*HONEST, LIAR)
NAMES: Final = ("anna", "berta", "carla", "dora")
COMMITTEE: Final = members_of(2, 3)[0]
SETTINGS: Final[dict[str, Any]] = {"checks": Checks.SUM, "min_members": 2}
PARAMS: Final = round_parameters(COMMITTEE, **SETTINGS)
# In which two quorums need not share an honest holder.
LOW_QUORUM: Final = round_parameters(COMMITTEE, **SETTINGS, quorum=2)
BUNDLES: Final = {
    params: {name: Bundle(params, COMMITTEE, name) for name in NAMES}
    for params in (PARAMS, LOW_QUORUM)
}
SETS: Final = (NAMES, NAMES[:3])

Op = tuple[str, int, int, int]
OPS: Final[st.SearchStrategy[Op]] = st.tuples(
    st.sampled_from(
        5 * ["freeze", "lock", "coin", "commit", "release", "release", "restart"]
        + ["checks", "purge"]
    ),
    st.sampled_from(HONEST),
    st.sampled_from([0, 1]),
    st.sampled_from([1, 2]),
)


class World:
    """Three holders, and everything they ever signed as the adversary collects it."""

    def __init__(self, folder: Path, params: RoundParameters = PARAMS) -> None:
        self.rig = Rig(folder, 2, 3, **{"assume-honest-holders": True})
        self.params = params
        self.bundles = BUNDLES[params]
        self.holders: dict[int, Holder] = {}
        # By kind and set: what each holder said. A holder that says two things is caught here.
        self.said: dict[tuple[str, bytes], dict[int, bytes]] = {}
        self.votes: dict[tuple[int, int], set[bytes]] = {}
        self.commitments: dict[int, set[bytes]] = {}
        self.boxes: dict[int, set[bytes]] = {}
        self.revealed: set[bytes] = set()
        self.sums: dict[int, set[bytes]] = {}
        self.answers: dict[tuple[str, int, int, int], bytes] = {}
        for index in HOLDERS:
            self.open(index)
        grants = [grant for each in self.holders.values() for grant in each.keyring.dealt]
        for index, holder in self.holders.items():
            assert holder.keyring.accept(grants)
            holder.rounds.open(params.to_bytes())
            rows = [holder.intake.take(bundle.inline(index)) for bundle in self.bundles.values()]
            outcomes = holder.intake.store_all([row for row in rows if isinstance(row, tuple)])
            assert all(isinstance(outcome, ShareReceipt) for outcome in outcomes)

    def open(self, index: int) -> None:
        self.holders[index] = open_holder(self.rig.config(index), now_s=lambda: NOW_S)

    def close(self) -> None:
        for holder in self.holders.values():
            holder.storage.close()

    def do(self, op: Op) -> None:
        kind, index, which, attempt = op
        if kind == "restart":
            self.holders[index].storage.close()
            self.open(index)
            return
        frozen = self.frozen_set(which, attempt)
        try:
            answer = self.ask(kind, index, which, frozen)
        except (ServiceError, SharedRoundError):
            return
        if answer is None:
            return
        # Whatever was answered once is answered with the same bytes for ever.
        assert self.answers.setdefault(op, answer) == answer
        self.record(kind, index, frozen, answer)

    def ask(  # noqa: PLR0911  # one for each kind
        self, kind: str, index: int, which: int, frozen: FrozenSet
    ) -> bytes | None:
        rounds = self.holders[index].rounds
        digests = (self.params.sha256, frozen.sha256)
        match kind:
            case "freeze":
                return rounds.freeze(self.freeze_request(which, frozen.attempt))
            case "coin":
                return rounds.reveal_coin(
                    pb.RevealCoinRequest(
                        params_sha256=digests[0],
                        set_sha256=digests[1],
                        votes=self.shown("freeze", frozen),
                        locks=self.shown("lock", frozen),
                    )
                )
            case "lock":
                votes = self.shown("freeze", frozen)
                return rounds.lock_box(
                    pb.LockBoxRequest(params_sha256=digests[0], set_sha256=digests[1], votes=votes)
                )
            case "checks":
                return rounds.open_checks(
                    pb.OpenChecksRequest(
                        params_sha256=digests[0],
                        set_sha256=digests[1],
                        votes=self.shown("freeze", frozen),
                        coins=self.shown("coin", frozen),
                    )
                )
            case "commit":
                coins = self.shown("coin", frozen)
                return rounds.commit(
                    pb.CommitRequest(
                        params_sha256=digests[0],
                        set_sha256=digests[1],
                        votes=self.shown("freeze", frozen),
                        coins=coins,
                        mode=pb.CHECKED,
                    )
                )
            case "release":
                return self.release(index, frozen)
            case _:
                rounds.purge(self.params.sha256)
                return None

    def release(self, index: int, frozen: FrozenSet) -> bytes:
        released = self.holders[index].rounds.release(
            pb.ReleaseSumRequest(
                params_sha256=self.params.sha256,
                set_sha256=frozen.sha256,
                sums=[pb.SumMembers(members=range(len(frozen.members)))],
                mode=pb.CHECKED,
                commitments=self.shown("commit", frozen),
            )
        )
        digest = hashlib.sha256(released.path.read_bytes()).digest()
        self.sums.setdefault(index, set()).add(digest)
        return released.statement

    def shown(self, kind: str, frozen: FrozenSet) -> list[shared_pb.SignedStatement]:
        """What the adversary holds of a kind about a set, and what its own holder says to it."""
        said = self.said.get((kind, frozen.sha256), {})
        forged = sign_statement(self.rig.secrets[LIAR - 1], self.lie(kind, frozen))
        return [*map(shared_pb.SignedStatement.FromString, said.values()), forged]

    def lie(self, kind: str, frozen: FrozenSet) -> shared_pb.HolderStatement:
        speaker = Speaker(params_sha256=self.params.sha256, holder=LIAR)
        keys = self.holders[LIAR].keyring.keys()
        mine = coin_commitments(keys, frozen.sha256)
        if kind == "freeze":
            return speaker.vote(attempt=frozen.attempt, set_sha256=frozen.sha256, commitments=mine)
        if kind in {"lock", "coin"}:
            box = self.box(frozen, mine)
            pieces = coin_pieces(keys, frozen.sha256)
            return speaker.lock(box) if kind == "lock" else speaker.coin(box, pieces)
        return speaker.commitment(
            set_sha256=frozen.sha256, selection_sha256=everybody(frozen).sha256
        )

    def box(self, frozen: FrozenSet, mine: tuple[bytes, ...]) -> BallotBox:
        """Everybody's votes so far."""
        said = self.said.get(("freeze", frozen.sha256), {}).items()
        votes = {
            index: tuple(
                verify_statement(
                    shared_pb.SignedStatement.FromString(data),
                    committee=COMMITTEE,
                    params_sha256=self.params.sha256,
                ).vote.coin_commitments
            )
            for index, data in said
        }
        return BallotBox.of(self.params, frozen.sha256, votes | {LIAR: mine})

    def record(self, kind: str, index: int, frozen: FrozenSet, answer: bytes) -> None:
        self.said.setdefault((kind, frozen.sha256), {})[index] = answer
        signed = shared_pb.SignedStatement.FromString(answer)
        said = verify_statement(signed, committee=COMMITTEE, params_sha256=self.params.sha256)
        assert said.holder == index
        if kind == "freeze":
            self.votes.setdefault((index, frozen.attempt), set()).add(said.vote.set_sha256)
        if kind == "lock":
            self.boxes.setdefault(index, set()).add(said.lock.box_sha256)
        if kind == "coin":
            self.boxes.setdefault(index, set()).add(said.coin.box_sha256)
            self.revealed.add(said.coin.box_sha256)
        if kind == "commit":
            self.commitments.setdefault(index, set()).add(said.commitment.selection_sha256)
        if kind == "release":
            # A sum that leaves is that of the holder's commitment, its own or taken on.
            self.commitments.setdefault(index, set()).add(said.sum.selection_sha256)

    def frozen_set(self, which: int, attempt: int) -> FrozenSet:
        return FrozenSet(
            params_sha256=self.params.sha256,
            attempt=attempt,
            members=tuple(
                Member(device_id=name, header_sha256=self.bundles[name].header_sha256)
                for name in SETS[which]
            ),
        )

    def freeze_request(self, which: int, attempt: int) -> pb.FreezeRequest:
        return pb.FreezeRequest(
            params_sha256=self.params.sha256,
            attempt=attempt,
            members=[self.bundles[name].member for name in SETS[which]],
        )

    @property
    def released(self) -> set[bytes]:
        """Selections of which a share left any honest holder."""
        return {digest for index in self.sums for digest in self.commitments[index]}

    def check(self) -> None:
        assert all(len(digests) == 1 for digests in self.votes.values())
        assert all(len(digests) == 1 for digests in self.boxes.values())
        assert self.params is LOW_QUORUM or len(self.revealed) <= 1
        assert all(len(digests) == 1 for digests in self.commitments.values())
        assert all(len(digests) == 1 for digests in self.sums.values())
        assert self.params is LOW_QUORUM or len(self.released) <= 1


def everybody(frozen: FrozenSet) -> Selection:
    """What follows from a round without checks."""
    positions = tuple(range(len(frozen.members)))
    return Selection(set_sha256=frozen.sha256, mode=SelectionMode.CHECKED, sums=(positions,))


@contextmanager
def world(params: RoundParameters = PARAMS) -> Iterator[World]:
    with TemporaryDirectory() as folder:
        made = World(Path(folder), params)
        try:
            yield made
        finally:
            made.close()


@pytest.mark.slow
@given(st.sampled_from([PARAMS, LOW_QUORUM]), st.lists(OPS, min_size=40, max_size=80))
def test_no_order_of_calls_and_restarts_makes_a_holder_say_two_things(
    params: RoundParameters, ops: list[Op]
) -> None:
    with world(params) as made:
        for op in ops:
            made.do(op)
        made.check()


@pytest.mark.slow
@given(st.data())
def test_a_round_ends_though_holders_restart_between_any_two_calls(data: st.DataObject) -> None:
    with world() as made:
        for kind in ("freeze", "lock", "coin", "checks", "commit", "release"):
            for index in data.draw(st.permutations(HONEST)):
                if data.draw(st.booleans()):
                    made.do(("restart", index, 0, 1))
                made.do((kind, index, 0, 1))
                if data.draw(st.booleans()):
                    made.do((kind, index, 0, 1))
        made.check()
        selection = everybody(made.frozen_set(0, 1))
        assert made.commitments == {index: {selection.sha256} for index in HONEST}
        assert set(made.sums) == set(HONEST)


def test_a_holder_releases_no_sum_but_its_own_though_a_quorum_is_shown_another() -> None:
    with world(LOW_QUORUM) as made:
        for op in (
            *(("freeze", index, 0, 1) for index in HONEST),
            *((kind, 2, 0, 1) for kind in ("lock", "coin", "commit")),
            *((kind, 1, 1, 2) for kind in ("freeze", "lock", "coin", "commit")),
        ):
            made.do(op)
        # Holder 2 and the liar are bound to the first set, and holder 1 to the second.
        made.do(("release", 1, 0, 1))
        assert made.sums == {}
        made.do(("release", 1, 1, 2))
        assert set(made.sums) == {1}


@pytest.mark.parametrize(("params", "num_sums"), [(PARAMS, 0), (LOW_QUORUM, 2)])
def test_two_sums_leave_only_where_two_quorums_share_no_honest_holder(
    params: RoundParameters, num_sums: int
) -> None:
    with world(params) as made:
        for kind in ("freeze", "lock", "coin", "commit", "release"):
            for index in HONEST:
                made.do((kind, index, index - 1, 1))
        assert len(made.released) == num_sums
