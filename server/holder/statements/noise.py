"""The noise that this holder deals: drawn once a round, sealed at once, kept sealed alone.

What lies in the folder is the bundle that leaves, and nobody opens it without *t* holders' keys:
the noise itself, the key it was drawn with and the seeds of its shares are in memory for the moment
of sealing.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from privacy.discrete_gaussian import discrete_gaussian
from security.shared_round.keys.dealers import DealerSigner
from security.shared_round.terms.parameters import RoundParameters
from security.shared_round.update.sealed_noise import SealedNoise
from server.errors import MalformedRequest, ServiceError
from server.holder.refusals import stepped
from server.holder.storage.holder_state import ShareOffered
from server.holder.storage.holder_storage import HolderStorage
from server.holder.storage.membership import HolderSelf, KnownRounds

KEY_BYTES: Final = 32

_READ_BYTES: Final = 1 << 20


class NoiseDealer:
    """Deals this holder's noise. Every method blocks; calls of one round must not overlap.

    Durable when `deal` returns: the bundle. Idempotent: a round has one bundle until it is purged.

    Args:
        me: who deals.
        storage: where the bundle is kept.
        known: the rounds that were opened here.
        random_bytes: random source of noise, seeds and keys.
    """

    def __init__(
        self,
        me: HolderSelf,
        storage: HolderStorage,
        known: KnownRounds,
        *,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._me = me
        self._storage = storage
        self._known = known
        self._random_bytes = random_bytes

    def deal(self, params_sha256: bytes) -> Path:
        """Return the file of the bundle, the same bytes until the round is purged.

        Raises:
            UnknownRound: if the round was not opened here.
            MalformedRequest: if it has no noise.
            RoundClosed, RoundPurged: if it takes no more shares, and no noise was dealt before.
        """
        params = self._known.parameters(params_sha256)
        if not params.has_noise:
            msg = "the round's noise_dealers=0 must be above 0 for noise to be dealt"
            raise MalformedRequest(msg)
        path = self._storage.noise.path(params.sha256.hex())
        if not path.exists():
            self._require_open(params)
            self._write(params)
            try:
                self._require_open(params)
            except ServiceError:
                # A purge came in between and has deleted what there was then.
                self._storage.noise.delete(path.name)
                raise
        return path

    def _require_open(self, params: RoundParameters) -> None:
        """Refuse a round that takes no shares any more: noise would be of no use."""
        stepped(self._known.row(params.sha256).state, ShareOffered())

    def _write(self, params: RoundParameters) -> None:
        noise = discrete_gaussian(
            self._random_bytes(KEY_BYTES), stddev=params.noise_stddev, size=params.dim
        )
        sealed = SealedNoise(
            params,
            self._me.committee,
            DealerSigner(holder=self._me.index, secrets=self._me.secrets),
            noise,
            random_bytes=self._random_bytes,
        )
        with self._storage.noise.create(params.sha256.hex()) as file:
            for start in range(0, len(sealed), _READ_BYTES):
                file.write(sealed.read(start, _READ_BYTES))
            file.finish()
