"""Share holders in this process: they verify, check and sum as the holders' processes do.

No network and no disk: what is left is what sharing itself costs.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.secure.parties import HOLDERS, Parties
from protos.fedagg.v1 import shared_round_pb2 as pb
from security.secret_sharing.field import Words
from security.shared_round.keys.signing import DeviceAuthority
from security.shared_round.opening.ballot_box import BallotBox
from security.shared_round.opening.coins import (
    Coin,
    CoinShare,
    coin_commitments,
    coin_pieces,
    open_coin,
)
from security.shared_round.opening.openings import OpeningValues, compute_openings, sum_shares
from security.shared_round.terms.parameters import RoundParameters
from security.shared_round.update.bundle import BundleIndex
from security.shared_round.update.pieces import BodyCheck, SharePieces, open_frame


class Holder:
    """One share holder and the shares that it has taken in."""

    def __init__(self, parties: Parties, params: RoundParameters, index: int) -> None:
        self.index = index
        self.vectors: list[SharePieces] = []
        self._params = params
        self._secrets = parties.secrets[index - 1]
        self._keys = parties.keys[index]
        # Verified certificates are remembered: no holder may profit from another's memory.
        self._authority = DeviceAuthority(parties.issuer.certificate_pem)

    def take(self, prefix: pb.BundlePrefix, index: BundleIndex, bundle: bytes) -> None:
        """Verify a share as it is verified before it is stored, and keep it."""
        params, view = self._params, memoryview(bundle)
        header = self._authority.verify(prefix.header, now_s=time.time())
        frame = prefix.frames[self.index - 1]
        keys = open_frame(params, self._secrets, self.index, header, frame)
        chunks = [view[at : at + length] for at, length in index.extents(self.index)]
        if params.has_body(self.index):
            check = BodyCheck(params, keys, header, self.index)
            for chunk in chunks:
                check.feed(chunk)
            check.finish()
        body = _chunk_of(chunks) if chunks else None
        self.vectors.append(SharePieces(params, keys, self.index, body))

    def openings(
        self, coin: Coin, set_sha256: bytes, vectors: Sequence[SharePieces]
    ) -> OpeningValues:
        """Compute this holder's shares of what the checks open."""
        return compute_openings(self._params, coin, set_sha256, vectors, self._keys)

    def sums(self, sums: Sequence[Sequence[int]]) -> list[Words]:
        """Compute this holder's shares of the sums; all weights are 1."""
        return sum_shares(self._params, [(vector, 1) for vector in self.vectors], sums)


def holders_of(parties: Parties, params: RoundParameters) -> list[Holder]:
    """The whole committee."""
    return [Holder(parties, params, index) for index in range(1, HOLDERS + 1)]


def flip_coin(parties: Parties, params: RoundParameters, set_sha256: bytes) -> Coin:
    """Open the coin of a frozen set from every holder's vote and share."""
    keys_of = parties.keys.items()
    votes = {index: coin_commitments(keys, set_sha256) for index, keys in keys_of}
    box = BallotBox.of(params, set_sha256, votes)
    shares = {
        index: CoinShare(box_sha256=box.sha256, pieces=coin_pieces(keys, set_sha256))
        for index, keys in keys_of
    }
    return open_coin(params, box, shares)


def exact_mean(updates: Sequence[np.ndarray]) -> np.ndarray:
    """The mean, in float64."""
    mean: np.ndarray = np.stack(updates).mean(axis=0, dtype=np.float64)
    return mean


def _chunk_of(chunks: Sequence[memoryview]) -> Callable[[int], memoryview]:
    return lambda number: chunks[number]
