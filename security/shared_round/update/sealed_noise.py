"""A holder's noise, shared and sealed to every holder as a device's update is."""

import os
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from security.errors import SharingError
from security.secret_sharing.field import Words
from security.shared_round.keys.dealers import DealerSigner
from security.shared_round.terms.committee import Committee
from security.shared_round.terms.parameters import RoundParameters
from security.shared_round.update.bundle import SealedVector, check_committee
from security.shared_round.update.update_shares import UpdateKeys, VectorShares


class SealedNoise(SealedVector):
    """A holder's noise as the bundle that it deals."""

    def __init__(
        self,
        params: RoundParameters,
        committee: Committee,
        signer: DealerSigner,
        noise: NDArray[np.int64],
        *,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """Share and seal noise.

        Args:
            params: a round with noise.
            committee: its share holders.
            signer: the dealer's key.
            noise: (dim,) int64, in units of 2^-f; as for `SealedUpdate`, it must not change.
            random_bytes: random source of seeds, keys and nonce.

        Raises:
            SharingError: if the round has no noise, or the noise another shape, type or range.
            WrongRoundParametersError: if the committee is another one than the parameters name.
        """
        check_committee(params, committee)
        if not params.has_noise:
            msg = "noise_dealers=0 must be above 0 for noise to be dealt"
            raise SharingError(msg)
        keys = UpdateKeys.draw(params, random_bytes)
        shares = _NoiseShares(params, noise, keys, device_id=signer.device_id)
        super().__init__(params, committee, signer, shares, keys, model_version=params.base_version)


class _NoiseShares(VectorShares):
    """The explicit shares of a holder's noise."""

    def __init__(
        self,
        params: RoundParameters,
        noise: NDArray[np.int64],
        keys: UpdateKeys,
        *,
        device_id: str,
    ) -> None:
        """Take the noise; the words that follow an update are 0, for nothing of them is opened.

        Args:
            params: a round with noise.
            noise: (dim,) int64, in units of 2^-f.
            keys: drawn for it.
            device_id: the dealer's name.

        Raises:
            SharingError: if the noise has another shape or type, or could be taken for another
                number in the field.
        """
        if noise.shape != (params.dim,) or noise.dtype != np.int64:
            msg = f"noise must be int64 of shape ({params.dim},), got {noise.dtype} {noise.shape}"
            raise SharingError(msg)
        half = params.field.modulus // 2
        if int(noise.max()) > half or int(noise.min()) < -half:
            msg = f"noise must be in -{half}..{half}"
            raise SharingError(msg)
        super().__init__(params, keys, device_id=device_id)
        self._noise = noise

    def _secret(self, start: int, count: int) -> Words:
        words: Words = np.zeros(count, dtype=np.uint64)
        part = self._noise[start : start + count]
        modulus = np.int64(self._params.field.modulus)
        words[: len(part)] = np.where(part < 0, part + modulus, part).view(np.uint64)
        return words
