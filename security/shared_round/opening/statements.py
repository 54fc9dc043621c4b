"""What a share holder states in a round, as values to build and to read.

Field elements travel as little-endian uint64, 8 bytes each in both fields. Reading checks what a
statement is about, its lengths and its range; whose statement it is, `signing.py` has checked.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from protos.fedagg.v1 import shared_round_pb2 as pb
from security.errors import BadStatementError
from security.secret_sharing.field import MersenneField, Words
from security.secret_sharing.threshold import Threshold
from security.shared_round.opening.ballot_box import BallotBox
from security.shared_round.opening.coins import CoinShare
from security.shared_round.opening.openings import OpeningValues

_WORD: Final = np.dtype("<u8")
_DIGEST_BYTES: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Speaker:
    """Builds one holder's statements of one round.

    Attributes:
        params_sha256: the round, 32 bytes.
        holder: who states, from 1.
    """

    params_sha256: bytes
    holder: int

    def receipt(self, *, device_id: str, header_sha256: bytes) -> pb.HolderStatement:
        """State that a device's share is durable here."""
        body = pb.ShareReceipt(device_id=device_id, header_sha256=header_sha256)
        return self._statement(receipt=body)

    def vote(
        self, *, attempt: int, set_sha256: bytes, commitments: Sequence[bytes]
    ) -> pb.HolderStatement:
        """State that this holder has every share of the set, and which pieces of its coin."""
        body = pb.Vote(attempt=attempt, set_sha256=set_sha256, coin_commitments=commitments)
        return self._statement(vote=body)

    def lock(self, box: BallotBox) -> pb.HolderStatement:
        """State for which box, and no other, this holder will ever reveal its pieces."""
        body = pb.BoxLock(set_sha256=box.set_sha256, box_sha256=box.sha256)
        return self._statement(lock=body)

    def coin(self, box: BallotBox, pieces: Sequence[bytes]) -> pb.HolderStatement:
        """State this holder's pieces of the coin."""
        body = pb.CoinShare(set_sha256=box.set_sha256, box_sha256=box.sha256, pieces=pieces)
        return self._statement(coin=body)

    def openings(
        self, *, set_sha256: bytes, coin_sha256: bytes, values: OpeningValues
    ) -> pb.HolderStatement:
        """State this holder's shares of everything that the checks open."""
        body = pb.Openings(
            set_sha256=set_sha256,
            coin_sha256=coin_sha256,
            consistency=words_to_bytes(values.consistency),
            norms=words_to_bytes(values.norms),
            wraps=words_to_bytes(values.wraps),
            distances=words_to_bytes(values.distances),
        )
        return self._statement(openings=body)

    def blame(
        self, *, set_sha256: bytes, coin_sha256: bytes, members: Sequence[int], wraps: Words
    ) -> pb.HolderStatement:
        """State this holder's shares of the wrap-around tests of single members."""
        body = pb.BlameOpenings(
            set_sha256=set_sha256,
            coin_sha256=coin_sha256,
            members=members,
            wraps=words_to_bytes(wraps),
        )
        return self._statement(blame=body)

    def commitment(self, *, set_sha256: bytes, selection_sha256: bytes) -> pb.HolderStatement:
        """State which sums, and no others, this holder will ever open in the round."""
        body = pb.Commitment(set_sha256=set_sha256, selection_sha256=selection_sha256)
        return self._statement(commitment=body)

    def sum_share(
        self, *, selection_sha256: bytes, num_sums: int, data_sha256: bytes
    ) -> pb.HolderStatement:
        """State the SHA-256 of this holder's shares of the sums."""
        body = pb.SumShare(
            selection_sha256=selection_sha256, num_sums=num_sums, data_sha256=data_sha256
        )
        return self._statement(sum=body)

    def _statement(  # noqa: PLR0913  # one keyword for each kind
        self,
        *,
        receipt: pb.ShareReceipt | None = None,
        vote: pb.Vote | None = None,
        lock: pb.BoxLock | None = None,
        coin: pb.CoinShare | None = None,
        openings: pb.Openings | None = None,
        blame: pb.BlameOpenings | None = None,
        commitment: pb.Commitment | None = None,
        sum: pb.SumShare | None = None,  # noqa: A002  # the name of the field
    ) -> pb.HolderStatement:
        return pb.HolderStatement(
            params_sha256=self.params_sha256,
            holder=self.holder,
            receipt=receipt,
            vote=vote,
            lock=lock,
            coin=coin,
            openings=openings,
            blame=blame,
            commitment=commitment,
            sum=sum,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OpeningSizes:
    """How many words each part of an opening must have."""

    consistency: int
    norms: int
    wraps: int
    distances: int


def read_receipt(statement: pb.HolderStatement) -> pb.ShareReceipt:
    """Return the receipt.

    Raises:
        BadStatementError: if it states something else, or names no device or header.
    """
    _expect(statement, "receipt")
    receipt = statement.receipt
    _digest("header_sha256", receipt.header_sha256)
    if not receipt.device_id:
        msg = "device_id of a receipt must not be empty"
        raise BadStatementError(msg)
    return receipt


def read_vote(
    statement: pb.HolderStatement, *, attempt: int, set_sha256: bytes, scheme: Threshold
) -> tuple[bytes, ...]:
    """Return what a vote for this set in this attempt says of its holder's pieces of the coin.

    Raises:
        BadStatementError: if it is another statement, or has other numbers of pieces or bytes.
    """
    _expect(statement, "vote")
    _same("set_sha256", statement.vote.set_sha256, set_sha256)
    if statement.vote.attempt != attempt:
        msg = f"attempt={statement.vote.attempt} of a vote must be {attempt}"
        raise BadStatementError(msg)
    return _pieces("coin_commitments", statement.holder, statement.vote.coin_commitments, scheme)


def read_lock(statement: pb.HolderStatement, *, set_sha256: bytes) -> bytes:
    """Return the box that a holder locked itself to.

    Raises:
        BadStatementError: if it states something else, or of another set.
    """
    _expect(statement, "lock")
    _same("set_sha256", statement.lock.set_sha256, set_sha256)
    return _digest("box_sha256", statement.lock.box_sha256)


def read_coin(statement: pb.HolderStatement, *, set_sha256: bytes, scheme: Threshold) -> CoinShare:
    """Return a holder's pieces of the coin.

    Raises:
        BadStatementError: if it states something else, of another set, or in other numbers.
    """
    _expect(statement, "coin")
    body = statement.coin
    _same("set_sha256", body.set_sha256, set_sha256)
    return CoinShare(
        box_sha256=_digest("box_sha256", body.box_sha256),
        pieces=_pieces("pieces", statement.holder, body.pieces, scheme),
    )


def read_openings(
    statement: pb.HolderStatement,
    *,
    set_sha256: bytes,
    coin_sha256: bytes,
    sizes: OpeningSizes,
    field: MersenneField,
) -> OpeningValues:
    """Return a holder's shares of what the checks open.

    Raises:
        BadStatementError: if it states something else, under another set or coin, in other
            numbers, or no field elements.
    """
    _expect(statement, "openings")
    body = statement.openings
    _same("set_sha256", body.set_sha256, set_sha256)
    _same("coin_sha256", body.coin_sha256, coin_sha256)
    return OpeningValues(
        consistency=words_from_bytes(body.consistency, count=sizes.consistency, field=field),
        norms=words_from_bytes(body.norms, count=sizes.norms, field=field),
        wraps=words_from_bytes(body.wraps, count=sizes.wraps, field=field),
        distances=words_from_bytes(body.distances, count=sizes.distances, field=field),
    )


def read_blame(  # noqa: PLR0913  # what it must be about, and in which numbers
    statement: pb.HolderStatement,
    *,
    set_sha256: bytes,
    coin_sha256: bytes,
    members: Sequence[int],
    wrap_tests: int,
    field: MersenneField,
) -> Words:
    """Return a holder's shares of the single members' tests, (members * wrap_tests,).

    Raises:
        BadStatementError: if it states something else, under another set or coin, about other
            members, in other numbers, or no field elements.
    """
    _expect(statement, "blame")
    body = statement.blame
    _same("set_sha256", body.set_sha256, set_sha256)
    _same("coin_sha256", body.coin_sha256, coin_sha256)
    if list(body.members) != list(members):
        msg = f"members of a blame opening must be the {len(members)} suspects"
        raise BadStatementError(msg)
    return words_from_bytes(body.wraps, count=wrap_tests * len(members), field=field)


def read_commitment(
    statement: pb.HolderStatement, *, set_sha256: bytes, selection_sha256: bytes
) -> None:
    """Check that the statement commits its holder to this selection of this set.

    Raises:
        BadStatementError: if it does not.
    """
    _expect(statement, "commitment")
    _same("set_sha256", statement.commitment.set_sha256, set_sha256)
    _same("selection_sha256", statement.commitment.selection_sha256, selection_sha256)


def read_sum_share(
    statement: pb.HolderStatement, *, selection_sha256: bytes, num_sums: int
) -> bytes:
    """Return the SHA-256 of the vectors that follow.

    Raises:
        BadStatementError: if it states something else, of another selection or number of sums.
    """
    _expect(statement, "sum")
    _same("selection_sha256", statement.sum.selection_sha256, selection_sha256)
    if statement.sum.num_sums != num_sums:
        msg = f"num_sums={statement.sum.num_sums} must be {num_sums}"
        raise BadStatementError(msg)
    return _digest("data_sha256", statement.sum.data_sha256)


def sums_from_bytes(
    data: bytes, *, data_sha256: bytes, num_sums: int, dim: int, field: MersenneField
) -> list[Words]:
    """Return the sums' shares, `num_sums` of (dim,).

    Raises:
        BadStatementError: if the data is not what the holder stated, or no field elements.
    """
    if hashlib.sha256(data).digest() != data_sha256:
        msg = "the share of the sums is not the one that its holder signed"
        raise BadStatementError(msg)
    words = words_from_bytes(data, count=num_sums * dim, field=field)
    return list(words.reshape(num_sums, dim))


def words_to_bytes(words: Words) -> bytes:
    """Return field elements as little-endian uint64."""
    return words.astype(_WORD, copy=False).tobytes()


def words_from_bytes(data: bytes, *, count: int, field: MersenneField) -> Words:
    """Read field elements.

    Returns:
        (count,) uint64, each below the modulus.

    Raises:
        BadStatementError: if there are not `count`, or one is no element of the field.
    """
    if len(data) != count * _WORD.itemsize:
        msg = f"{count} words must have {count * _WORD.itemsize} bytes, got {len(data)}"
        raise BadStatementError(msg)
    words = np.frombuffer(data, dtype=_WORD).astype(np.uint64)
    if count and int(words.max()) >= field.modulus:
        msg = f"a word of a statement must be below 2^{field.bits} - 1"
        raise BadStatementError(msg)
    return words


def _expect(statement: pb.HolderStatement, kind: str) -> None:
    found = statement.WhichOneof("statement")
    if found != kind:
        msg = f"holder {statement.holder} must state {kind}, got {found}"
        raise BadStatementError(msg)


def _same(name: str, value: bytes, expected: bytes) -> None:
    if value != expected:
        msg = f"{name}={value.hex()[:64]} must be {expected.hex()}"
        raise BadStatementError(msg)


def _pieces(
    name: str, holder: int, values: Sequence[bytes], scheme: Threshold
) -> tuple[bytes, ...]:
    """Return one value for each piece that the holder has."""
    count = len(scheme.pieces_of(holder))
    if len(values) != count:
        msg = f"{name} of holder {holder} must be {count}, got {len(values)}"
        raise BadStatementError(msg)
    return tuple(_digest(name, value) for value in values)


def _digest(name: str, value: bytes) -> bytes:
    if len(value) != _DIGEST_BYTES:
        msg = f"{name} must have {_DIGEST_BYTES} bytes, got {len(value)}"
        raise BadStatementError(msg)
    return value
