"""Prints what a step of accounting costs: `python -m tests.privacy.accountant_cost`."""

import sys
import timeit

from privacy.charge import Charge, Sampling
from privacy.renyi_accountant import RenyiPrivacyAccountant

_CALLS = 20_000


def main() -> None:
    """Time composing a release, asking whether one more fits, and the whole bound."""
    charge = Charge(noise_multiplier=1.417, sampling=Sampling.POISSON, sampling_probability=0.01)
    accountant = RenyiPrivacyAccountant()
    accountant.compose(charge)
    for name, call in (
        ("compose", lambda: accountant.compose(charge)),
        ("fits", lambda: accountant.fits(charge, epsilon=1e6, delta=1e-5)),
        ("epsilon", lambda: accountant.epsilon(1e-5)),
    ):
        best = min(timeit.repeat(call, number=_CALLS, repeat=5)) / _CALLS
        sys.stdout.write(f"{name:8} {best * 1e6:6.2f} us\n")


if __name__ == "__main__":
    main()
