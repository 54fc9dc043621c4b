"""A coordinator that follows no rule and has one holder's keys: it shows to each what it likes."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from google.protobuf.message import Message

from aggregators.errors import AggregationError
from aggregators.shared_selection import select
from protos.fedagg.v1 import share_holder_pb2 as pb
from protos.fedagg.v1 import shared_round_pb2 as round_pb
from security.errors import SecurityError
from security.shared_round.keys.holder_keys import HolderSecrets
from security.shared_round.keys.signing import sign_statement
from security.shared_round.opening.ballot_box import BallotBox
from security.shared_round.opening.coins import Coin, open_coin
from security.shared_round.opening.openings import OpeningValues, opening_sizes
from security.shared_round.opening.statements import (
    OpeningSizes,
    Speaker,
    read_coin,
    read_openings,
    read_vote,
)
from security.shared_round.opening.verdicts import judge
from security.shared_round.terms.member_set import FrozenSet, Member, Selection, SelectionMode
from security.shared_round.terms.parameters import RoundParameters
from tests.chaos.shared_operations import LIAR, Attack, Step
from tests.chaos.shared_statements import StatementLog
from tests.chaos.shared_wire import Refused, Wire, read_statement

Signed = round_pb.SignedStatement
Shown = Mapping[int, Signed]
_WORD_BYTES: Final = 8


@dataclass(frozen=True, kw_only=True)
class Adversary:
    """Attacks one round through the wires, with all that ever left the holders.

    Attributes:
        params: the round.
        log: everything the holders stated in it.
        wires: to the holders.
        secrets: keys of the dishonest holder.
    """

    params: RoundParameters
    log: StatementLog
    wires: Mapping[int, Wire]
    secrets: HolderSecrets

    async def attack(self, attack: Attack) -> None:
        """Go as far as the holders let it."""
        frozen = self._frozen(attack)
        if frozen is None:
            return
        names: Any = {"params_sha256": self.params.sha256, "set_sha256": frozen.sha256}
        await self._ask(attack, "Freeze", _freeze_request(frozen))
        if attack.until is Step.FREEZE:
            return
        votes = self._shown(attack, self.log.votes[frozen.sha256], self._vote(frozen))
        await self._ask(attack, "LockBox", pb.LockBoxRequest(**names, votes=votes.values()))
        locks = self._shown(attack, self.log.locks[frozen.sha256], self._lock(frozen, votes))
        reveal = pb.RevealCoinRequest(**names, votes=votes.values(), locks=locks.values())
        await self._ask(attack, "RevealCoin", reveal)
        if attack.until is Step.COIN:
            return
        true_coin = self.log.coins[frozen.sha256]
        coins = self._shown(attack, true_coin, self._spun(attack, true_coin, "coin"))
        evidence = _Evidence(votes=votes, coins=coins)
        check = pb.OpenChecksRequest(**names, votes=votes.values(), coins=coins.values())
        await self._ask(attack, "OpenChecks", check)
        if attack.until is not Step.OPENINGS:
            await self._bind(attack, frozen, evidence)

    async def _bind(self, attack: Attack, frozen: FrozenSet, evidence: "_Evidence") -> None:
        """Ask for commitments, and for the sums that follow from what is shown."""
        names: Any = {"params_sha256": self.params.sha256, "set_sha256": frozen.sha256}
        true_openings = self.log.openings[frozen.sha256]
        spun = self._spun(attack, true_openings, "openings")
        openings = self._shown(attack, true_openings, spun)
        mode = SelectionMode.DEGRADED_UNCHECKED if attack.degraded else SelectionMode.CHECKED
        commit = pb.CommitRequest(
            **names,
            mode=pb.SelectionMode.ValueType(mode.value),
            votes=evidence.votes.values(),
            coins=evidence.coins.values(),
            openings=openings.values(),
        )
        await self._ask(attack, "Commit", commit)
        selection = self._selection(frozen, evidence, openings, mode)
        if attack.until is Step.COMMIT:
            return
        own = self._speaker.commitment(set_sha256=frozen.sha256, selection_sha256=selection.sha256)
        commitments = self._shown(attack, self.log.commitments[selection.sha256], self._sign(own))
        release = pb.ReleaseSumRequest(
            **names,
            sums=[pb.SumMembers(members=members) for members in selection.sums],
            mode=pb.SelectionMode.ValueType(mode.value),
            commitments=commitments.values(),
        )
        await self._ask(attack, "ReleaseSum", release)

    @property
    def _speaker(self) -> Speaker:
        return Speaker(params_sha256=self.params.sha256, holder=LIAR)

    def _sign(self, statement: round_pb.HolderStatement) -> Signed:
        return sign_statement(self.secrets, statement)

    def _vote(self, frozen: FrozenSet) -> Signed:
        """Vote; its commitments are those that others named, and anything where nobody did."""
        known: dict[int, bytes] = {}
        for signed in self.log.votes[frozen.sha256].values():
            said = read_statement(signed)
            pieces = self.params.scheme.pieces_of(said.holder)
            known.update(zip(pieces, said.vote.coin_commitments, strict=True))
        commitments = [known.get(at, bytes(32)) for at in self.params.scheme.pieces_of(LIAR)]
        vote = self._speaker.vote(
            attempt=frozen.attempt, set_sha256=frozen.sha256, commitments=commitments
        )
        return self._sign(vote)

    def _lock(self, frozen: FrozenSet, votes: Shown) -> Signed | None:
        try:
            return self._sign(self._speaker.lock(self._box(frozen, votes)))
        except SecurityError:
            return None

    def _box(self, frozen: FrozenSet, votes: Shown) -> BallotBox:
        commitments = {
            holder: read_vote(
                read_statement(signed),
                attempt=frozen.attempt,
                set_sha256=frozen.sha256,
                scheme=self.params.scheme,
            )
            for holder, signed in votes.items()
        }
        return BallotBox.of(self.params, frozen.sha256, commitments)

    def _frozen(self, attack: Attack) -> FrozenSet | None:
        """Devices of which any holder gave a receipt, but for the one that is left out."""
        found = {
            device: sha for given in self.log.receipts.values() for device, sha in given.items()
        }
        members = [
            Member(device_id=device, header_sha256=found[device]) for device in sorted(found)
        ]
        if 0 <= attack.leave_out < len(members):
            del members[attack.leave_out]
        if not members:
            return None
        return FrozenSet(
            params_sha256=self.params.sha256, attempt=attack.attempt, members=tuple(members)
        )

    async def _ask(self, attack: Attack, method: str, request: Message) -> None:
        for holder in sorted(attack.holders):
            with suppress(Refused):
                await self.wires[holder].call(method, [request.SerializeToString()])

    def _shown(self, attack: Attack, stated: Shown, own: Signed | None) -> dict[int, Signed]:
        """What it shows of what was stated, with its own holder's part as it likes it."""
        shown = {holder: stated[holder] for holder in attack.evidence if holder in stated}
        if LIAR in attack.evidence and own is not None:
            shown[LIAR] = own
        return dict(sorted(shown.items()))

    def _spun(self, attack: Attack, stated: Shown, kind: str) -> Signed | None:
        """Another statement of the dishonest holder than the true one, or that of all others."""
        if not attack.spin or not stated:
            return None
        statement = read_statement(stated.get(LIAR) or next(iter(stated.values())))
        statement.holder = LIAR
        spin(statement, kind, Random(attack.spin))
        return self._sign(statement)

    def _selection(
        self,
        frozen: FrozenSet,
        evidence: "_Evidence",
        openings: Shown,
        mode: SelectionMode,
    ) -> Selection:
        """What holders that are shown this would select; all members where that is nothing."""
        try:
            coin = self._coin(frozen, evidence)
            names = ("consistency", "norms", "wraps", "distances")
            sizes = dict(zip(names, opening_sizes(self.params, len(frozen.members)), strict=True))
            rows: dict[int, OpeningValues] = {
                holder: read_openings(
                    read_statement(signed),
                    set_sha256=frozen.sha256,
                    coin_sha256=coin.sha256,
                    sizes=OpeningSizes(**sizes),
                    field=self.params.field,
                )
                for holder, signed in openings.items()
            }
            verdict = judge(self.params, coin, len(frozen.members), rows, mode=mode)
            return select(self.params, coin, verdict, set_sha256=frozen.sha256, mode=mode)
        except (SecurityError, AggregationError):
            everybody = tuple(range(len(frozen.members)))
            return Selection(set_sha256=frozen.sha256, mode=mode, sums=(everybody,))

    def _coin(self, frozen: FrozenSet, evidence: "_Evidence") -> Coin:
        said = [read_statement(signed) for signed in evidence.coins.values()]
        shares = {
            each.holder: read_coin(each, set_sha256=frozen.sha256, scheme=self.params.scheme)
            for each in said
        }
        return open_coin(self.params, self._box(frozen, evidence.votes), shares)


