"""The least noise with which a number of releases fits a budget."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Final

from privacy.budget import Accountant
from privacy.charge import Charge
from privacy.errors import PrivacyError
from privacy.renyi_accountant import epsilon_of

STEPS_PER_UNIT: Final = 1000
"""Noise multipliers are whole thousandths."""

MAX_MULTIPLIER: Final = 1_000_000
"""More noise than this is not offered."""


@lru_cache(maxsize=256)
def noise_multiplier(
    shape: Charge,
    *,
    releases: int,
    epsilon: float,
    delta: float,
    accountant: Accountant = "pld",
) -> float:
    """Find the least noise multiplier with which releases fit a budget.

    Args:
        shape: the charge of each release; its own noise multiplier is not looked at.
        releases: how many count for one device, from 1: `privacy.participation.charged_rounds`.
        epsilon: the budget, above 0.
        delta: in (0, 1).
        accountant: as in `privacy.renyi_accountant.epsilon_of`.

    Returns:
        z, the least whole number of thousandths whose `epsilon_of` is at most `epsilon`.

    Raises:
        PrivacyError: if an argument is out of range, or more than `MAX_MULTIPLIER` were needed.

    Guarantees:
        The budget holds at the result, and does not hold a thousandth below it.

    Cost: a dozen to twenty calls of `epsilon_of`, up to some tenths of a second each, once for
        each argument of the last 256.
    """
    if releases < 1 or not epsilon > 0:
        message = f"releases={releases} must be at least 1, epsilon={epsilon} above 0"
        raise PrivacyError(message)

    def fits(steps: int, by: Accountant) -> bool:
        charge = replace(shape, noise_multiplier=steps / STEPS_PER_UNIT)
        return epsilon_of({charge: releases}, delta, by) <= epsilon

    # Loss distributions of too little noise are large: start where the Renyi bound holds.
    start = STEPS_PER_UNIT
    while not fits(start, "rdp"):
        start *= 2
        if start > MAX_MULTIPLIER * STEPS_PER_UNIT:
            message = f"noise_multiplier above {MAX_MULTIPLIER} would be needed for so little"
            message += f" as epsilon={epsilon}"
            raise PrivacyError(message)
    return _least(lambda steps: fits(steps, accountant), start) / STEPS_PER_UNIT


def _least(fits: Callable[[int], bool], high: int) -> int:
    """Find the least steps that fit, given some that do and that more fit better."""
    low = high * 3 // 4
    while low > 0 and fits(low):
        low, high = low * 3 // 4, low
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            high = middle
        else:
            low = middle
    return high
