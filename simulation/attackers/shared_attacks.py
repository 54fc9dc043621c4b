"""What a malicious device does to its shares where nobody sees its update.

The attack adds an error e to the encoded update x, as integers modulo the field's p, and completes
the shares so that they pass as many checks as they can:

    over-norm            e = (s + 1) Q x / |x| - x: an update of norm (s + 1) Q
    wrap-half            e = (p + 1) / 2 in four places: twice that is 1, so the squared norm moves
                         by little, and the sum is destroyed
    wrap-spread          all of x becomes +-sqrt(p / d), of squared norm p + r, which is r mod p
    inconsistent-shares  e uniform, and only in the last holder's share

The first is caught by the norm that is opened, the next two by the wrap-around test, the last by
the consistency test; none of them is by anything weaker.
"""

import math
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from client import ClientConfig, SealedPayload
from client.sharing.update_sealer import UpdateSealer
from security.errors import SharingError
from security.secret_sharing import arithmetic, fixed_point
from security.secret_sharing.field import Words
from security.shared_round.terms.parameter_fields import CHUNK_BYTES
from security.shared_round.terms.parameters import RoundParameters
from security.shared_round.update.bundle import SealedUpdate
from security.shared_round.update.consistency_words import slack_bits
from security.shared_round.update.update_shares import UpdateShares, VectorShares
from simulation.attackers.attacks import SHARED_ATTACKS
from simulation.errors import ScenarioError

_HALVES: Final = 4  # four quarters of squares make a whole one


class AttackingSealer(UpdateSealer):
    """Seals updates as one of `SHARED_ATTACKS` does."""

    def __init__(
        self, config: ClientConfig, *, attack: str, scale: float, rng: np.random.Generator
    ) -> None:
        """Choose an attack.

        Args:
            config: as for `UpdateSealer`.
            attack: a name of `SHARED_ATTACKS`.
            scale: the attack's s, > 0; only `over-norm` has one.
            rng: where the error comes from; what keeps shares secret comes from the system.

        Raises:
            ScenarioError: if there is no such attack.
            ClientConfigError: as for `UpdateSealer`.
        """
        if attack not in SHARED_ATTACKS:
            message = f"attack={attack!r} must be one of {', '.join(sorted(SHARED_ATTACKS))}"
            raise ScenarioError(message)
        super().__init__(config)
        self._attack = attack
        self._scale = scale
        self._rng = rng

    def seal(
        self, params: RoundParameters, vector: NDArray[np.float32], *, model_version: int
    ) -> SealedPayload:
        """Share and seal a clipped update with the attack's error in it.

        Raises:
            SharingError: if the round leaves no room for the attack.
        """
        if self._attack == "wrap-half":
            # Room for what the error adds to the squared norm.
            vector = vector * np.float32(0.5)
        tampering = Tampering(error=self._error(params, vector), factors=self._factors(params))
        return TamperedUpdate(
            self, params, vector, model_version=model_version, tampering=tampering
        )

    def _factors(self, params: RoundParameters) -> tuple[int, ...]:
        if not params.sharing.has_consistency_mask:
            if self._attack == "inconsistent-shares":
                message = f"format={params.format} has one body for all holders, and no other piece"
                message += " is explicit: inconsistent-shares needs several"
                raise SharingError(message)
            return (1,)
        if self._attack == "inconsistent-shares":
            return (*(0 for _ in range(params.num_bodies - 1)), 1)
        # The polynomial through (0, e), (1, 0), ..., (t - 1, 0), at holders t to n.
        sign = (-1) ** (params.threshold - 1)
        holders = range(params.threshold, params.holders + 1)
        return tuple(sign * math.comb(j - 1, params.threshold - 1) for j in holders)

    def _error(self, params: RoundParameters, vector: NDArray[np.float32]) -> Words:
        """Return what is added to the update and the words after it, (length,)."""
        p, d = params.field.modulus, params.dim
        error = np.zeros(params.length, dtype=np.uint64)
        if self._attack == "inconsistent-shares":
            error[:d] = self._rng.integers(p, size=d, dtype=np.uint64)
            return error
        honest = fixed_point.encode(vector, fraction_bits=params.fraction_bits, field=params.field)
        if self._attack == "over-norm":
            error[:d] = _lengthening(params, honest, self._scale)
            return error
        if self._attack == "wrap-half":
            if d < _HALVES:
                message = f"dim={d} must be at least {_HALVES} for wrap-half"
                raise SharingError(message)
            error[self._rng.choice(d, size=_HALVES, replace=False)] = (p + 1) // 2
        else:
            error[:d] = arithmetic.subtract(params.field, _spread(params, self._rng), honest)
        if params.is_checked:
            slack = _slack_error(params, honest, error[:d])
            error[d : d + len(slack)] = slack
        return error


