"""What dp-accounting says of charges: the one module that knows the library.

Importing it takes seconds, so nothing that a device loads may import it.

All scores are for zero-out adjacency: two fleets are neighbours if they differ in one device, all
of whose contributions are zero vectors in one of them. A charge's multiplier z is the noise's
standard deviation over the zero-out sensitivity, whatever the sampling:
- none, banded: a Gaussian mechanism for every participation. The columns of a banded matrix that
  one device touches are orthogonal and of norm 1, so that k participations cost what k independent
  ones do, although the noise of the rounds hangs together.
- Poisson: the same number for adding or removing a device.
- fixed-size: bounds for replacing a device's contribution, which include zeroing it. A replacement
  moves a sum twice as far: the library's event for RDP takes the multiplier of that, z / 2; its
  event for PLD takes z and doubles by itself.
"""

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

import numpy as np
from dp_accounting import (
    DpEvent,
    GaussianDpEvent,
    NeighboringRelation,
    PoissonSampledDpEvent,
    SampledWithoutReplacementDpEvent,
)
from dp_accounting.dp_event import (
    TruncatedSubsampledGaussianDpEvent,
)
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from numpy.typing import NDArray

from privacy.charge import Charge, Sampling

ORDERS: Final[tuple[int, ...]] = (*range(2, 65), 80, 96, 128, 192, 256, 512)
"""Orders of Renyi divergences. Whole ones: sums for others may fail to converge."""

LEAST_MULTIPLIER: Final = 1e-3
"""Noise multipliers below are no privacy at all: their charges are scored as infinite."""

PLD_INTERVAL: Final = 1e-3
"""Grid of privacy losses; losses are rounded so that the result stays an upper bound."""

Floats = NDArray[np.float64]


@lru_cache(maxsize=4096)
def rdp_vector(charge: Charge) -> Floats:
    """Compute the Renyi divergences of one release at `ORDERS`; the array is read-only.

    Guarantees:
        What dp-accounting's `RdpAccountant` holds after the charge's event, but never below 0,
        where its rounding may lead; infinite below `LEAST_MULTIPLIER`.
    """
    if charge.noise_multiplier < LEAST_MULTIPLIER:
        vector = np.full(len(ORDERS), np.inf)
    else:
        accountant = RdpAccountant(ORDERS, _relation(charge))
        accountant.compose(rdp_event(charge))
        vector = np.maximum(accountant.rdp, 0.0)
    vector.setflags(write=False)
    return vector


def pld_epsilon(counts: Mapping[Charge, int], delta: float) -> float:
    """Compute the epsilon of many releases from their privacy loss distributions.

    Args:
        counts: how many releases of each charge, from 0.
        delta: in (0, 1).

    Guarantees:
        What dp-accounting's `PLDAccountant` says of the same events, composed in the order of
        the charges' texts.

    Cost: grows with the epsilon; ask `privacy.renyi_accountant` first, which bounds it.
    """
    accountant = PLDAccountant(NeighboringRelation.REPLACE_SPECIAL, PLD_INTERVAL)
    for charge in sorted(counts, key=Charge.to_text):
        if counts[charge] and charge.noise_multiplier < LEAST_MULTIPLIER:
            return math.inf
        if counts[charge]:
            accountant.compose(pld_event(charge), counts[charge])
    return float(accountant.get_epsilon(delta))


def rdp_event(charge: Charge) -> DpEvent:
    """Write a charge as the event that the library's RDP accountant scores."""
    z = charge.noise_multiplier
    if charge.sampling is Sampling.FIXED_SIZE:
        return SampledWithoutReplacementDpEvent(
            charge.population, charge.cohort, GaussianDpEvent(z / 2)
        )
    return _gaussian_event(charge)


def pld_event(charge: Charge) -> DpEvent:
    """Write a charge as the event that the library's PLD accountant scores."""
    if charge.sampling is Sampling.FIXED_SIZE:
        # Everybody sampled, then cut down to the cohort uniformly at random.
        return TruncatedSubsampledGaussianDpEvent(
            dataset_size=charge.population,
            sampling_probability=1.0,
            truncated_batch_size=charge.cohort,
            noise_multiplier=charge.noise_multiplier,
        )
    return _gaussian_event(charge)


def _gaussian_event(charge: Charge) -> DpEvent:
    event = GaussianDpEvent(charge.noise_multiplier)
    if charge.sampling is Sampling.POISSON:
        return PoissonSampledDpEvent(charge.sampling_probability, event)
    return event


def _relation(charge: Charge) -> NeighboringRelation:
    if charge.sampling is Sampling.FIXED_SIZE:
        return NeighboringRelation.REPLACE_ONE
    return NeighboringRelation.REPLACE_SPECIAL
