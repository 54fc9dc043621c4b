"""What follows from the fields of a shared round's parameters."""

import math
from dataclasses import replace

import pytest

from security.errors import SharingError, WrongRoundParametersError
from security.shared_round.terms.parameter_facts import Checks, ShareFormat
from tests.security.shared_round.shared_vectors import noised, parameters


def test_staleness_is_weighted_or_refused() -> None:
    params = parameters(staleness_weights=(8, 4, 2))
    assert [params.staleness_weight(version) for version in (7, 6, 5)] == [8, 4, 2]
    for version in (8, 4, 0):
        with pytest.raises(WrongRoundParametersError, match=r"5\.\.7"):
            params.staleness_weight(version)


def test_sizes_follow_the_format() -> None:
    seeded = parameters()
    replicated = parameters(format=ShareFormat.CNF_SEEDED)
    bits = (seeded.norm_bound**2).bit_length()
    assert (seeded.num_extras, replicated.num_extras) == (bits + 81, bits + 80)
    assert [seeded.has_body(j) for j in range(1, 6)] == [False, False, True, True, True]
    assert [replicated.has_body(j) for j in range(1, 6)] == [True, True, True, False, False]
    assert (seeded.num_bodies, replicated.num_bodies) == (3, 1)
    assert seeded.body_bytes(2) == seeded.length * 8 + 16
    with pytest.raises(SharingError):
        seeded.body_bytes(3)
    narrow = parameters(checks=Checks.SUM, dim=262_145)
    assert narrow.body_bytes(0) == 262_145 * 4 + 32


def test_a_multiplier_is_met_to_the_unit() -> None:
    params = replace(noised(), noise_stddev=3 * 2**20, norm_bound=2**20)
    assert params.noise_dealers == 4  # two of them may collude: sqrt(2) of the rest is left
    assert params.has_noise_multiplier(math.nextafter(3 * math.sqrt(2), 0))
    assert not params.has_noise_multiplier(math.nextafter(3 * math.sqrt(2), 9))
    assert not replace(params, noise_stddev=3 * 2**20 - 1).has_noise_multiplier(3 * math.sqrt(2))
    assert params.guaranteed_noise_stddev == pytest.approx(3 * 2**20 * math.sqrt(2), rel=1e-15)
    assert parameters().guaranteed_noise_stddev == 0.0
    assert parameters().has_noise_multiplier(0.0)
    assert not parameters().has_noise_multiplier(1e-9)
