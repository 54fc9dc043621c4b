"""What a round keeps of its privacy: the facts that its noise and its charge rest on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

NOISE_OF_DEVICES: Final = "device"

_PLACES: Final = frozenset({"central", "holders", NOISE_OF_DEVICES})


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPrivacy:
    """The privacy of one round, fixed when it opens.

    Attributes:
        charge: what its release costs, as `privacy.charge.Charge.to_text` writes it.
        clipping_norm: C of this round, above 0.
        sensitivity: of the sum that noise is added to, in units of C; from 1.
        expected_updates: what the noised sum is divided by, whatever came in; above 0.
        noise: who adds it: "central", "holders" or "device". Whoever asks for updates, or computes
            with them, must do as the round says, and not as the settings do by then.
        max_participations: rounds that its cohort's devices may have been selected for, this one
            included, as its charge was allowed; None: any number. The driver sets it.
    """

    charge: str
    clipping_norm: float
    sensitivity: float
    expected_updates: float
    noise: str = "central"
    max_participations: int | None = None

    def __post_init__(self) -> None:
        if self.noise not in _PLACES:
            msg = f"noise={self.noise!r} must be one of {', '.join(sorted(_PLACES))}"
            raise ValueError(msg)
        if not (self.clipping_norm > 0 and self.sensitivity >= 1 and self.expected_updates > 0):
            msg = (
                f"clipping_norm={self.clipping_norm} and expected_updates={self.expected_updates}"
                f" must be above 0, sensitivity={self.sensitivity} at least 1"
            )
            raise ValueError(msg)

    @property
    def releases_uploads(self) -> bool:
        """Whether an update is spent once it was sent: its noise is against who receives it."""
        return self.noise == NOISE_OF_DEVICES


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundCost:
    """What is kept of a private round's cost when it ended, or was refused.

    Attributes:
        charge: of its release, as `RoundPrivacy` has it.
        is_charged: whether it was charged; False: nothing was computed, or it was refused.
        clipping_norm: C of the round.
        counts: releases of each charge that count for the busiest device, this round included; None
            where a version was published without a charge, and nothing can be said.
        epsilon: of these, as the budget's accountant says; None: not scored yet, or no bound.
        delta: of the budget; None: not scored yet.
    """

    charge: str
    is_charged: bool
    clipping_norm: float
    counts: Mapping[str, int] | None
    epsilon: float | None = None
    delta: float | None = None
