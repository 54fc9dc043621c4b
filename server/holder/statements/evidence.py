"""What others' signed statements show, checked by this holder itself."""

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from protos.fedagg.v1 import shared_round_pb2 as pb
from security.errors import BadStatementError, EvidenceInsufficientError
from security.shared_round.keys.signing import verify_statement
from security.shared_round.opening.ballot_box import BallotBox
from security.shared_round.opening.coins import Coin, open_coin
from security.shared_round.opening.statements import (
    read_coin,
    read_commitment,
    read_lock,
    read_vote,
)
from security.shared_round.terms.committee import Committee
from security.shared_round.terms.member_set import FrozenSet, Selection
from security.shared_round.terms.parameters import RoundParameters

T = TypeVar("T")

# A coordinator that repeats statements costs a signature check for each.
_MAX_REPEATS: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundEvidence:
    """Reads statements about one frozen set of one round."""

    params: RoundParameters
    committee: Committee
    frozen: FrozenSet

    def box(self, signed: Iterable[pb.SignedStatement]) -> BallotBox:
        """Put the votes for the set together.

        Raises:
            EvidenceInsufficientError: if fewer than a quorum voted.
            BadStatementError: if a statement is forged or another one, or two votes disagree.
        """

        def read(statement: pb.HolderStatement) -> tuple[bytes, ...]:
            return read_vote(
                statement,
                attempt=self.frozen.attempt,
                set_sha256=self.frozen.sha256,
                scheme=self.params.scheme,
            )

        return BallotBox.of(self.params, self.frozen.sha256, self.read_each(signed, read))

    def check_locks(self, box: BallotBox, signed: Iterable[pb.SignedStatement]) -> None:
        """Check that a quorum locked itself to the box.

        Raises:
            EvidenceInsufficientError: if fewer members of the box did.
            BadStatementError: if a statement is forged or another one.
        """
        locks = self.read_each(
            signed,
            lambda statement: read_lock(statement, set_sha256=self.frozen.sha256),
            among=box.holders,
        )
        mine = {holder: sha256 for holder, sha256 in locks.items() if sha256 == box.sha256}
        self._require_quorum("locks", mine)

    def check_commitments(self, signed: Iterable[pb.SignedStatement], selection: Selection) -> None:
        """Check that a quorum committed itself to the selection.

        Raises:
            EvidenceInsufficientError: if fewer holders did.
            BadStatementError: if a statement is forged or another one.
        """

        def read(statement: pb.HolderStatement) -> None:
            read_commitment(
                statement, set_sha256=self.frozen.sha256, selection_sha256=selection.sha256
            )

        self._require_quorum("commitments", self.read_each(signed, read))

    def coin(self, box: BallotBox, signed: Iterable[pb.SignedStatement]) -> Coin:
        """Open the box's coin.

        Raises:
            EvidenceInsufficientError: if fewer than a quorum of right shares are shown.
            BadStatementError: if a statement is forged or another one.
        """
        shares = self.read_each(
            signed,
            lambda statement: read_coin(
                statement, set_sha256=self.frozen.sha256, scheme=self.params.scheme
            ),
            among=box.holders,
        )
        return open_coin(self.params, box, shares)

    def read_each(
        self,
        signed: Iterable[pb.SignedStatement],
        read: Callable[[pb.HolderStatement], T],
        *,
        among: Container[int] | None = None,
    ) -> dict[int, T]:
        """Verify statements and read them, by holder.

        Args:
            signed: the statements.
            read: takes one to what it means.
            among: whose statements count; those of others are left out.

        Raises:
            BadStatementError: if one is forged, of another round, or not what `read` takes; or if
                a holder states two things.
        """
        unique = _without_repeats(list(signed), _MAX_REPEATS * len(self.committee.holders))
        found: dict[int, T] = {}
        for each in unique:
            statement = verify_statement(
                each, committee=self.committee, params_sha256=self.params.sha256
            )
            if statement.holder in found:
                msg = f"holder {statement.holder} is shown with two statements"
                raise BadStatementError(msg)
            found[statement.holder] = read(statement)
        return {h: value for h, value in found.items() if among is None or h in among}

    def _require_quorum(self, what: str, found: Mapping[int, object]) -> None:
        if len(found) < self.params.quorum:
            msg = f"{len(found)} {what} must be at least quorum={self.params.quorum}"
            raise EvidenceInsufficientError(msg)


def _without_repeats(signed: Sequence[pb.SignedStatement], most: int) -> list[pb.SignedStatement]:
    if len(signed) > most:
        msg = f"{len(signed)} statements must be at most {most}"
        raise BadStatementError(msg)
    return list({each.statement: each for each in signed}.values())
