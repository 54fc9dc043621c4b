"""The imperative shell around a holder's rounds: checks evidence, computes, stores, then answers.

Every method blocks and may run in any thread; calls of one round must not overlap (the service sees
to it), or work is done twice for one result. Whatever is signed is stored, together with the state
that allowed it, before it is returned. Asked again, the same bytes come back.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from protos.fedagg.v1 import share_holder_pb2 as pb
from security.shared_round.opening.coins import coin_commitments, coin_pieces
from security.shared_round.opening.openings import compute_blame, compute_openings, sum_shares
from security.shared_round.opening.statements import words_to_bytes
from security.shared_round.terms.member_set import FrozenSet, Selection, SelectionMode
from security.shared_round.terms.parameters import RoundParameters
from server.config.holder_config import PolicyConfig
from server.errors import (
    MalformedRequest,
    Overloaded,
    ParametersConflict,
    ServiceError,
    SumConflict,
)
from server.holder.refusals import stepped
from server.holder.shares.intake import OpenedFrames
from server.holder.shares.stored_shares import StoredShares
from server.holder.statements.judgement import Judgement
from server.holder.statements.keyring import Keyring
from server.holder.statements.policy import check_policy
from server.holder.statements.signed_steps import SignedSteps, frozen_set
from server.holder.storage.holder_state import (
    Ballot,
    CoinShown,
    CommitmentsShown,
    FreezeProposed,
    GroupsFailed,
    HolderRound,
    LocksShown,
    PurgeAsked,
    SelectionDerived,
    VotesShown,
)
from server.holder.storage.holder_storage import HolderStorage
from server.holder.storage.ledger import Ledger, RoundRow, StatementKind
from server.holder.storage.membership import HolderSelf, KnownRounds, require_round, serialize


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundsParts:
    """What rounds are run with."""

    me: HolderSelf
    policy: PolicyConfig
    storage: HolderStorage
    known: KnownRounds
    keyring: Keyring
    shares: StoredShares
    frames: OpenedFrames
    max_open_rounds: int
    retention_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasedSum:
    """This holder's share of the committed sums.

    Attributes:
        statement: serialized SignedStatement, a SumShare.
        path: file of the vectors, as they are sent.
    """

    statement: bytes
    path: Path


class HolderRounds:
    """The rounds of one holder."""

    def __init__(self, parts: RoundsParts) -> None:
        self._parts = parts
        self._steps = SignedSteps(parts.me, parts.storage, parts.known)

    def open(self, parameters: bytes) -> bytes:
        """Take part in a round; returns its params_sha256.

        Raises:
            MalformedMessageError, WrongRoundParameters, WeakerThanPolicy: why this holder will not.
            ParametersConflict: if the round was opened with other parameters.
            Overloaded: if too many rounds were not purged.
        """
        parts = self._parts
        params = RoundParameters.from_bytes(parameters)
        check_policy(params, parts.me.committee, parts.policy)
        row = RoundRow(
            params_sha256=params.sha256,
            task=params.task,
            number=params.round,
            parameters=parameters,
            opened_at_s=int(parts.me.now_s()),
            state=HolderRound(),
        )

        def change(ledger: Ledger) -> None:
            found = ledger.round_of(params.task, params.round)
            if found == params.sha256:
                return
            if found is not None:
                msg = f"round {params.round} of task {params.task!r} has other parameters"
                raise ParametersConflict(msg)
            if len(ledger.open_rounds()) >= parts.max_open_rounds:
                msg = f"{parts.max_open_rounds} rounds were not purged"
                raise Overloaded(msg, retry_after_ms=1000)
            ledger.insert_round(row)

        parts.storage.write(change)
        return params.sha256

    def receipts(self, params_sha256: bytes) -> list[bytes]:
        """Return receipts of everything stored for a round, serialized."""
        self._parts.known.row(params_sha256)
        return self._parts.storage.read(lambda ledger: ledger.receipts(params_sha256))

    def freeze(self, request: pb.FreezeRequest) -> bytes:
        """Vote for a set."""
        params = self._parts.known.parameters(request.params_sha256)
        if not params.min_members <= len(request.members) <= params.max_members:
            msg = (
                f"members={len(request.members)} must be in "
                f"{params.min_members}..{params.max_members}"
            )
            raise MalformedRequest(msg)
        frozen = frozen_set(params, request)
        _require_dealers(params, frozen)
        subject = request.attempt.to_bytes(4, "little") + frozen.sha256
        stored = self._steps.stored(params, StatementKind.VOTE, subject)
        if stored is not None:
            return stored
        event = FreezeProposed(attempt=request.attempt, set_sha256=frozen.sha256)
        self._steps.require_allowed(params, event)
        self._parts.shares.require_all(frozen, (*frozen.members, *frozen.dealers))
        ballot = Ballot(attempt=request.attempt, set_sha256=frozen.sha256)
        proposal = serialize(request)
        vote = self._steps.speaker(params).vote(
            attempt=request.attempt,
            set_sha256=frozen.sha256,
            commitments=coin_commitments(self._parts.keyring.keys(), frozen.sha256),
        )
        return self._steps.sign(
            params,
            event,
            (StatementKind.VOTE, subject),
            vote,
            also=lambda ledger: ledger.insert_vote(params.sha256, ballot, proposal),
        )

    def lock_box(self, request: pb.LockBoxRequest) -> bytes:
        """Lock this holder to the votes that fix a set's coin."""
        context = self._steps.context(request.params_sha256, request.set_sha256)
        params, frozen = context.params, context.frozen
        stored = self._steps.stored(params, StatementKind.LOCK, frozen.sha256)
        if stored is not None:
            return stored
        box = context.evidence.box(request.votes)
        event = VotesShown(set_sha256=frozen.sha256, box_sha256=box.sha256)
        self._steps.require_allowed(params, event)
        keys = self._parts.keyring.keys()
        box.check_member(self._parts.me.index, coin_commitments(keys, frozen.sha256))
        statement = self._steps.speaker(params).lock(box)
        return self._steps.sign(params, event, (StatementKind.LOCK, frozen.sha256), statement)

    def reveal_coin(self, request: pb.RevealCoinRequest) -> bytes:
        """Reveal this holder's pieces of a set's coin."""
        context = self._steps.context(request.params_sha256, request.set_sha256)
        params, frozen = context.params, context.frozen
        stored = self._steps.stored(params, StatementKind.COIN, frozen.sha256)
        if stored is not None:
            return stored
        box = context.evidence.box(request.votes)
        event = LocksShown(set_sha256=frozen.sha256, box_sha256=box.sha256)
        self._steps.require_allowed(params, event)
        keys = self._parts.keyring.keys()
        box.check_member(self._parts.me.index, coin_commitments(keys, frozen.sha256))
        context.evidence.check_locks(box, request.locks)
        pieces = coin_pieces(keys, frozen.sha256)
        statement = self._steps.speaker(params).coin(box, pieces)
        return self._steps.sign(params, event, (StatementKind.COIN, frozen.sha256), statement)

    def open_checks(self, request: pb.OpenChecksRequest) -> bytes:
        """Open this holder's part of the checks of a set."""
        context = self._steps.context(request.params_sha256, request.set_sha256)
        params, frozen = context.params, context.frozen
        stored = self._steps.stored(params, StatementKind.OPENINGS, frozen.sha256)
        if stored is not None:
            return stored
        judgement = Judgement.of(context.evidence, request.votes, request.coins)
        judgement.require_member(self._parts.me.index)
        coin = judgement.coin
        event = CoinShown(set_sha256=frozen.sha256, coin_sha256=coin.sha256)
        self._steps.require_allowed(params, event)
        everyone = range(len(frozen.members))
        vectors = self._parts.shares.vectors(params, frozen, everyone)
        keys = self._parts.keyring.keys()
        values = compute_openings(params, coin, frozen.sha256, vectors, keys)
        statement = self._steps.speaker(params).openings(
            set_sha256=frozen.sha256, coin_sha256=coin.sha256, values=values
        )
        return self._steps.sign(params, event, (StatementKind.OPENINGS, frozen.sha256), statement)

    def open_blame(self, request: pb.OpenBlameRequest) -> bytes:
        """Open this holder's part of the tests of the members of failed groups."""
        context = self._steps.context(request.params_sha256, request.set_sha256)
        params, frozen = context.params, context.frozen
        judgement = Judgement.of(context.evidence, request.votes, request.coins)
        judgement.require_member(self._parts.me.index)
        suspects = judgement.suspects(request.openings)
        # A member's test has one value under one coin: asked in other company, it tells no more.
        members = b"".join(position.to_bytes(4, "little") for position in suspects)
        subject = frozen.sha256 + hashlib.sha256(members).digest()
        stored = self._steps.stored(params, StatementKind.BLAME, subject)
        if stored is not None:
            return stored
        coin = judgement.coin
        event = GroupsFailed(set_sha256=frozen.sha256, coin_sha256=coin.sha256)
        self._steps.require_allowed(params, event)
        vectors = self._parts.shares.vectors(params, frozen, suspects)
        wraps = compute_blame(params, coin, suspects, vectors)
        statement = self._steps.speaker(params).blame(
            set_sha256=frozen.sha256, coin_sha256=coin.sha256, members=suspects, wraps=wraps
        )
        return self._steps.sign(params, event, (StatementKind.BLAME, subject), statement)

    def commit(self, request: pb.CommitRequest) -> bytes:
        """Bind this holder, for ever, to the sums that follow from the evidence."""
        context = self._steps.context(request.params_sha256, request.set_sha256)
        params, frozen = context.params, context.frozen
        judgement = Judgement.of(context.evidence, request.votes, request.coins)
        selection = judgement.selection(request.openings, request.blame, mode=_mode(request.mode))
        stored = self._steps.stored(params, StatementKind.COMMITMENT)
        if stored is not None:
            _require_same(self._parts.known.row(params.sha256).state, selection)
            return stored
        event = SelectionDerived(
            set_sha256=frozen.sha256,
            coin_sha256=judgement.coin.sha256,
            selection_sha256=selection.sha256,
        )
        statement = self._steps.speaker(params).commitment(
            set_sha256=frozen.sha256, selection_sha256=selection.sha256
        )
        return self._steps.sign(params, event, (StatementKind.COMMITMENT, b""), statement)

    def release(self, request: pb.ReleaseSumRequest) -> ReleasedSum:
        """Release this holder's share of the committed sums.

        A holder that was away while others committed themselves takes on their commitment, if it
        has made none and holds every share of the sums.
        """
        parts = self._parts
        context = self._steps.context(request.params_sha256, request.set_sha256)
        params, frozen = context.params, context.frozen
        selection = _selection(frozen, request)
        _require_noise(params, frozen, selection)
        event = CommitmentsShown(set_sha256=frozen.sha256, selection_sha256=selection.sha256)
        self._steps.require_allowed(params, event)
        context.evidence.check_commitments(request.commitments, selection)
        in_sums = [frozen.members[position] for position in selection.members]
        parts.shares.require_all(frozen, (*in_sums, *frozen.dealers))
        self._bind(params, event)
        path = parts.storage.sums.path(params.sha256.hex())
        stored = self._steps.stored(params, StatementKind.SUM)
        if stored is None or not path.exists():
            digest = self._write_sums(params, frozen, selection)
            statement = self._steps.speaker(params).sum_share(
                selection_sha256=selection.sha256,
                num_sums=len(selection.sums),
                data_sha256=digest,
            )
            try:
                stored = self._steps.sign(params, event, (StatementKind.SUM, b""), statement)
                self._steps.require_allowed(params, event)
            except ServiceError:
                # A purge came in between and has deleted what there was then.
                parts.storage.sums.delete(path.name)
                raise
        return ReleasedSum(statement=stored, path=path)

    def purge(self, params_sha256: bytes) -> None:
        """Delete a round's shares, keys and openings; votes and what binds stay."""
        storage = self._parts.storage

        def change(ledger: Ledger) -> list[str]:
            row = require_round(ledger.round(params_sha256), params_sha256)
            ledger.save_state(params_sha256, stepped(row.state, PurgeAsked()))
            ledger.forget_openings(params_sha256)
            return ledger.forget_shares(params_sha256)

        for name in storage.write(change):
            storage.bodies.delete(name)
        storage.sums.delete(params_sha256.hex())
        storage.noise.delete(params_sha256.hex())
        self._parts.frames.forget(params_sha256)
        storage.forget_deleted()

    def outdated(self) -> list[bytes]:
        """List rounds, by params_sha256, that their coordinator forgot; they are to be purged."""
        before_s = self._parts.me.now_s() - self._parts.retention_s
        return self._parts.storage.read(lambda ledger: ledger.open_rounds(opened_before_s=before_s))

    def _bind(self, params: RoundParameters, event: CommitmentsShown) -> None:
        """Make the commitment that is shown this holder's own, unless it has made it already."""
        signed = self._parts.me.sign(
            self._steps.speaker(params).commitment(
                set_sha256=event.set_sha256, selection_sha256=event.selection_sha256
            )
        )

        def change(ledger: Ledger) -> None:
            row = require_round(ledger.round(params.sha256), params.sha256)
            ledger.save_state(params.sha256, stepped(row.state, event))
            if ledger.statement(params.sha256, StatementKind.COMMITMENT) is None:
                ledger.insert_statement(params.sha256, StatementKind.COMMITMENT, b"", signed)

        self._parts.storage.write(change)

    def _write_sums(
        self, params: RoundParameters, frozen: FrozenSet, selection: Selection
    ) -> bytes:
        """Compute the sums one by one into the round's file; return the SHA-256 of it.

        Each holds the noise of all dealers, with weight 1.
        """
        shares = self._parts.shares
        digest = hashlib.sha256()
        with self._parts.storage.sums.create(params.sha256.hex()) as file:
            for positions in selection.sums:
                weights = [shares.weight(params, frozen.members[at]) for at in positions]
                vectors = shares.vectors(params, frozen, positions)
                weighted = list(zip(vectors, weights, strict=True))
                weighted += [(noise, 1) for noise in shares.noise(params, frozen)]
                (words,) = sum_shares(params, weighted, [range(len(weighted))])
                data = words_to_bytes(words)
                digest.update(data)
                file.write(data)
            file.finish()
        return digest.digest()


