"""The sums that a shared round opened, as the candidate is built from them."""

import math
from dataclasses import dataclass

from security.shared_round.opening.sum_opening import OpenedSums
from security.shared_round.terms.parameters import RoundParameters


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasedSums:
    """The sums, and what is in them.

    Attributes:
        params: the round.
        opened: the sums, with the dealers' noise in each; holders whose shares of them were wrong.
        weights: of each sum, the weights of its updates together.
        excluded: devices that contributed, but to no sum.
        members: updates in all sums together.
    """

    params: RoundParameters
    opened: OpenedSums
    weights: tuple[int, ...]
    excluded: tuple[str, ...]
    members: int

    @property
    def noise_stddev(self) -> float:
        """Standard deviation of the noise in each number of a sum, in units of 2^-f."""
        return self.params.noise_stddev * math.sqrt(self.params.noise_dealers)

    @property
    def guaranteed_noise_stddev(self) -> float:
        """What of it `threshold` - 1 colluding dealers do not know: the privacy rests on this."""
        return self.params.guaranteed_noise_stddev
