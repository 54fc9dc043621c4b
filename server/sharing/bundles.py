"""Admitted bundles as the relay reads them: the prefix in memory, bodies chunk by chunk."""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from protos.fedagg.v1 import share_holder_pb2 as pb
from protos.fedagg.v1 import shared_round_pb2 as round_pb
from security.errors import SharedRoundError
from security.shared_round.terms.parameters import RoundParameters
from security.shared_round.update.bundle import (
    MAX_PREFIX_BYTES,
    BundleIndex,
    check_structure,
    parse_prefix,
)
from server.round.blob_names import payload_blob
from server.round.ports import AdmissionStore, BlobNotFound, Contribution
from server.round.state import Round
from server.storage.blobs import BlobStore

PAYLOAD_GONE: Final = "PAYLOAD_GONE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """One device's sealed update, where it is stored.

    Attributes:
        has_bodies: False where the device handed the holders their shares itself.
    """

    device_id: str
    prefix: round_pb.BundlePrefix
    index: BundleIndex
    has_bodies: bool
    read: Callable[[int, int], Awaitable[bytes]]  # offset, length

    @property
    def header_sha256(self) -> bytes:
        """The name of this update in receipts."""
        return hashlib.sha256(self.prefix.header.header).digest()

    def start(self, holder: int) -> pb.ShareStart:
        """Return what a holder is told first: the header, its own frame, and how much follows."""
        return pb.ShareStart(
            params_sha256=self.index.params.sha256,
            header=self.prefix.header,
            frame=self.prefix.frames[holder - 1],
            body_bytes=sum(length for _, length in self.index.extents(holder)),
        )

    async def body(self, holder: int) -> AsyncIterator[bytes]:
        """Yield the holder's body, a chunk at a time."""
        for offset, length in self.index.extents(holder):
            yield await self.read(offset, length)


class Bundles:
    """Reads the bundles of a round from either store.

    Args:
        admission: holds small payloads.
        blobs: holds large ones.
    """

    def __init__(self, *, admission: AdmissionStore, blobs: BlobStore) -> None:
        self._admission = admission
        self._blobs = blobs

    async def load(
        self, round_: Round, params: RoundParameters, contributions: Sequence[Contribution]
    ) -> tuple[list[Bundle], dict[str, str]]:
        """Open the bundles of some contributions.

        Returns:
            The bundles, and the devices whose stored bundle is none, with the reason: what was
            admitted had the right form, so that is damage.

        Raises:
            Unavailable: if a store did not answer.
        """
        payloads = await self._inline(round_, [c.device_id for c in contributions if c.inline])
        bundles: list[Bundle] = []
        damaged: dict[str, str] = {}
        for contribution in contributions:
            device = contribution.device_id
            data = payloads.get(device)
            read = (
                _slices(data or b"") if contribution.inline else self._reader(round_, contribution)
            )
            if contribution.inline and data is None:
                damaged[device] = PAYLOAD_GONE
                continue
            try:
                head = await read(0, MAX_PREFIX_BYTES)
                bundles.append(_open(params, contribution, head, read))
            except SharedRoundError as error:
                damaged[device] = error.reason
            except BlobNotFound:
                damaged[device] = PAYLOAD_GONE
        return bundles, damaged

    async def _inline(self, round_: Round, devices: Sequence[str]) -> dict[str, bytes]:
        """Return small payloads by device; those that are gone are missing."""
        try:
            found = await self._admission.inline_payloads(round_.task, round_.number, devices)
            return dict(zip(devices, found, strict=True))
        except BlobNotFound:
            if len(devices) == 1:
                return {}
        payloads: dict[str, bytes] = {}
        for device in devices:
            payloads |= await self._inline(round_, [device])
        return payloads

    def _reader(
        self, round_: Round, contribution: Contribution
    ) -> Callable[[int, int], Awaitable[bytes]]:
        key = payload_blob(
            round_.task,
            round_.number,
            device_id=contribution.device_id,
            submission_id=contribution.submission_id,
            digest=contribution.digest,
        )
        return lambda offset, length: self._blobs.read_range(key, offset, length)


def _open(
    params: RoundParameters,
    contribution: Contribution,
    head: bytes,
    read: Callable[[int, int], Awaitable[bytes]],
) -> Bundle:
    prefix, prefix_bytes = parse_prefix(head)
    has_bodies = contribution.payload_bytes != prefix_bytes
    index = check_structure(
        params,
        prefix,
        prefix_bytes=prefix_bytes,
        total_bytes=contribution.payload_bytes,
        device_id=contribution.device_id,
        has_bodies=has_bodies,
    )
    return Bundle(
        device_id=contribution.device_id,
        prefix=prefix,
        index=index,
        has_bodies=has_bodies,
        read=read,
    )


def _slices(data: bytes) -> Callable[[int, int], Awaitable[bytes]]:
    async def read(offset: int, length: int) -> bytes:
        return data[offset : offset + length]

    return read
