"""The shares of a frozen set as vectors, read from storage chunk by chunk whenever they are asked.

Nothing is kept between chunks: a set may be far larger than the memory.
"""

from collections.abc import Callable, Iterator, Sequence

from protos.fedagg.v1 import shared_round_pb2 as pb
from security.errors import SealBrokenError
from security.secret_sharing.field import Words
from security.shared_round.keys.signing import VerifiedHeader
from security.shared_round.terms.member_set import FrozenSet, Member
from security.shared_round.terms.parameter_fields import CHUNK_BYTES, TAG_BYTES
from security.shared_round.terms.parameters import RoundParameters
from security.shared_round.update.pieces import SharePieces
from server.errors import ShareConflict, ShareMissing
from server.holder.shares.intake import OpenedFrames
from server.holder.storage.holder_storage import HolderStorage
from server.holder.storage.ledger import ShareRow
from server.holder.storage.membership import HolderSelf


class StoredShares:
    """This holder's shares of updates, by round and device. For any number of threads."""

    def __init__(self, me: HolderSelf, storage: HolderStorage, frames: OpenedFrames) -> None:
        self._me = me
        self._storage = storage
        self._frames = frames

    def require_all(self, frozen: FrozenSet, members: Sequence[Member]) -> None:
        """Check that the share of every member is stored.

        Raises:
            ShareMissing: if one is not.
            ShareConflict: if another update of a member is.
        """
        stored = self._storage.read(lambda ledger: ledger.header_digests(frozen.params_sha256))
        for member in members:
            header_sha256 = stored.get(member.device_id)
            if header_sha256 is None:
                msg = f"the share of device {member.device_id!r} is not stored here"
                raise ShareMissing(msg)
            if header_sha256 != member.header_sha256:
                msg = f"the share of device {member.device_id!r} is stored under another header"
                raise ShareConflict(msg)

    def vectors(
        self, params: RoundParameters, frozen: FrozenSet, positions: Sequence[int]
    ) -> "list[StoredShare]":
        """Return shares of the members at these positions, in that order."""
        return [StoredShare(self, params, frozen.members[position]) for position in positions]

    def noise(self, params: RoundParameters, frozen: FrozenSet) -> "list[StoredShare]":
        """Return shares of the dealers' noise, in the set's order."""
        return [StoredShare(self, params, dealer) for dealer in frozen.dealers]

    def weight(self, params: RoundParameters, member: Member) -> int:
        """Return the weight of a member's update by its staleness."""
        row = self._row(params, member)
        return params.staleness_weight(_header(row).model_version)

    def pieces(self, params: RoundParameters, member: Member) -> SharePieces:
        """Return what makes the words of one share.

        Raises:
            ShareMissing: if it is not stored, or purged.
        """
        row = self._row(params, member)
        header = VerifiedHeader(
            device_id=row.device_id, header=_header(row), header_sha256=row.header_sha256
        )
        keys = self._frames.open(params, header, row.frame)
        body = self._body(row) if params.has_body(self._me.index) else None
        return SharePieces(params, keys, self._me.index, body)

    def _row(self, params: RoundParameters, member: Member) -> ShareRow:
        row = self._storage.read(lambda ledger: ledger.share(params.sha256, member.device_id))
        if row is None or not row.frame or row.header_sha256 != member.header_sha256:
            msg = f"the share of device {member.device_id!r} is not stored here"
            raise ShareMissing(msg)
        return row

    def _body(self, row: ShareRow) -> Callable[[int], bytes]:
        step = CHUNK_BYTES + TAG_BYTES
        if not row.body_file:
            return lambda chunk: row.body[chunk * step : (chunk + 1) * step]
        path = self._storage.bodies.path(row.body_file)

        def read(chunk: int) -> bytes:
            with path.open("rb") as file:
                file.seek(chunk * step)
                return file.read(step)

        return read


class StoredShare:
    """One stored share; `chunks` may be read any number of times."""

    def __init__(self, shares: StoredShares, params: RoundParameters, member: Member) -> None:
        self._shares = shares
        self._params = params
        self._member = member

    def chunks(self) -> Iterator[tuple[int, Words]]:
        """Yield position and words of every chunk, in order, extras included.

        Raises:
            ShareMissing: if the share is not there any more, or damaged.
        """
        try:
            yield from self._shares.pieces(self._params, self._member).chunks()
        except (OSError, SealBrokenError) as error:
            msg = f"the stored share of device {self._member.device_id!r} cannot be read"
            raise ShareMissing(msg) from error


def _header(row: ShareRow) -> pb.SharedHeader:
    return pb.SharedHeader.FromString(pb.SignedHeader.FromString(row.header).header)
