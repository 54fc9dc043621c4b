"""What a holder concludes from the evidence that it is shown: the verdict and the selection."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from aggregators.errors import AggregationError
from aggregators.shared_selection import select
from protos.fedagg.v1 import shared_round_pb2 as pb
from security.errors import BadStatementError, EvidenceInsufficientError
from security.secret_sharing.field import Words
from security.shared_round.opening.ballot_box import BallotBox
from security.shared_round.opening.coins import Coin
from security.shared_round.opening.openings import opening_sizes
from security.shared_round.opening.statements import OpeningSizes, read_blame, read_openings
from security.shared_round.opening.verdicts import Verdict, judge, judge_blame
from security.shared_round.terms.member_set import Selection, SelectionMode, may_select
from security.shared_round.terms.parameters import RoundParameters
from server.errors import MalformedRequest
from server.holder.statements.evidence import RoundEvidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """One set, its ballot box and coin. The same evidence gives every holder the same conclusions.

    Statements of holders outside the box do not count.
    """

    evidence: RoundEvidence
    box: BallotBox
    coin: Coin

    @classmethod
    def of(
        cls,
        evidence: RoundEvidence,
        votes: Iterable[pb.SignedStatement],
        coins: Iterable[pb.SignedStatement],
    ) -> "Judgement":
        """Open the set's coin.

        Raises:
            EvidenceInsufficientError, BadStatementError: if what is shown does not open it.
        """
        box = evidence.box(votes)
        return cls(evidence=evidence, box=box, coin=evidence.coin(box, coins))

    def require_member(self, holder: int) -> None:
        """Refuse to open checks with shares that came, perhaps, after the coin was known.

        Raises:
            EvidenceInsufficientError: if the holder's vote is not in the box.
        """
        if holder not in self.box.holders:
            msg = f"holder {holder} must be among those of the votes, {list(self.box.holders)}"
            raise EvidenceInsufficientError(msg)

    def suspects(self, openings: Iterable[pb.SignedStatement]) -> tuple[int, ...]:
        """Return positions of the members of failed groups; at least one.

        Raises:
            EvidenceInsufficientError: if the openings show no group that failed.
            BadStatementError: if a statement is forged or another one.
        """
        shown = list(openings)
        try:
            verdict = self._verdict(shown, SelectionMode.CHECKED)
        except EvidenceInsufficientError:
            # Too few for products; groups are judged by what is linear.
            verdict = self._verdict(shown, SelectionMode.DEGRADED_UNCHECKED)
        if not verdict.suspects:
            msg = "the openings show no group that failed"
            raise EvidenceInsufficientError(msg)
        return verdict.suspects

    def selection(
        self,
        openings: Iterable[pb.SignedStatement],
        blame: Iterable[pb.SignedStatement],
        *,
        mode: SelectionMode,
    ) -> Selection:
        """Return the sums that follow from the evidence.

        Raises:
            MalformedRequest: if the round does not allow the mode.
            EvidenceInsufficientError: if the statements do not settle who passed, or too few did.
            BadStatementError: if a statement is forged or another one.
        """
        params = self.evidence.params
        if not may_select(mode, params.degraded):
            msg = f"mode={mode.name} is not what degraded={params.degraded.name} allows"
            raise MalformedRequest(msg)
        verdict = self._verdict(openings, mode)
        if verdict.suspects:
            rows = self.evidence.read_each(
                blame, lambda said: self._blame(said, verdict.suspects), among=self.box.holders
            )
            verdict = judge_blame(params, verdict, rows)
        try:
            return select(
                params, self.coin, verdict, set_sha256=self.evidence.frozen.sha256, mode=mode
            )
        except AggregationError as error:
            raise EvidenceInsufficientError(str(error)) from error

    def _verdict(self, openings: Iterable[pb.SignedStatement], mode: SelectionMode) -> Verdict:
        params, frozen = self.evidence.params, self.evidence.frozen
        sizes = _sizes(params, len(frozen.members))
        rows = self.evidence.read_each(
            openings,
            lambda statement: read_openings(
                statement,
                set_sha256=frozen.sha256,
                coin_sha256=self.coin.sha256,
                sizes=sizes,
                field=params.field,
            ),
            among=self.box.holders,
        )
        return judge(params, self.coin, len(frozen.members), rows, mode=mode)

    def _blame(self, statement: pb.HolderStatement, suspects: tuple[int, ...]) -> Words:
        """Pick words of the suspects; a holder may have been asked about others along with them."""
        params = self.evidence.params
        members = list(statement.blame.members)
        words = read_blame(
            statement,
            set_sha256=self.evidence.frozen.sha256,
            coin_sha256=self.coin.sha256,
            members=members,
            wrap_tests=params.wrap_tests,
            field=params.field,
        ).reshape(len(members), params.wrap_tests)
        places = {position: place for place, position in enumerate(members)}
        missing = [position for position in suspects if position not in places]
        if missing:
            msg = f"blame of holder {statement.holder} must be about member {missing[0]} too"
            raise BadStatementError(msg)
        found: Words = np.concatenate([words[places[position]] for position in suspects])
        return found


def _sizes(params: RoundParameters, num_members: int) -> OpeningSizes:
    consistency, norms, wraps, distances = opening_sizes(params, num_members)
    return OpeningSizes(consistency=consistency, norms=norms, wraps=wraps, distances=distances)
