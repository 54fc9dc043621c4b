"""The holders' sealed noise at the coordinator: fetched once, kept as a blob, relayed like updates.

Once the blob is there the round no longer depends on the dealer: a holder that was away gets its
share of the noise from the blob, whoever leads by then.
"""

import asyncio
import secrets

from security.errors import SharedRoundError
from security.shared_round.keys.dealers import verify_dealer
from security.shared_round.terms.committee import Committee, dealer_id
from security.shared_round.terms.parameters import RoundParameters
from security.shared_round.update.bundle import (
    MAX_PREFIX_BYTES,
    BundleIndex,
    check_structure,
    parse_prefix,
)
from server.round.blob_names import noise_blob
from server.round.state import Round
from server.sharing.bundles import Bundle
from server.sharing.holders import HolderClient, HolderRefused
from server.storage.blobs import BlobStore


class DealtNoise:
    """The noise of one round, by dealer.

    Args:
        round_: the round.
        params: of it.
        committee: whose members deal.
        blobs: where sealed noise is kept until the round ends.
    """

    def __init__(
        self, round_: Round, params: RoundParameters, *, committee: Committee, blobs: BlobStore
    ) -> None:
        self._round = round_
        self._params = params
        self._committee = committee
        self._blobs = blobs
        empty = BundleIndex(params=params, prefix_bytes=MAX_PREFIX_BYTES)
        self._max_bytes = empty.total_bytes

    async def load(self, holder: int) -> Bundle | None:
        """Return a holder's noise if it was fetched before, by whatever leader.

        Raises:
            Unavailable: if the store did not answer.
        """
        key = self._key(holder)
        size = await self._blobs.size(key)
        if size is None:
            return None
        head = await self._blobs.read_range(key, 0, min(size, MAX_PREFIX_BYTES))
        return self._open(holder, head, size)

    async def fetch(self, client: HolderClient) -> Bundle:
        """Ask a holder for its noise, and keep it.

        Raises:
            HolderError: if it did not deal, or something else than its noise for this round.
            Unavailable: if the store did not answer.
        """
        key = self._key(client.index)
        head, size = bytearray(), 0
        writer = self._blobs.open_part(key, part=secrets.token_hex(8))
        try:
            async for data in client.deal_noise(self._params.sha256, max_bytes=self._max_bytes):
                head += data[: MAX_PREFIX_BYTES - len(head)]
                size += len(data)
                await asyncio.to_thread(writer.write, data)
            bundle = self._open(client.index, bytes(head), size)
        except SharedRoundError as error:
            await asyncio.to_thread(writer.abort, keep=False)
            raise HolderRefused(error.reason, str(error)) from error
        except BaseException:
            await asyncio.to_thread(writer.abort, keep=False)
            raise
        await asyncio.to_thread(writer.commit)
        return bundle

    def _open(self, holder: int, head: bytes, size: int) -> Bundle:
        """Read the prefix.

        Raises:
            SharedRoundError: if it is not that of the holder's noise for this round.
        """
        prefix, prefix_bytes = parse_prefix(head)
        verify_dealer(prefix.header, self._committee)
        name, key = dealer_id(holder), self._key(holder)
        index = check_structure(
            self._params, prefix, prefix_bytes=prefix_bytes, total_bytes=size, device_id=name
        )
        return Bundle(
            device_id=name,
            prefix=prefix,
            index=index,
            has_bodies=True,
            read=lambda offset, length: self._blobs.read_range(key, offset, length),
        )

    def _key(self, holder: int) -> str:
        return noise_blob(self._round.task, self._round.number, holder)
