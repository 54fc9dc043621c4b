"""How shares of updates and of noise come in: verified whole, then stored, then receipted."""

import contextlib
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from protos.fedagg.v1 import share_holder_pb2 as pb
from protos.fedagg.v1 import shared_round_pb2 as shared_pb
from security.errors import SharedRoundError
from security.shared_round.keys.dealers import verify_dealer
from security.shared_round.keys.signing import VerifiedHeader
from security.shared_round.terms.parameters import RoundParameters
from security.shared_round.update.pieces import BodyCheck, PieceKeys, open_frame
from security.shared_round.update.shared_header import check_header
from server.errors import MalformedRequest, ServiceError, ShareConflict
from server.holder.refusals import as_service_error, stepped
from server.holder.storage.file_area import NewFile
from server.holder.storage.holder_state import ShareOffered
from server.holder.storage.holder_storage import HolderStorage
from server.holder.storage.ledger import Ledger, ShareRow
from server.holder.storage.membership import HolderSelf, KnownRounds, require_round, serialize

_KNOWN_KEYS: Final = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class IntakeParts:
    """What shares are verified with and stored in."""

    me: HolderSelf
    rounds: KnownRounds
    storage: HolderStorage
    inline_max_bytes: int


class OpenedFrames:
    """Keys of shares that were opened lately. They can be opened again from what is stored."""

    def __init__(self, me: HolderSelf) -> None:
        self._me = me
        self._lock = threading.Lock()
        self._keys: OrderedDict[tuple[bytes, str, bytes], PieceKeys] = OrderedDict()

    def open(self, params: RoundParameters, header: VerifiedHeader, frame: bytes) -> PieceKeys:
        """Open the keys of a share.

        Raises:
            SharedRoundError: as `open_frame` does.
        """
        # The frame is part of the name: only a frame that was opened finds its keys here.
        name = (params.sha256, header.device_id, hashlib.sha256(frame).digest())
        with self._lock:
            known = self._keys.get(name)
        if known is not None:
            return known
        keys = open_frame(params, self._me.secrets, self._me.index, header, frame)
        with self._lock:
            self._keys[name] = keys
            if len(self._keys) > _KNOWN_KEYS:
                self._keys.popitem(last=False)
        return keys

    def forget(self, params_sha256: bytes) -> None:
        """Drop the keys of a round."""
        with self._lock:
            for name in [name for name in self._keys if name[0] == params_sha256]:
                del self._keys[name]


class IncomingShare:
    """One share between its first byte and its receipt. A context: left unfinished, it is gone.

    For one thread at a time.
    """

    def __init__(
        self,
        *,
        header: VerifiedHeader,
        signed_header: bytes,
        frame: bytes,
        check: BodyCheck | None,
        file: NewFile | None,
    ) -> None:
        self.header = header
        self._signed_header = signed_header
        self._frame = frame
        self._check = check
        self._file = file
        self._inline = bytearray()

    def __enter__(self) -> "IncomingShare":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.discard()

    def feed(self, data: bytes) -> None:
        """Check and keep the next bytes of the body.

        Raises:
            SharedRoundError: if they are not the body's; nothing is kept then.
            MalformedRequest: if there is no body.
        """
        if self._check is None:
            msg = "this holder gets no body in this round"
            raise MalformedRequest(msg)
        self._check.feed(data)
        if self._file is not None:
            self._file.write(data)
        else:
            self._inline += data

    def finish(self) -> ShareRow:
        """Check the whole, and make a file of it durable.

        Raises:
            SharedRoundError: if bytes are missing or are not those the device signed.
        """
        if self._check is not None:
            self._check.finish()
        if self._file is not None:
            self._file.finish()
        return ShareRow(
            device_id=self.header.device_id,
            header_sha256=self.header.header_sha256,
            header=self._signed_header,
            receipt=b"",
            frame=self._frame,
            body=bytes(self._inline),
            body_file=self._file.name if self._file is not None else "",
        )


@dataclass(frozen=True, slots=True)
class ShareReceipt:
    """A serialized SignedStatement that the share is durable here."""

    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferedShare:
    """A share whose header and sizes hold.

    Attributes:
        params: of its round.
        header: which device made it.
        start: what it begins with.
    """

    params: RoundParameters
    header: VerifiedHeader
    start: pb.ShareStart = field(repr=False)

    @property
    def device_id(self) -> str:
        """Who made it, as its signature proves."""
        return self.header.device_id


def _everyone(_: str) -> None:
    """Let every sender hand in the share."""


