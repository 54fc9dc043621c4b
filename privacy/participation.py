"""How many releases count for one device: per-device participation.

Under Poisson and fixed-size sampling every release of the task counts for every device: the
amplification already says how seldom it takes part. Without sampling only the rounds count that a
device took part in, and no device takes part in more than its cap.
"""

from collections.abc import Mapping

from privacy.charge import Charge, Sampling
from privacy.errors import PrivacyError


def participation_counts(
    rounds_by_charge: Mapping[Charge, int], max_participations: int | None
) -> dict[Charge, int]:
    """Count the releases of the device that they cost most.

    Args:
        rounds_by_charge: releases of the task, by charge; each at least 0.
        max_participations: K, rounds without sampling that any one device took, or can take, part
            in; at least 0. None: no cap, so all of them.

    Returns:
        Counts for `privacy.renyi_accountant.epsilon_of`, none of them 0.

    Raises:
        PrivacyError: if a number is below 0.

    Guarantees:
        No device that took part in at most K of the rounds without sampling has a greater epsilon:
        it is charged for the K with the least noise. Rounds with sampling all count.
        Banded noise must keep one multiplier from the first round of a run to the last.
    """
    left = _at_least_0("max_participations", max_participations)
    counts: dict[Charge, int] = {}
    for charge in sorted(rounds_by_charge, key=lambda charge: charge.noise_multiplier):
        rounds = _at_least_0("rounds", rounds_by_charge[charge]) or 0
        if charge.sampling is Sampling.NONE and left is not None:
            rounds = min(rounds, left)
            left -= rounds
        if rounds:
            counts[charge] = rounds
    return counts


def charged_rounds(sampling: Sampling, num_rounds: int, max_participations: int | None) -> int:
    """Count the rounds of a whole run that count for one device.

    Raises:
        PrivacyError: if a number is below 0.
    """
    rounds = _at_least_0("num_rounds", num_rounds) or 0
    most = _at_least_0("max_participations", max_participations)
    return rounds if most is None or sampling is not Sampling.NONE else min(rounds, most)


def _at_least_0(name: str, value: int | None) -> int | None:
    if value is not None and value < 0:
        message = f"{name}={value} must be at least 0"
        raise PrivacyError(message)
    return value
