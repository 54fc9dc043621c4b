"""What one release costs: the facts of its mechanism, as a value that a ledger can keep.

What happened is a value here; how it is scored is the accountant's job
(`privacy.renyi_accountant`).
"""

import json
import math
from dataclasses import asdict, dataclass
from enum import Enum

from privacy.errors import PrivacyError


class Sampling(Enum):
    """How a round's cohort comes about, as far as a privacy claim may rest on it."""

    POISSON = "poisson"
    FIXED_SIZE = "fixed-size"
    NONE = "none"


class Mechanism(Enum):
    """How the noise of a task's rounds hangs together."""

    GAUSSIAN = "gaussian"
    BANDED = "banded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """One release of one task.

    Attributes:
        noise_multiplier: z, standard deviation of the noise over the L2 sensitivity; above 0.
        sampling: what amplification is claimed.
        sampling_probability: q of Poisson sampling, in (0, 1]; else 0.
        population: devices that a fixed-size cohort is drawn from; else 0.
        cohort: size of that cohort, 1 to `population`; else 0.
        mechanism: independent noise each round, or correlated noise of a banded matrix.
        bands: of that matrix, from 1; a device's rounds lie at least so far apart. 1 otherwise.

    Raises:
        PrivacyError: if a field is out of range, or does not belong to the others.
    """

    noise_multiplier: float
    sampling: Sampling = Sampling.NONE
    sampling_probability: float = 0.0
    population: int = 0
    cohort: int = 0
    mechanism: Mechanism = Mechanism.GAUSSIAN
    bands: int = 1

    def __post_init__(self) -> None:
        z, q = self.noise_multiplier, self.sampling_probability
        _require(0 < z < math.inf, "noise_multiplier", z, "finite and above 0")
        is_poisson = self.sampling is Sampling.POISSON
        _require(
            0 < q <= 1 if is_poisson else q == 0,
            "sampling_probability",
            q,
            "in (0, 1] with Poisson sampling, else 0",
        )
        is_fixed = self.sampling is Sampling.FIXED_SIZE
        n, m = self.population, self.cohort
        _require(
            1 <= m <= n if is_fixed else n == m == 0,
            "cohort, population",
            (m, n),
            "1 <= cohort <= population with fixed-size sampling, else 0",
        )
        is_banded = self.mechanism is Mechanism.BANDED
        _require(
            self.bands >= 1 if is_banded else self.bands == 1,
            "bands",
            self.bands,
            "at least 1, and 1 without a banded matrix",
        )
        _require(
            not is_banded or self.sampling is Sampling.NONE,
            "sampling",
            self.sampling.value,
            "none with a banded matrix",
        )

    def to_text(self) -> str:
        """Write the charge in its one canonical form: the key that a ledger counts it under."""
        tree = asdict(self) | {
            "sampling": self.sampling.value,
            "mechanism": self.mechanism.value,
        }
        return json.dumps(tree, separators=(",", ":"), sort_keys=True)

    @classmethod
    def from_text(cls, text: str) -> "Charge":
        """Read what `to_text` wrote.

        Raises:
            PrivacyError: if it is anything else.
        """
        try:
            tree = json.loads(text)
            tree["sampling"] = Sampling(tree["sampling"])
            tree["mechanism"] = Mechanism(tree["mechanism"])
            charge = cls(**tree)
        except (ValueError, TypeError, KeyError) as error:
            message = f"{text[:200]!r} is no charge: {error}"
            raise PrivacyError(message) from error
        if charge.to_text() != text:
            message = f"{text[:200]!r} must be in the canonical form of a charge"
            raise PrivacyError(message)
        return charge


def _require(condition: bool, name: str, value: object, rule: str) -> None:
    if not condition:
        message = f"{name}={value!r} must be {rule}"
        raise PrivacyError(message)
