"""What the holders of one frozen set have stated, each statement checked as it arrived.

A holder that has answered a question is not asked it again. Nothing here needs to be durable: the
holders give the same bytes to whoever asks next.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from protos.fedagg.v1 import share_holder_pb2 as pb
from protos.fedagg.v1 import shared_round_pb2 as round_pb
from security.errors import EvidenceInsufficientError, SharedRoundError
from security.secret_sharing.field import Words
from security.shared_round.keys.signing import verify_statement
from security.shared_round.opening import statements
from security.shared_round.opening.ballot_box import BallotBox, agreeing_votes
from security.shared_round.opening.coins import Coin, CoinShare, open_coin
from security.shared_round.opening.openings import OpeningValues, opening_sizes
from security.shared_round.terms.member_set import FrozenSet, Member, Selection
from security.shared_round.terms.parameters import RoundParameters
from server.round.observers import SharingObserver
from server.sharing.holders import HolderClient, HolderRefused
from server.sharing.pool import HolderPool

T = TypeVar("T")
Signed = round_pb.SignedStatement


@dataclass(frozen=True, slots=True, kw_only=True)
class Stated(Generic[T]):
    """A holder's statement: what it signed, and what it means."""

    signed: Signed
    value: T


class Conversation:
    """The statements about one frozen set.

    Attributes:
        frozen: the set.
        votes, locks, coins, openings, blame, commitments, sums: statements so far, by holder.
        box: the votes that fix the coin, once they are put together.
        suspects: members, by position, whose own tests were opened last.
        refusals: why holders did not state what they were asked last.
    """

    def __init__(
        self,
        params: RoundParameters,
        frozen: FrozenSet,
        *,
        pool: HolderPool,
        observer: SharingObserver,
    ) -> None:
        self.frozen = frozen
        self.votes: dict[int, Stated[tuple[bytes, ...]]] = {}
        self.box: BallotBox | None = None
        self.locks: dict[int, Stated[bytes]] = {}
        self.coins: dict[int, Stated[CoinShare]] = {}
        self.openings: dict[int, Stated[OpeningValues]] = {}
        self.blame: dict[int, Stated[Words]] = {}
        self.commitments: dict[int, Stated[None]] = {}
        self.sums: dict[int, Stated[list[Words]]] = {}
        self.refusals: dict[int, HolderRefused] = {}
        self.suspects: tuple[int, ...] = ()
        self._params = params
        self._pool = pool
        self._observer = observer
        self._names = {"params_sha256": params.sha256, "set_sha256": frozen.sha256}

    @property
    def members(self) -> tuple[int, ...]:
        """Holders whose votes are in the box: they alone open the coin and the checks."""
        return () if self.box is None else self.box.holders

    async def ask_votes(self) -> None:
        """Propose the set to all holders."""
        request = pb.FreezeRequest(
            params_sha256=self._params.sha256,
            attempt=self.frozen.attempt,
            members=_members(self.frozen.members),
            dealers=_members(self.frozen.dealers),
        )
        await self._ask(
            "vote",
            self.votes,
            lambda client: client.freeze(request),
            self._read_vote,
        )

    def agreeing(self) -> tuple[int, ...]:
        """Return holders, ascending, whose votes can be put into one box: the most there are."""
        votes = {holder: stated.value for holder, stated in self.votes.items()}
        return agreeing_votes(self._params.scheme, votes)

    def make_box(self, holders: Iterable[int]) -> pb.LockBoxRequest:
        """Put votes into the box from which the coin comes; return it in the form that is kept.

        Raises:
            EvidenceInsufficientError, BadStatementError: if they make none.
        """
        return self.use_box(
            pb.LockBoxRequest(
                **self._names, votes=[self.votes[holder].signed for holder in sorted(holders)]
            )
        )

    def use_box(self, kept: pb.LockBoxRequest) -> pb.LockBoxRequest:
        """Go on with the box that was kept, perhaps by another coordinator; return it.

        Raises:
            EvidenceInsufficientError, BadStatementError: if it is none.
        """
        votes = {}
        for signed in kept.votes:
            statement = verify_statement(
                signed, committee=self._pool.committee, params_sha256=self._params.sha256
            )
            votes[statement.holder] = Stated(signed=signed, value=self._read_vote(statement))
        said = {holder: stated.value for holder, stated in votes.items()}
        self.box = BallotBox.of(self._params, self.frozen.sha256, said)
        self.votes |= votes
        return kept

    async def ask_locks(self) -> None:
        """Show the box, ask those whose votes are in it to lock themselves to it."""
        request = pb.LockBoxRequest(**self._names, votes=self._box_votes)
        await self._ask(
            "lock",
            self.locks,
            lambda client: client.lock_box(request),
            lambda statement: statements.read_lock(statement, set_sha256=self.frozen.sha256),
            of=self.members,
        )

    async def ask_coins(self) -> None:
        """Show the locks, ask the members of the box for their pieces of the coin."""
        request = pb.RevealCoinRequest(
            **self._names, votes=self._box_votes, locks=_signed(self.locks)
        )
        await self._ask(
            "coin",
            self.coins,
            lambda client: client.reveal_coin(request),
            lambda statement: statements.read_coin(
                statement, set_sha256=self.frozen.sha256, scheme=self._params.scheme
            ),
            of=self.members,
        )

    def coin(self) -> Coin:
        """Return the coin, from the shares so far.

        Raises:
            EvidenceInsufficientError: if they are too few.
        """
        if self.box is None:
            msg = "the votes must be put into a box before its coin is opened"
            raise EvidenceInsufficientError(msg)
        shares = {holder: stated.value for holder, stated in self.coins.items()}
        return open_coin(self._params, self.box, shares)

    async def ask_openings(self, coin: Coin) -> None:
        """Show the coin, ask the box's members for their shares of what the checks open."""
        request = pb.OpenChecksRequest(
            **self._names, coins=_signed(self.coins), votes=self._box_votes
        )
        sizes = opening_sizes(self._params, len(self.frozen.members))
        await self._ask(
            "openings",
            self.openings,
            lambda client: client.open_checks(request),
            lambda statement: statements.read_openings(
                statement,
                set_sha256=self.frozen.sha256,
                coin_sha256=coin.sha256,
                sizes=statements.OpeningSizes(
                    consistency=sizes[0], norms=sizes[1], wraps=sizes[2], distances=sizes[3]
                ),
                field=self._params.field,
            ),
            of=self.members,
        )

    async def ask_blame(self, coin: Coin, suspects: tuple[int, ...]) -> None:
        """Show that groups failed, ask the box's members for the tests of single members."""
        if suspects != self.suspects:  # further openings can show further groups
            self.blame.clear()
            self.suspects = suspects
        request = pb.OpenBlameRequest(
            **self._names,
            coins=_signed(self.coins),
            openings=_signed(self.openings),
            votes=self._box_votes,
        )
        await self._ask(
            "blame",
            self.blame,
            lambda client: client.open_blame(request),
            lambda statement: statements.read_blame(
                statement,
                set_sha256=self.frozen.sha256,
                coin_sha256=coin.sha256,
                members=suspects,
                wrap_tests=self._params.wrap_tests,
                field=self._params.field,
            ),
            of=self.members,
        )

    def evidence(self, mode: pb.SelectionMode.ValueType) -> pb.CommitRequest:
        """Return everything from which any holder derives the selection by itself."""
        return pb.CommitRequest(
            **self._names,
            mode=mode,
            coins=_signed(self.coins),
            openings=_signed(self.openings),
            blame=_signed(self.blame),
            votes=self._box_votes,
        )

    async def ask_commitments(self, evidence: pb.CommitRequest, selection: Selection) -> None:
        """Show the evidence to all holders, ask them to bind themselves to what follows."""
        await self._ask(
            "commitment",
            self.commitments,
            lambda client: client.commit(evidence),
            lambda statement: statements.read_commitment(
                statement, set_sha256=self.frozen.sha256, selection_sha256=selection.sha256
            ),
        )

    async def ask_sums(self, selection: Selection) -> None:
        """Show the commitments to all holders, ask for their shares of the sums."""
        request = pb.ReleaseSumRequest(
            **self._names,
            sums=[pb.SumMembers(members=members) for members in selection.sums],
            mode=pb.SelectionMode.ValueType(selection.mode.value),
            commitments=_signed(self.commitments),
        )
        num_bytes = 8 * self._params.dim * len(selection.sums)
        received: dict[int, bytes] = {}

        async def release(client: HolderClient) -> Signed:
            signed, received[client.index] = await client.release_sum(request, num_bytes=num_bytes)
            return signed

        def read(statement: round_pb.HolderStatement) -> list[Words]:
            digest = statements.read_sum_share(
                statement, selection_sha256=selection.sha256, num_sums=len(selection.sums)
            )
            return statements.sums_from_bytes(
                received[statement.holder],
                data_sha256=digest,
                num_sums=len(selection.sums),
                dim=self._params.dim,
                field=self._params.field,
            )

        await self._ask("sum", self.sums, release, read)

    @property
    def _box_votes(self) -> list[Signed]:
        return [self.votes[holder].signed for holder in self.members]

    def _read_vote(self, statement: round_pb.HolderStatement) -> tuple[bytes, ...]:
        return statements.read_vote(
            statement,
            attempt=self.frozen.attempt,
            set_sha256=self.frozen.sha256,
            scheme=self._params.scheme,
        )

    async def _ask(
        self,
        kind: str,
        known: dict[int, Stated[T]],
        question: Callable[[HolderClient], Awaitable[Signed]],
        read: Callable[[round_pb.HolderStatement], T],
        of: Iterable[int] | None = None,
    ) -> None:
        asked = [h for h in (self._pool.indices if of is None else sorted(of)) if h not in known]
        answers = await self._pool.ask(question, asked)
        self.refusals = dict(answers.refused)
        for holder, signed in answers.given.items():
            try:
                statement = verify_statement(
                    signed, committee=self._pool.committee, params_sha256=self._params.sha256
                )
                if statement.holder != holder:
                    self.refusals[holder] = HolderRefused("BAD_STATEMENT", "of another holder")
                    continue
                known[holder] = Stated(signed=signed, value=read(statement))
            except SharedRoundError as error:
                self.refusals[holder] = HolderRefused(error.reason, str(error))
                continue
            self._observer.opened(self._params.task, holder, kind)


def _members(members: Iterable[Member]) -> list[pb.Member]:
    return [
        pb.Member(device_id=each.device_id, header_sha256=each.header_sha256) for each in members
    ]


def _signed(stated: Mapping[int, Stated[T]]) -> list[Signed]:
    return [stated[holder].signed for holder in sorted(stated)]
