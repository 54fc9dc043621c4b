"""The fields of a shared round's parameters, and what follows from them."""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from security.errors import SharingError, WrongRoundParametersError
from security.secret_sharing.field import MersenneField, field_of
from security.secret_sharing.threshold import Threshold
from security.shared_round.terms import bounds
from security.shared_round.terms.parameter_facts import Checks, Degraded, ShareFormat
from security.shared_round.terms.share_format import SharingScheme, sharing_scheme

CHUNK_BYTES: Final = 1024 * 1024
"""Plaintext of every chunk of a body but the last."""
TAG_BYTES: Final = 16
"""What sealing adds to a chunk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterFields:
    """Fields as in `RoundParameters` of shared_round.proto, and what follows from them; unchecked.

    Attributes:
        min_members: fewest updates that a round's sums hold together. Where `group_size` is not 0
            each sum holds at least that many.
        noise_dealers: D, holders whose noise is part of every opened sum; 0: no noise.
        noise_stddev: of each dealer's discrete Gaussian noise, a coordinate, in units of 2^-f.
        compression_sha256: of the map that devices apply first; carried, not looked into.
    """

    task: str
    round: int
    base_version: int
    model_sha256: str
    committee_sha256: bytes
    threshold: int
    holders: int
    quorum: int
    dim: int
    field_bits: int
    fraction_bits: int
    norm_bound: int
    format: ShareFormat
    checks: Checks
    sketch_dim: int
    wrap_tests: int
    wrap_group: int
    mask_scale: int
    min_members: int
    max_members: int
    rule: str
    num_byzantine: int
    num_to_select: int
    group_size: int
    degraded: Degraded
    staleness_weights: tuple[int, ...]
    noise_dealers: int = 0
    noise_stddev: int = 0
    compression_sha256: bytes = b""

    @property
    def field(self) -> MersenneField:
        """The field that shares are elements of."""
        return field_of(self.field_bits)

    @property
    def scheme(self) -> Threshold:
        """The committee's (t, n)."""
        return Threshold(threshold=self.threshold, holders=self.holders)

    @property
    def is_checked(self) -> bool:
        """Tell whether anything but the sum is opened."""
        return self.checks is not Checks.SUM

    @property
    def has_distances(self) -> bool:
        """Tell whether pairwise distances are opened."""
        return self.checks is Checks.DISTANCES

    @property
    def has_consistency_mask(self) -> bool:
        """Tell whether consistency is tested by a random combination instead of by hashes."""
        return self.is_checked and self.sharing.has_consistency_mask

    @property
    def has_noise(self) -> bool:
        """Tell whether holders' noise is part of every sum."""
        return self.noise_dealers > 0

    @property
    def guaranteed_noise_stddev(self) -> float:
        """Noise in each number of a sum that t - 1 colluding dealers do not know; 0 without noise.

        In units of 2^-f; correct to float64's rounding, `has_noise_multiplier` is exact.
        """
        return self.noise_stddev * math.sqrt(
            bounds.unknown_dealers(self.noise_dealers, self.threshold)
        )

    def has_noise_multiplier(self, least: float) -> bool:
        """Tell whether sums keep `least` norm bounds of noise against t - 1 colluding dealers."""
        return bounds.has_noise(
            self.noise_stddev,
            dealers=self.noise_dealers,
            threshold=self.threshold,
            least=Fraction(least) * self.norm_bound,
        )

    @property
    def num_slack_bits(self) -> int:
        """B: bits that fill a squared norm up to Q^2; 0 without checks."""
        return (self.norm_bound**2).bit_length() if self.is_checked else 0

    @property
    def num_extras(self) -> int:
        """Words that a device shares after its update."""
        if not self.is_checked:
            return 0
        return self.num_slack_bits + int(self.has_consistency_mask) + 2 * self.wrap_tests

    @property
    def length(self) -> int:
        """Words of one device's vector, extras included."""
        return self.dim + self.num_extras

    @property
    def sharing(self) -> SharingScheme:
        """How updates are shared in this round: who holds what of them."""
        return sharing_scheme(self.format, self.scheme)

    @property
    def num_bodies(self) -> int:
        """Explicit vectors that a device uploads."""
        return self.sharing.num_bodies

    def body_bytes(self, body: int) -> int:
        """Return the size of a body's ciphertext in bytes; every body has the same.

        Raises:
            SharingError: if there is no such body.
        """
        if not 0 <= body < self.num_bodies:
            message = f"body={body} must be in 0..{self.num_bodies - 1}"
            raise SharingError(message)
        plain = self.length * self.field.word_bytes
        return plain + TAG_BYTES * -(-plain // CHUNK_BYTES)

    def has_body(self, holder: int) -> bool:
        """Tell whether the holder is sent an explicit vector."""
        return self.sharing.body_of(holder) is not None

    def staleness_weight(self, model_version: int) -> int:
        """Look up the weight of an update trained from a model version.

        Raises:
            WrongRoundParametersError: if that version is too old for this round, or newer than
                its base.
        """
        staleness = self.base_version - model_version
        if not 0 <= staleness < len(self.staleness_weights):
            oldest = self.base_version - len(self.staleness_weights) + 1
            message = f"model_version={model_version} must be in"
            message += f" {max(oldest, 1)}..{self.base_version} for this round"
            raise WrongRoundParametersError(message)
        return self.staleness_weights[staleness]
