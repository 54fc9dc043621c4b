"""How a device takes part in shared rounds, and what it refuses to be talked into."""

import math
from dataclasses import dataclass
from pathlib import Path

from client.errors import ClientConfigError
from security.secret_sharing.threshold import MIN_THRESHOLD
from security.shared_round.terms.parameter_facts import (
    LEAST_MASK_SCALE,
    LEAST_MEMBERS,
    LEAST_SKETCH_DIM,
    LEAST_WRAP_TESTS,
    Checks,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SharingConfig:
    """The committee that a device seals its updates to, and the least protection it accepts.

    The files are read when the client is made. A committee comes to the device out of band,
    as a root certificate does: whoever names the share holders can read the updates.

    Attributes:
        committee: description of the share holders that the device trusts, JSON.
        certificate: the device's certificate chain, PEM; its common name is the device id. None:
            the one of `tls`.
        private_key: the key of `certificate`, PEM; Ed25519 or ECDSA.
        min_threshold: least number of holders that can open a sum, from 2.
        min_quorum: least number of holders that must agree on what is opened; None: so many that
            fewer than the threshold of lying ones cannot open two sums of one round.
        min_members: least number of updates in a sum that is opened, from 2.
        require_checks: the weakest checks accepted.
        min_mask_scale, min_wrap_tests, min_sketch_dim: least values of a checked round: the noise
            over what it opens, in norm bounds, the tests of a group, and the size of sketches.
            Less noise shows more of the update; fewer tests let others' false updates pass.
        min_noise_multiplier: least noise in a sum, in norm bounds, that fewer holders than the
            threshold do not know; from 0. Published models are differentially private by it.
        holders_ca: certificates that may sign those of the share holders, for rounds in which
            devices deliver to them directly, PEM; the device shows its own certificate. None:
            those that may sign the server's; without TLS where the server is called without.
        holder_patience_s: in such a round, how long a holder that does not answer is tried while
            enough others do, > 0. A quarter of the time that is left is the most.
        max_staleness: an update that missed its round is offered to later ones while its model
            is at most so many versions old, and the round takes it; 0: never; None: as the round
            says.
        tells_training: tell the server the number of samples and the losses, as in plain rounds.
            They say something about the data, and a shared round does without them.
        required: refuse plain rounds, in which the server would read the update.
    """

    committee: Path
    certificate: Path | None = None
    private_key: Path | None = None
    min_threshold: int = MIN_THRESHOLD
    min_quorum: int | None = None
    min_members: int = LEAST_MEMBERS
    require_checks: Checks = Checks.SUM
    min_mask_scale: int = LEAST_MASK_SCALE
    min_wrap_tests: int = LEAST_WRAP_TESTS
    min_sketch_dim: int = LEAST_SKETCH_DIM
    min_noise_multiplier: float = 0.0
    holders_ca: Path | None = None
    holder_patience_s: float = 20.0
    max_staleness: int | None = None
    tells_training: bool = False
    required: bool = True

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.private_key is None):
            raise ClientConfigError("certificate and private_key must be given together")
        ranges = (
            ("min_threshold", self.min_threshold, MIN_THRESHOLD),
            ("min_quorum", self.min_quorum, MIN_THRESHOLD),
            ("min_members", self.min_members, LEAST_MEMBERS),
            ("min_mask_scale", self.min_mask_scale, 1),
            ("min_wrap_tests", self.min_wrap_tests, 1),
            ("min_sketch_dim", self.min_sketch_dim, 1),
            ("max_staleness", self.max_staleness, 0),
        )
        for name, value, low in ranges:
            if value is not None and value < low:
                raise ClientConfigError(f"{name}={value} must be at least {low}")
        if not 0 <= self.min_noise_multiplier < math.inf:
            raise ClientConfigError(
                f"min_noise_multiplier={self.min_noise_multiplier} must be finite and at least 0"
            )
        if not self.holder_patience_s > 0:
            raise ClientConfigError(f"holder_patience_s={self.holder_patience_s} must be > 0")
