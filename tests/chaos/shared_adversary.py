"""A coordinator that follows no rule and has one holder's keys: it shows to each what it likes."""

from collections.abc import Iterable, Mapping
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
from security.secret_sharing.field import M61
from security.shared_round.coins import Coin, open_coin
from security.shared_round.holder_keys import HolderSecrets
from security.shared_round.member_set import FrozenSet, Member, Selection, SelectionMode
from security.shared_round.openings import OpeningValues, opening_sizes
from security.shared_round.parameters import RoundParameters
from security.shared_round.signing import sign_statement
from security.shared_round.statements import OpeningSizes, Speaker, read_coin, read_openings
from security.shared_round.verdicts import judge
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
        await self._ask(attack, "RevealCoin", pb.RevealCoinRequest(**names, votes=votes.values()))
        if attack.until is Step.COIN:
            return
        true_coin = self.log.coins[frozen.sha256]
        coins = self._shown(attack, true_coin, self._spun(attack, true_coin, "coin"))
        await self._ask(attack, "OpenChecks", pb.OpenChecksRequest(**names, coins=coins.values()))
        if attack.until is not Step.OPENINGS:
            await self._bind(attack, frozen, coins)

    async def _bind(self, attack: Attack, frozen: FrozenSet, coins: Shown) -> None:
        """Ask for commitments, and for the sums that follow from what is shown."""
        names: Any = {"params_sha256": self.params.sha256, "set_sha256": frozen.sha256}
        true_openings = self.log.openings[frozen.sha256]
        spun = self._spun(attack, true_openings, "openings")
        openings = self._shown(attack, true_openings, spun)
        mode = SelectionMode.DEGRADED_UNCHECKED if attack.degraded else SelectionMode.CHECKED
        commit = pb.CommitRequest(
            **names,
            mode=pb.SelectionMode.ValueType(mode.value),
            coins=coins.values(),
            openings=openings.values(),
        )
        await self._ask(attack, "Commit", commit)
        selection = self._selection(frozen, coins, openings, mode)
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
        vote = self._speaker.vote(attempt=frozen.attempt, set_sha256=frozen.sha256)
        return self._sign(vote)

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
        coins: Shown,
        openings: Shown,
        mode: SelectionMode,
    ) -> Selection:
        """What holders that are shown this would select; all members where that is nothing."""
        try:
            coin = self._coin(frozen, coins.values())
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

    def _coin(self, frozen: FrozenSet, coins: Iterable[Signed]) -> Coin:
        said = [read_statement(signed) for signed in coins]
        shares = {
            each.holder: read_coin(each, set_sha256=frozen.sha256, field=M61) for each in said
        }
        return open_coin(self.params, shares)


def spin(statement: round_pb.HolderStatement, kind: str, random: Random) -> None:
    """Make another statement of it, of the same form."""
    if kind == "coin":
        statement.coin.shares = other_word(statement.coin.shares, random)
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