@dataclass(frozen=True, slots=True, kw_only=True)
class Tampering:
    """An error in the shares of one update.

    Attributes:
        error: (length,), field elements added to what is shared.
        factors: what each explicit body gets of it, so many times.
    """

    error: Words = field(repr=False)
    factors: tuple[int, ...]


class TamperedUpdate(SealedUpdate):
    """A sealed update whose explicit shares hold an error; the rest of it is in order."""

    def __init__(
        self,
        sealer: UpdateSealer,
        params: RoundParameters,
        vector: NDArray[np.float32],
        *,
        model_version: int,
        tampering: Tampering,
    ) -> None:
        """Share and seal `vector` as `SealedUpdate` does, but for the error."""
        self._tampering = tampering
        super().__init__(
            params,
            sealer.committee,
            sealer.signer,
            vector,
            device_id=sealer.signer.device_id,
            model_version=model_version,
        )

    def _commitments(self) -> list[bytes]:
        # The first step after the shares are there, and the last before they are sealed.
        self._shares = _TamperedShares(self._shares, self._params, self._tampering)
        return super()._commitments()


class _TamperedShares(UpdateShares):
    def __init__(self, honest: VectorShares, params: RoundParameters, tampering: Tampering) -> None:
        self._honest = honest
        self._params = params
        self._tampering = tampering

    def bodies(self, chunk: int) -> list[memoryview]:
        in_field = self._params.field
        step = CHUNK_BYTES // in_field.word_bytes
        error = self._tampering.error[chunk * step : (chunk + 1) * step]
        tampered = []
        for body, factor in zip(self._honest.bodies(chunk), self._tampering.factors, strict=True):
            words = in_field.from_wire(body)
            arithmetic.add_into(in_field, words, error, factor)
            tampered.append(memoryview(in_field.to_wire(words)))
        return tampered


def _lengthening(params: RoundParameters, honest: Words, scale: float) -> Words:
    x = fixed_point.centered(honest, params.field).astype(np.float64)
    norm = float(np.linalg.norm(x)) or 1.0
    longer = np.rint(x * ((scale + 1.0) * params.norm_bound / norm))
    return np.mod((longer - x).astype(np.int64), params.field.modulus).astype(np.uint64)


def _spread(params: RoundParameters, rng: np.random.Generator) -> Words:
    """Return d words of nearly the same size whose squares add up to p or little more."""
    p, d = params.field.modulus, params.dim
    size = math.isqrt(p // d)
    sizes = np.full(d, size, dtype=np.int64)
    # One more in a place adds 2 size + 1.
    sizes[: -(-(p - d * size * size) // (2 * size + 1))] += 1
    signs = rng.choice(np.array([-1, 1], dtype=np.int64), size=d)
    return np.mod(signs * sizes, p).astype(np.uint64)


def _slack_error(params: RoundParameters, honest: Words, error: Words) -> Words:
    """Return what turns the honest slack bits into those of the squared norm modulo p."""
    words = honest.copy()
    arithmetic.add_into(params.field, words, error)
    new, old = (
        np.array(
            slack_bits(params.norm_bound, arithmetic.dot(params.field, each, each)),
            dtype=np.uint64,
        )
        for each in (words, honest)
    )
    return arithmetic.subtract(params.field, new, old)
