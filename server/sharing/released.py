"""The sums that a shared round opened, as the candidate is built from them."""

from dataclasses import dataclass

from security.shared_round.parameters import RoundParameters
from security.shared_round.sum_opening import OpenedSums


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasedSums:
    """The sums, and what is in them.

    Attributes:
        params: the round.
        opened: the sums, and holders whose shares of them were wrong.
        weights: of each sum, the weights of its updates together.
        excluded: devices that contributed, but to no sum.
        members: updates in all sums together.
    """

    params: RoundParameters
    opened: OpenedSums
    weights: tuple[int, ...]
    excluded: tuple[str, ...]
    members: int