def _require_dealers(params: RoundParameters, frozen: FrozenSet) -> None:
    """Refuse a set with more or less noise than the parameters ask for."""
    if len(frozen.dealers) != params.noise_dealers:
        msg = f"dealers={len(frozen.dealers)} must be noise_dealers={params.noise_dealers}"
        raise MalformedRequest(msg)


def _require_noise(params: RoundParameters, frozen: FrozenSet, selection: Selection) -> None:
    """Refuse sums without the round's noise, and several: they would hold the same noise."""
    _require_dealers(params, frozen)
    if params.has_noise and len(selection.sums) != 1:
        msg = f"sums={len(selection.sums)} must be 1 in a round with noise"
        raise MalformedRequest(msg)


def _selection(frozen: FrozenSet, request: pb.ReleaseSumRequest) -> Selection:
    selection = Selection(
        set_sha256=frozen.sha256,
        mode=_mode(request.mode),
        sums=tuple(tuple(each.members) for each in request.sums),
    )
    if selection.members[-1] >= len(frozen.members):
        msg = f"member={selection.members[-1]} must be below {len(frozen.members)}"
        raise MalformedRequest(msg)
    return selection


def _mode(value: int) -> SelectionMode:
    try:
        return SelectionMode(value)
    except ValueError as error:
        msg = f"mode={value} must be CHECKED or a degraded mode"
        raise MalformedRequest(msg) from error


def _require_same(state: HolderRound, selection: Selection) -> None:
    if (state.committed_set, state.selection_sha256) != (selection.set_sha256, selection.sha256):
        msg = "the holder has committed itself to other sums of this round"
        raise SumConflict(msg)
