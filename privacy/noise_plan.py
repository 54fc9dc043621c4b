"""What a budget costs: the noise that a run of rounds needs, and the error it leaves."""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from privacy.budget import Accountant
from privacy.calibration import noise_multiplier
from privacy.charge import Charge, Mechanism, Sampling
from privacy.divergences import Floats
from privacy.errors import PrivacyError
from privacy.participation import charged_rounds
from privacy.renyi_accountant import epsilon_of, max_releases

ASSUMPTIONS: Final = {
    Sampling.POISSON: (
        "every device of the population takes part in a round by a coin of its own, nobody who sees"
        " a model knows who did, and rounds close by their deadline"
    ),
    Sampling.FIXED_SIZE: (
        "every round's cohort is a uniformly random subset of that size of the whole population,"
        " and nobody who sees a model knows who is in it"
    ),
    Sampling.NONE: "nothing: a device pays for every round that it takes part in",
}
"""What the epsilon of a plan assumes about sampling."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """A run of private rounds to be planned.

    Attributes:
        epsilon: the budget, above 0.
        delta: in (0, 1).
        population: N, devices of the task; from 1.
        cohort: m, updates expected in a round, what sums are divided by; 1 to N.
        rounds: T, from 1.
        sampling: what amplification is to be claimed.
        max_participations: rounds that one device may take part in, from 1; None: all. Without
            sampling.
        bands: of a banded matrix, from 1; such rounds of one device lie at least so far apart.
            None: independent noise.
        accountant: what the noise is calibrated by.
        sensitivity: of the sum, in units of C, above 0.
        clipping_norm: C, above 0.
        dim: numbers of an update that noise is added to; from 1.
        excess: standard deviation of the noise over what is needed, from 1; above 1 where share
            holders deal it: sqrt(D / (D - t + 1)).

    Raises:
        PrivacyError: if a number is out of range.
    """

    epsilon: float
    delta: float
    population: int
    cohort: int
    rounds: int
    sampling: Sampling = Sampling.POISSON
    max_participations: int | None = None
    bands: int | None = None
    accountant: Accountant = "pld"
    sensitivity: float = 1.0
    clipping_norm: float = 1.0
    dim: int = 1
    excess: float = 1.0

    def __post_init__(self) -> None:
        cap, bands = self.max_participations, self.bands
        for name, is_fine, rule in (
            ("cohort", 1 <= self.cohort <= self.population, f"in 1..population={self.population}"),
            ("rounds", self.rounds >= 1, "at least 1"),
            ("max_participations", cap is None or cap >= 1, "at least 1"),
            ("sensitivity", self.sensitivity > 0, "above 0"),
            ("clipping_norm", self.clipping_norm > 0, "above 0"),
            ("dim", self.dim >= 1, "at least 1"),
            ("excess", self.excess >= 1, "at least 1"),
            ("bands", bands is None or bands >= 1, "at least 1"),
        ):
            if not is_fine:
                message = f"{name}={getattr(self, name)} must be {rule}"
                raise PrivacyError(message)
        if self.sampling is not Sampling.NONE and not cap is bands is None:
            message = f"max_participations={cap} and bands={bands} must not be given with sampling"
            message += f" {self.sampling.value}"
            raise PrivacyError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyPlan:
    """The noise that a request needs, and what follows from it.

    Attributes:
        charge: of each round, with the noise multiplier z.
        participations: rounds that count for one device.
        epsilon_pld, epsilon_rdp: what the run spends, by either bound.
        max_participations: how many could count for one device within the budget: the most rounds
            of the run with sampling, of one device without.
        error_per_coordinate: standard deviation of the noise in one coordinate of a round's mean;
            with banded noise that of a late round.
        error_norm: the noise's root mean square norm in a round's mean.
        cumulative_error: standard deviation, in one coordinate, of the noise in the sum of all
            means so far; root mean square over the rounds. Where learning adds means up, this is
            what reaches the model.
        assumption: what the epsilon assumes about sampling.
    """

    charge: Charge
    participations: int
    epsilon_pld: float
    epsilon_rdp: float
    max_participations: int
    error_per_coordinate: float
    error_norm: float
    cumulative_error: float
    assumption: str


def plan(request: PlanRequest) -> PrivacyPlan:
    """Find the least noise with which a run fits its budget, and the error it makes.

    Raises:
        PrivacyError: if no noise on offer is enough.

    Guarantees:
        The run's epsilon by the request's accountant is at most the budget.

    Cost: seconds at most.
    """
    participations = _participations(request)
    z = noise_multiplier(
        _charge(request, 1.0),
        releases=participations,
        epsilon=request.epsilon,
        delta=request.delta,
        accountant=request.accountant,
    )
    charge = _charge(request, z)
    counts = {charge: participations}
    scale = z * request.sensitivity * request.clipping_norm * request.excess / request.cohort
    single, cumulative = _growth(request)
    return PrivacyPlan(
        charge=charge,
        participations=participations,
        epsilon_pld=epsilon_of(counts, request.delta, "pld"),
        epsilon_rdp=epsilon_of(counts, request.delta, "rdp"),
        max_participations=max_releases(
            charge, epsilon=request.epsilon, delta=request.delta, accountant=request.accountant
        ),
        error_per_coordinate=scale * single,
        error_norm=scale * single * math.sqrt(request.dim),
        cumulative_error=scale * cumulative,
        assumption=ASSUMPTIONS[request.sampling],
    )


def _participations(request: PlanRequest) -> int:
    counted = charged_rounds(request.sampling, request.rounds, request.max_participations)
    # Rounds at least b apart: there is no room for more in the run.
    return min(counted, -(-request.rounds // (request.bands or 1)))


def _charge(request: PlanRequest, z: float) -> Charge:
    match request.sampling:
        case Sampling.POISSON:
            return Charge(
                noise_multiplier=z,
                sampling=Sampling.POISSON,
                sampling_probability=request.cohort / request.population,
            )
        case Sampling.FIXED_SIZE:
            return Charge(
                noise_multiplier=z,
                sampling=Sampling.FIXED_SIZE,
                population=request.population,
                cohort=request.cohort,
            )
        case Sampling.NONE if request.bands is not None:
            return Charge(noise_multiplier=z, mechanism=Mechanism.BANDED, bands=request.bands)
        case Sampling.NONE:
            return Charge(noise_multiplier=z)


def _growth(request: PlanRequest) -> tuple[float, float]:
    """Compute a late round's and the summed noise's deviations, over an independent round's."""
    rounds = request.rounds
    inverse = np.zeros(rounds)
    inverse[0] = 1.0
    if request.bands is not None:
        inverse = _banded_inverse(min(request.bands, rounds), rounds)
    # Of a Toeplitz matrix, the noise of round t is a sum over the first t coefficients, and the
    # noise summed up to it one over their sums.
    summed = np.cumsum(np.cumsum(inverse) ** 2)
    return math.sqrt(float((inverse**2).sum())), math.sqrt(float(summed.mean()))


def _banded_inverse(bands: int, rounds: int) -> Floats:
    """Return the first column of the inverse of the banded Toeplitz matrix with unit columns.

    Its coefficients are those of 1 / sqrt(1 - x) up to the band: Kalinin and Lampert (2024),
    arXiv:2405.13763.
    """
    steps = np.arange(1, bands)
    column = np.concatenate(([1.0], np.cumprod((2.0 * steps - 1.0) / (2.0 * steps))))
    column /= math.sqrt(float((column**2).sum()))
    inverse = np.zeros(rounds)
    inverse[0] = 1.0 / column[0]
    for place in range(1, rounds):
        depth = min(bands - 1, place)
        earlier = inverse[place - depth : place][::-1]
        inverse[place] = -float(column[1 : depth + 1] @ earlier) / column[0]
    return inverse
