"""What every step of a round needs: its set, its evidence, and to be signed exactly once."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from protos.fedagg.v1 import share_holder_pb2 as pb
from protos.fedagg.v1 import shared_round_pb2 as shared_pb
from security.shared_round.opening.statements import Speaker
from security.shared_round.terms.member_set import FrozenSet, Member
from security.shared_round.terms.parameters import RoundParameters
from server.errors import NotFrozen
from server.holder.refusals import stepped
from server.holder.statements.evidence import RoundEvidence
from server.holder.storage.holder_state import Event
from server.holder.storage.holder_storage import HolderStorage
from server.holder.storage.ledger import Ledger, StatementKind
from server.holder.storage.membership import HolderSelf, KnownRounds, require_round


@dataclass(frozen=True, slots=True, kw_only=True)
class StepContext:
    """One round and one set of it that this holder voted for."""

    params: RoundParameters
    frozen: FrozenSet
    evidence: RoundEvidence


class SignedSteps:
    """Ties events of the state machine to the statements that they stand for."""

    def __init__(self, me: HolderSelf, storage: HolderStorage, known: KnownRounds) -> None:
        self._me = me
        self._storage = storage
        self._known = known

    def speaker(self, params: RoundParameters) -> Speaker:
        """Return what builds this holder's statements of a round."""
        return self._me.speaker(params.sha256)

    def sign(
        self,
        params: RoundParameters,
        event: Event,
        name: tuple[StatementKind, bytes],
        statement: shared_pb.HolderStatement,
        *,
        also: Callable[[Ledger], None] = lambda _: None,
    ) -> bytes:
        """Apply an event and store its statement together; what is returned may leave."""
        signed = self._me.sign(statement)

        def change(ledger: Ledger) -> bytes:
            stored = ledger.statement(params.sha256, *name)
            if stored is not None:
                return stored
            row = require_round(ledger.round(params.sha256), params.sha256)
            ledger.save_state(params.sha256, stepped(row.state, event))
            also(ledger)
            ledger.insert_statement(params.sha256, *name, signed)
            return signed

        return self._storage.write(change)

    def stored(
        self, params: RoundParameters, kind: StatementKind, subject: bytes = b""
    ) -> bytes | None:
        """Return a statement that was signed before, as it was sent."""
        return self._storage.read(lambda ledger: ledger.statement(params.sha256, kind, subject))

    def require_allowed(self, params: RoundParameters, event: Event) -> None:
        """Refuse early what `_sign` would refuse after the work."""
        stepped(self._known.row(params.sha256).state, event)

    def context(self, params_sha256: bytes, set_sha256: bytes) -> StepContext:
        """Return the round and a set of it that this holder voted for, in whatever attempt.

        Raises:
            UnknownRound, NotFrozen: if there is none.
        """
        params = self._known.parameters(params_sha256)
        proposal = self._storage.read(lambda ledger: ledger.proposal(params_sha256, set_sha256))
        if proposal is None:
            msg = f"the holder has not voted for set_sha256={set_sha256.hex()[:64]}"
            raise NotFrozen(msg)
        frozen = frozen_set(params, pb.FreezeRequest.FromString(proposal))
        evidence = RoundEvidence(params=params, committee=self._me.committee, frozen=frozen)
        return StepContext(params=params, frozen=frozen, evidence=evidence)


def frozen_set(params: RoundParameters, request: pb.FreezeRequest) -> FrozenSet:
    """Return the set that is proposed.

    Raises:
        MalformedMessageError: if its members or dealers are not in order.
    """
    return FrozenSet(
        params_sha256=params.sha256,
        attempt=request.attempt,
        members=_members(request.members),
        dealers=_members(request.dealers),
    )


def _members(told: Iterable[pb.Member]) -> tuple[Member, ...]:
    return tuple(
        Member(device_id=each.device_id, header_sha256=each.header_sha256) for each in told
    )