class Intake:
    """Takes shares in. For any number of threads; every method blocks.

    Durable when a receipt is returned: the row and, before it, the body's file.
    Idempotent: one share a device and round; the same header gives the same receipt.
    """

    def __init__(self, parts: IntakeParts, frames: OpenedFrames) -> None:
        self._parts = parts
        self._frames = frames

    def verify(
        self, start: pb.ShareStart, check_sender: Callable[[str], None]
    ) -> OfferedShare | ShareReceipt:
        """Verify what tells cheaply whether a share can be taken; nothing is opened or kept.

        Args:
            start: what the share begins with.
            check_sender: raises where the caller may not hand in a device's share.

        Returns:
            What to `begin`, or the receipt where this share is stored already.

        Raises:
            SharedRoundError, ServiceError: why the share is refused.
        """
        me = self._parts.me
        params = self._parts.rounds.parameters(start.params_sha256)
        header = self._verified(params, start.header)
        check_sender(header.device_id)
        check_header(params, header.header)

        def known(ledger: Ledger) -> bytes | None:
            found = _stored_receipt(ledger, params.sha256, header)
            if found is None:
                row = require_round(ledger.round(params.sha256), params.sha256)
                stepped(row.state, ShareOffered())
            return found

        receipt = self._parts.storage.read(known)
        if receipt is not None:
            return ShareReceipt(receipt)
        expected = params.body_bytes(0) if params.has_body(me.index) else 0
        if start.body_bytes != expected:
            msg = f"body_bytes={start.body_bytes} must be {expected} for holder {me.index}"
            raise MalformedRequest(msg)
        return OfferedShare(params=params, header=header, start=start)

    def begin(self, offered: OfferedShare) -> IncomingShare:
        """Open the keys of a share, and a file where its body is large.

        Raises:
            SharedRoundError, ServiceError: why the share is refused.
        """
        me, storage = self._parts.me, self._parts.storage
        params, header, start = offered.params, offered.header, offered.start
        keys = self._frames.open(params, header, start.frame)
        has_body = params.has_body(me.index)
        is_large = start.body_bytes > self._parts.inline_max_bytes
        return IncomingShare(
            header=header,
            signed_header=serialize(start.header),
            frame=start.frame,
            check=BodyCheck(params, keys, header, me.index) if has_body else None,
            file=storage.bodies.create() if is_large else None,
        )

    def store(self, params_sha256: bytes, share: ShareRow) -> ShareReceipt:
        """Store a finished share.

        Raises:
            ServiceError: if another was stored meanwhile, or the round takes no more.
        """
        outcome = self.store_all([(params_sha256, share)])[0]
        if isinstance(outcome, ServiceError):
            raise outcome
        return outcome

    def store_all(
        self, shares: Sequence[tuple[bytes, ShareRow]]
    ) -> list[ShareReceipt | ServiceError]:
        """Store finished shares of any rounds in one transaction; one outcome each, in order."""
        signed = [
            (params_sha256, share, self._receipt(params_sha256, share))
            for params_sha256, share in shares
        ]

        def change(ledger: Ledger) -> list[ShareReceipt | ServiceError]:
            return [_insert(ledger, params, share, receipt) for params, share, receipt in signed]

        outcomes: list[ShareReceipt | ServiceError] = []
        try:
            outcomes = self._parts.storage.write(change)
        finally:
            self._delete_unused(signed, outcomes)
        return outcomes

    def take(
        self, inline: pb.InlineShare, check_sender: Callable[[str], None] = _everyone
    ) -> tuple[bytes, ShareRow] | ShareReceipt | ServiceError:
        """Verify one small share with its body; the row to store, its receipt, or why not."""
        try:
            offered = self.verify(inline.start, check_sender)
            if isinstance(offered, ShareReceipt):
                return offered
            with self.begin(offered) as begun:
                if inline.body:
                    begun.feed(inline.body)
                return inline.start.params_sha256, begun.finish()
        except ServiceError as error:
            return error
        except SharedRoundError as error:
            return as_service_error(error)

    def _verified(self, params: RoundParameters, signed: shared_pb.SignedHeader) -> VerifiedHeader:
        """Tell who signed a header: a device, or in a round with noise a holder that deals it."""
        me = self._parts.me
        if params.has_noise and not signed.certificate:
            return verify_dealer(signed, me.committee)
        return me.authority.verify(signed, now_s=me.now_s())

    def _receipt(self, params_sha256: bytes, share: ShareRow) -> bytes:
        me = self._parts.me
        return me.sign(
            me.speaker(params_sha256).receipt(
                device_id=share.device_id, header_sha256=share.header_sha256
            )
        )

    def _delete_unused(
        self,
        signed: Sequence[tuple[bytes, ShareRow, bytes]],
        outcomes: Sequence[ShareReceipt | ServiceError],
    ) -> None:
        """Delete files that got no row: refused, or stored by another call a moment before."""
        for number, (params_sha256, share, _) in enumerate(signed):
            is_answered = number < len(outcomes)
            if share.body_file and not (is_answered and self._is_kept(params_sha256, share)):
                with contextlib.suppress(OSError):
                    self._parts.storage.bodies.delete(share.body_file)

    def _is_kept(self, params_sha256: bytes, share: ShareRow) -> bool:
        row = self._parts.storage.read(lambda ledger: ledger.share(params_sha256, share.device_id))
        return row is not None and row.body_file == share.body_file


def _insert(
    ledger: Ledger, params_sha256: bytes, share: ShareRow, receipt: bytes
) -> ShareReceipt | ServiceError:
    try:
        row = require_round(ledger.round(params_sha256), params_sha256)
        found = ledger.share(params_sha256, share.device_id)
        if found is not None:
            _same_header(found, share.header_sha256)
            return ShareReceipt(found.receipt)
        stepped(row.state, ShareOffered())
    except ServiceError as error:
        return error
    ledger.insert_share(params_sha256, replace(share, receipt=receipt))
    return ShareReceipt(receipt)


def _stored_receipt(ledger: Ledger, params_sha256: bytes, header: VerifiedHeader) -> bytes | None:
    found = ledger.share(params_sha256, header.device_id)
    if found is None:
        return None
    _same_header(found, header.header_sha256)
    return found.receipt


def _same_header(found: ShareRow, header_sha256: bytes) -> None:
    if found.header_sha256 != header_sha256:
        msg = f"the share of device {found.device_id!r} is stored under another header"
        raise ShareConflict(msg)
