"""What an honest coordinator asks in one round, step by step; tests leave some out."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
from google.protobuf.message import Message

from aggregators.shared_selection import select
from protos.fedagg.v1 import share_holder_pb2 as pb
from protos.fedagg.v1 import shared_round_pb2 as shared_pb
from security.shared_round.opening.ballot_box import BallotBox
from security.shared_round.opening.coins import Coin, open_coin
from security.shared_round.opening.openings import opening_sizes
from security.shared_round.opening.statements import (
    OpeningSizes,
    read_blame,
    read_coin,
    read_openings,
    read_vote,
    sums_from_bytes,
)
from security.shared_round.opening.sum_opening import OpenedSums, open_sums
from security.shared_round.opening.verdicts import Verdict, judge, judge_blame
from security.shared_round.terms.member_set import FrozenSet, Member, Selection, SelectionMode
from security.shared_round.terms.parameters import RoundParameters
from tests.server.holder.rig import Bundle, Rig

RequestT = TypeVar("RequestT", bound=Message)
Signed = Sequence[shared_pb.SignedStatement]


class Conversation:
    """One set of one round; every answer is kept under the name of its step."""

    def __init__(
        self,
        rig: Rig,
        params: RoundParameters,
        bundles: Iterable[Bundle],
        *,
        dealers: Iterable[Bundle] = (),
        attempt: int = 1,
    ) -> None:
        self.rig = rig
        self.params = params
        self.bundles = sorted(bundles, key=lambda bundle: bundle.device_id)
        self.freeze = pb.FreezeRequest(
            params_sha256=params.sha256,
            attempt=attempt,
            members=[bundle.member for bundle in self.bundles],
            dealers=[dealer.member for dealer in dealers],
        )
        self.frozen = FrozenSet(
            params_sha256=params.sha256,
            attempt=attempt,
            members=tuple(
                Member(device_id=bundle.device_id, header_sha256=bundle.header_sha256)
                for bundle in self.bundles
            ),
            dealers=tuple(
                Member(device_id=each.device_id, header_sha256=each.header_sha256)
                for each in self.freeze.dealers
            ),
        )
        self.votes: Signed = ()
        self.locks: Signed = ()
        self.coins: Signed = ()
        self.openings: Signed = ()
        self.blames: Signed = ()
        self.commitments: Signed = ()

    def _about(self, kind: type[RequestT], **fields: Any) -> RequestT:
        return kind(params_sha256=self.params.sha256, set_sha256=self.frozen.sha256, **fields)

    @property
    def lock(self) -> pb.LockBoxRequest:
        return self._about(pb.LockBoxRequest, votes=self.votes)

    @property
    def reveal(self) -> pb.RevealCoinRequest:
        return self._about(pb.RevealCoinRequest, votes=self.votes, locks=self.locks)

    @property
    def check(self) -> pb.OpenChecksRequest:
        return self._about(pb.OpenChecksRequest, votes=self.votes, coins=self.coins)

    @property
    def blame(self) -> pb.OpenBlameRequest:
        return self._about(
            pb.OpenBlameRequest, votes=self.votes, coins=self.coins, openings=self.openings
        )

    def commit(self, mode: SelectionMode = SelectionMode.CHECKED) -> pb.CommitRequest:
        return self._about(
            pb.CommitRequest,
            votes=self.votes,
            coins=self.coins,
            openings=self.openings,
            blame=self.blames,
            mode=mode.value,
        )

    def release(self, selection: Selection) -> pb.ReleaseSumRequest:
        return self._about(
            pb.ReleaseSumRequest,
            sums=[pb.SumMembers(members=members) for members in selection.sums],
            mode=selection.mode.value,
            commitments=self.commitments,
        )

    @property
    def box(self) -> BallotBox:
        votes = {}
        for each in self.votes:
            said = self.rig.read(self.params, each)
            votes[said.holder] = read_vote(
                said,
                attempt=self.frozen.attempt,
                set_sha256=self.frozen.sha256,
                scheme=self.params.scheme,
            )
        return BallotBox.of(self.params, self.frozen.sha256, votes)

    @property
    def coin(self) -> Coin:
        said = [self.rig.read(self.params, each) for each in self.coins]
        scheme = self.params.scheme
        shares = {
            each.holder: read_coin(each, set_sha256=self.frozen.sha256, scheme=scheme)
            for each in said
        }
        return open_coin(self.params, self.box, shares)

    def verdict(self, mode: SelectionMode = SelectionMode.CHECKED) -> Verdict:
        """As a bystander derives it."""
        names = ("consistency", "norms", "wraps", "distances")
        count = len(self.frozen.members)
        sizes = OpeningSizes(**dict(zip(names, opening_sizes(self.params, count), strict=True)))
        rows = {}
        for each in self.openings:
            said = self.rig.read(self.params, each)
            rows[said.holder] = read_openings(
                said,
                set_sha256=self.frozen.sha256,
                coin_sha256=self.coin.sha256,
                sizes=sizes,
                field=self.params.field,
            )
        verdict = judge(self.params, self.coin, count, rows, mode=mode)
        if not self.blames:
            return verdict
        blame = {}
        for each in self.blames:
            said = self.rig.read(self.params, each)
            blame[said.holder] = read_blame(
                said,
                set_sha256=self.frozen.sha256,
                coin_sha256=self.coin.sha256,
                members=verdict.suspects,
                wrap_tests=self.params.wrap_tests,
                field=self.params.field,
            )
        return judge_blame(self.params, verdict, blame)

    def selection(self, mode: SelectionMode = SelectionMode.CHECKED) -> Selection:
        return select(
            self.params,
            self.coin,
            self.verdict(mode),
            set_sha256=self.frozen.sha256,
            mode=mode,
        )

    async def run_to_coins(self, at: Iterable[int] | None = None) -> None:
        """Vote, lock and reveal, by some holders or all."""
        present = None if at is None else list(at)
        self.votes = await self.rig.ask("Freeze", self.freeze, present)
        self.locks = await self.rig.ask("LockBox", self.lock, present)
        self.coins = await self.rig.ask("RevealCoin", self.reveal, present)

    async def run_to_openings(self) -> None:
        await self.run_to_coins()
        self.openings = await self.rig.ask("OpenChecks", self.check)

    async def run_to_commitments(self) -> None:
        await self.run_to_openings()
        if self.params.is_checked and self.verdict().suspects:
            self.blames = await self.rig.ask("OpenBlame", self.blame)
        self.commitments = await self.rig.ask("Commit", self.commit())

    async def open_sum(
        self, selection: Selection, at: Iterable[int], *, weight: int = 0
    ) -> OpenedSums:
        """Ask some holders for their shares and open the sums; `weight` of one, if not its size."""
        shares = {}
        for index in at:
            statement, data = await self.rig.release(self.release(selection), index)
            said = self.rig.read(self.params, statement)
            assert said.sum.selection_sha256 == selection.sha256
            shares[index] = sums_from_bytes(
                data,
                data_sha256=said.sum.data_sha256,
                num_sums=len(selection.sums),
                dim=self.params.dim,
                field=self.params.field,
            )
        weights = [weight or len(members) for members in selection.sums]
        return open_sums(self.params, shares, weights=weights)


def plain_sum(opened: OpenedSums) -> np.ndarray:
    (total,) = opened.sums
    return total
