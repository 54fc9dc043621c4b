"""Everything that ever left the holders, and what honest ones must never have stated.

The wires write down what the holders answer, also answers that are lost. Nothing here asks a
holder's own memory.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from protos.fedagg.v1 import shared_round_pb2 as pb
from tests.chaos.promise import require
from tests.chaos.shared_operations import LIAR, QUORUM
from tests.chaos.shared_wire import read_statement

_ORDER: Final = ("receipt", "vote", "lock", "coin", "openings", "blame", "commitment", "sum")


@dataclass
class StatementLog:
    """The statements of one round, in the order in which they left.

    Attributes:
        receipts: header hash by holder and device.
        locks, coins, openings, blame: statements by set and holder.
        commitments: statements by selection and holder.
        selections: of which honest holders released their shares.
    """

    receipts: dict[int, dict[str, bytes]] = field(default_factory=lambda: defaultdict(dict))
    votes: dict[bytes, dict[int, pb.SignedStatement]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    locks: dict[bytes, dict[int, pb.SignedStatement]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    coins: dict[bytes, dict[int, pb.SignedStatement]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    openings: dict[bytes, dict[int, pb.SignedStatement]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    blame: dict[bytes, dict[int, pb.SignedStatement]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    commitments: dict[bytes, dict[int, pb.SignedStatement]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    selections: set[bytes] = field(default_factory=set)
    _said: dict[tuple[int, str, bytes], bytes] = field(default_factory=dict)
    _attempts: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    _attempt_of: dict[bytes, int] = field(default_factory=dict)
    _bound: dict[tuple[int, str], bytes] = field(default_factory=dict)
    _coin: dict[bytes, bytes] = field(default_factory=dict)

    def hear(self, holder: int, signed: pb.SignedStatement) -> None:
        """Write a statement down; an honest holder's must fit to all before it.

        Raises:
            BrokenPromise: if it does not.
        """
        said = read_statement(signed)
        kind = said.WhichOneof("statement") or ""
        require(kind in _ORDER, f"holder {holder} stated {kind!r}")
        if kind == "receipt":
            self.receipts[holder][said.receipt.device_id] = said.receipt.header_sha256
        elif kind != "sum":
            about: bytes = (
                said.commitment.selection_sha256
                if kind == "commitment"
                else getattr(said, kind).set_sha256
            )
            kept = getattr(self, kind if kind in {"openings", "blame"} else f"{kind}s")
            kept[about][holder] = signed
        if holder != LIAR:
            self._judge(holder, kind, said, signed)

    def _judge(
        self, holder: int, kind: str, said: pb.HolderStatement, signed: pb.SignedStatement
    ) -> None:
        require(said.holder == holder, f"holder {holder} spoke as {said.holder}")
        data = signed.SerializeToString(deterministic=True)
        known = self._said.setdefault((holder, kind, _subject(kind, said)), data)
        require(known == data, f"holder {holder} gave two different answers: {kind}")
        match kind:
            case "vote":
                self._attempt_of[said.vote.set_sha256] = said.vote.attempt
                self._attempts[holder] = max(self._attempts[holder], said.vote.attempt)
                self._require_no_later_vote(holder)
            case "lock":
                self._bind(holder, "coin", said.lock.set_sha256)
                self._bind(holder, "box", said.lock.box_sha256)
                self._require_no_later_vote(holder)
                self._require_quorum(self.votes[said.lock.set_sha256], "votes")
            case "coin":
                self._bind(holder, "coin", said.coin.set_sha256)
                self._bind(holder, "box", said.coin.box_sha256)
                self._require_no_later_vote(holder)
                self._require_quorum(self._locked(said.coin), "locks")
            case "openings" | "blame":
                opened = getattr(said, kind)
                self._bind(holder, "coin", opened.set_sha256)
                self._bind(holder, "toss", opened.coin_sha256)
                toss = self._coin.setdefault(b"", opened.set_sha256 + opened.coin_sha256)
                require(
                    toss == opened.set_sha256 + opened.coin_sha256,
                    "honest holders opened checks under two coins",
                )
            case "commitment":
                self._bind(holder, "commitment", said.commitment.selection_sha256)
            case "sum":
                self._release(holder, said.sum)

    def _locked(self, coin: pb.CoinShare) -> list[int]:
        """Holders that locked themselves to the box that a share of the coin is of."""
        return [
            holder
            for holder, signed in self.locks[coin.set_sha256].items()
            if read_statement(signed).lock.box_sha256 == coin.box_sha256
        ]

    def _require_no_later_vote(self, holder: int) -> None:
        revealed = self._bound.get((holder, "coin"), b"")
        last = self._attempt_of.get(revealed, self._attempts[holder])
        require(
            self._attempts[holder] <= last,
            f"holder {holder} voted again though it was locked to a box",
        )

    def _release(self, holder: int, said: pb.SumShare) -> None:
        self._bind(holder, "sum", said.data_sha256)
        self._bind(holder, "commitment", said.selection_sha256)
        self.selections.add(said.selection_sha256)
        require(len(self.selections) == 1, "honest holders released two selections")
        self._require_quorum(self.commitments[said.selection_sha256], "commitments")

    def _bind(self, holder: int, what: str, value: bytes) -> None:
        known = self._bound.setdefault((holder, what), value)
        require(known == value, f"holder {holder} is bound to two: {what}")

    def _require_quorum(self, found: Iterable[int], what: str) -> None:
        # The dishonest holder signs whatever is wanted, on no wire.
        count = len({*found} | {LIAR})
        require(count >= QUORUM, f"{count} {what} made a holder go on")


def _subject(kind: str, said: pb.HolderStatement) -> bytes:
    match kind:
        case "receipt":
            return said.receipt.device_id.encode()
        case "vote":
            return said.vote.attempt.to_bytes(4, "little")
        case "coin" | "openings":
            subject: bytes = getattr(said, kind).set_sha256
            return subject
        case "blame":
            positions = b"".join(each.to_bytes(4, "little") for each in said.blame.members)
            return said.blame.set_sha256 + positions
    return b""  # one a round