@dataclass(frozen=True, kw_only=True)
class _Evidence:
    """What it shows of a set: the box, and shares of its coin."""

    votes: Shown
    coins: Shown


def spin(statement: round_pb.HolderStatement, kind: str, random: Random) -> None:
    """Make another statement of it, of the same form."""
    if kind == "coin":
        statement.coin.pieces[0] = random.randbytes(len(statement.coin.pieces[0]))
    elif kind == "openings":
        parts = ("consistency", "norms", "wraps")
        opened = [name for name in parts if getattr(statement.openings, name)]
        if opened:
            part = random.choice(opened)
            words = other_word(getattr(statement.openings, part), random)
            setattr(statement.openings, part, words)


def other_word(words: bytes, random: Random) -> bytes:
    """Replace one word by another one of the field."""
    place = _WORD_BYTES * random.randrange(len(words) // _WORD_BYTES)
    word = random.randrange(2**31 - 1).to_bytes(_WORD_BYTES, "little")
    return words[:place] + word + words[place + _WORD_BYTES :]


def _freeze_request(frozen: FrozenSet) -> pb.FreezeRequest:
    return pb.FreezeRequest(
        params_sha256=frozen.params_sha256,
        attempt=frozen.attempt,
        members=[
            pb.Member(device_id=member.device_id, header_sha256=member.header_sha256)
            for member in frozen.members
        ],
    )
