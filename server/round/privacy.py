"""What a round keeps of its privacy: the facts that its noise and its charge rest on."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPrivacy:
    """The privacy of one round, fixed when it opens.

    Attributes:
        charge: what its release costs, as `privacy.charge.Charge.to_text` writes it.
        clipping_norm: C of this round, above 0.
        sensitivity: of the sum that noise is added to, in units of C; from 1.
        expected_updates: what the noised sum is divided by, whatever came in; above 0.
    """

    charge: str
    clipping_norm: float
    sensitivity: float
    expected_updates: float

    def __post_init__(self) -> None:
        if not (self.clipping_norm > 0 and self.sensitivity >= 1 and self.expected_updates > 0):
            msg = (
                f"clipping_norm={self.clipping_norm} and expected_updates={self.expected_updates}"
                f" must be above 0, sensitivity={self.sensitivity} at least 1"
            )
            raise ValueError(msg)
