"""What dp-accounting says, asked directly: the oracle of the accountant's tests."""

from collections.abc import Mapping
from functools import cache

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
from dp_accounting.rdp.rdp_privacy_accountant import (
    compute_epsilon,
)
from numpy.typing import NDArray

from privacy.charge import Charge, Sampling

ORDERS = [*range(2, 65), 80, 96, 128, 192, 256, 512]


def rdp_epsilon(counts: Mapping[Charge, int], delta: float) -> float:
    """Epsilon by `RdpAccountant`, each kind of charge under the relation that it is scored for."""
    total = np.zeros(len(ORDERS))
    for charge, count in counts.items():
        total += _rdp(charge, count)
    return float(compute_epsilon(ORDERS, total, delta)[0])


def pld_epsilon(counts: Mapping[Charge, int], delta: float, interval: float = 1e-3) -> float:
    """Epsilon by `PLDAccountant`."""
    accountant = PLDAccountant(NeighboringRelation.REPLACE_SPECIAL, interval)
    for charge, count in counts.items():
        accountant.compose(_event(charge), count)
    return float(accountant.get_epsilon(delta))


@cache
def _rdp(charge: Charge, count: int) -> NDArray[np.float64]:
    if charge.sampling is not Sampling.FIXED_SIZE:
        accountant = RdpAccountant(ORDERS, NeighboringRelation.REPLACE_SPECIAL)
        accountant.compose(_event(charge), count)
    else:
        # Replacing moves a sum twice as far as zeroing.
        event = SampledWithoutReplacementDpEvent(
            charge.population, charge.cohort, GaussianDpEvent(charge.noise_multiplier / 2)
        )
        accountant = RdpAccountant(ORDERS, NeighboringRelation.REPLACE_ONE)
        accountant.compose(event, count)
    total: NDArray[np.float64] = accountant.rdp
    return total


def _event(charge: Charge) -> DpEvent:
    gaussian = GaussianDpEvent(charge.noise_multiplier)
    if charge.sampling is Sampling.POISSON:
        return PoissonSampledDpEvent(charge.sampling_probability, gaussian)
    if charge.sampling is Sampling.FIXED_SIZE:
        return TruncatedSubsampledGaussianDpEvent(
            charge.population, 1.0, charge.cohort, charge.noise_multiplier
        )
    return gaussian
