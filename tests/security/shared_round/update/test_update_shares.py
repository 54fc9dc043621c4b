"""Norms of encoded updates: exact, bounded, and kept by honest clipping."""

import dataclasses

import numpy as np
import pytest

from security.errors import SharingError
from security.shared_round.terms.parameter_facts import Checks, ShareFormat
from security.shared_round.terms.parameters import RoundParameters
from security.shared_round.update.update_shares import UpdateKeys, squared_norm
from tests.looped import looped
from tests.security.shared_round.sealed_round import make_round, sealed, update_of

SMALL = make_round()
WIDE = dataclasses.replace(make_round(checks=Checks.SUM), fraction_bits=30, norm_bound=2**42)


def exact(vector: np.ndarray, params: RoundParameters) -> int:
    integers = np.rint(vector.astype(np.float64) * 2**params.fraction_bits)
    return sum(int(value) ** 2 for value in integers)


@pytest.mark.parametrize("dim", [1, 100, 262_145])
def test_the_squared_norm_is_exact(dim: int) -> None:
    params = make_round(dim=dim)
    vector = update_of(dim)
    assert squared_norm(vector, params) == exact(vector, params)


@looped("magnitude", [0.0, 0.004, 1.0, 100.0, 2.0**27, 2.0**29])
def test_the_squared_norm_is_exact_for_large_numbers(magnitude: float) -> None:
    vector = np.full(100, -magnitude, np.float32)
    vector[::3] = np.float32(magnitude) / 3
    assert squared_norm(vector, WIDE) == exact(vector, WIDE)


def test_the_largest_numbers_do_not_overflow_the_sums() -> None:
    params = dataclasses.replace(WIDE, dim=2**18)
    vector = np.full(params.dim, 0.0039, np.float32)  # one limb, nearly full
    assert squared_norm(vector, params) == params.dim * exact(vector[:1], params)


def test_a_norm_at_the_bound_is_shared_and_one_above_is_not() -> None:
    vector = np.zeros(100, np.float32)
    vector[0] = SMALL.norm_bound / 2**SMALL.fraction_bits
    assert sealed(SMALL, vector)
    vector[1] = 2.0**-SMALL.fraction_bits
    assert squared_norm(vector, SMALL) == SMALL.norm_bound**2 + 1
    with pytest.raises(SharingError, match="norm_bound"):
        sealed(SMALL, vector)


def test_keys_do_not_show_themselves() -> None:
    keys = UpdateKeys.draw(make_round(format=ShareFormat.CNF_SEEDED), lambda size: b"k" * size)
    assert "kkk" not in repr(keys).replace(repr(keys.nonce), "")
    assert len(keys.seeds) == 9
    assert len(keys.content_keys) == 1
