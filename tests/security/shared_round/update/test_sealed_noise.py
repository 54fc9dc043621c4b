"""A holder's noise as a bundle: what the holders make of it is the noise."""

import random
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from security.errors import SharingError, WrongRoundParametersError
from security.secret_sharing.fixed_point import centered
from security.secret_sharing.reconstruction import reconstruct
from security.shared_round.keys.dealers import DealerSigner, verify_dealer
from security.shared_round.terms.parameter_facts import Checks, ShareFormat
from security.shared_round.terms.parameters import RoundParameters
from security.shared_round.update.pieces import BodyCheck, SharePieces, open_frame
from security.shared_round.update.sealed_noise import SealedNoise
from tests.looped import looped
from tests.security.shared_round.sealed_round import COMMITTEE, HOLDERS, Parts, make_round

SIGNER = DealerSigner(holder=4, secrets=HOLDERS[3])


def noised(
    share_format: ShareFormat, checks: Checks = Checks.NORM, dim: int = 100
) -> RoundParameters:
    params = make_round(dim=dim, format=share_format, checks=checks)
    return replace(params, staleness_weights=(1,), noise_dealers=4, noise_stddev=2**20)


def noise_of(dim: int) -> NDArray[np.int64]:
    drawn = np.random.default_rng(5).normal(scale=2.0**20, size=dim)
    return np.rint(drawn).astype(np.int64)


def share_of(params: RoundParameters, parts: Parts, holder: int) -> NDArray[np.uint64]:
    """What one holder makes of its part, checked as it checks any share."""
    header = verify_dealer(parts.prefix.header, COMMITTEE)
    keys = open_frame(params, HOLDERS[holder - 1], holder, header, parts.frame(holder))
    chunks = parts.chunks(holder)
    body = None
    if params.has_body(holder):
        check = BodyCheck(params, keys, header, holder)
        for chunk in chunks:
            check.feed(chunk)
        check.finish()
        body = chunks.__getitem__
    words = [part.copy() for _, part in SharePieces(params, keys, holder, body).chunks()]
    return np.concatenate(words)


@looped("checks", [Checks.SUM, Checks.NORM])
@looped("share_format", list(ShareFormat))
@looped("dim", [1, 100, 40_000])
def test_the_holders_shares_open_to_the_noise(
    share_format: ShareFormat, checks: Checks, dim: int
) -> None:
    params = noised(share_format, checks, dim)
    noise = noise_of(dim)
    sealed = SealedNoise(params, COMMITTEE, SIGNER, noise, random_bytes=random.Random(1).randbytes)
    parts = Parts(params, sealed[:])
    shares = {holder: share_of(params, parts, holder) for holder in range(1, 6)}
    opened = reconstruct(
        params.field, shares, degree=params.threshold - 1, scale=params.sharing.share_scale
    )
    assert opened.liars == ()
    values = centered(opened.values, params.field)
    np.testing.assert_array_equal(values[:dim], noise)
    assert not values[dim:].any()


def test_reading_twice_gives_the_same_bytes() -> None:
    params = noised(ShareFormat.SHAMIR_SEEDED)
    sealed = SealedNoise(params, COMMITTEE, SIGNER, noise_of(100))
    assert sealed[:] == sealed[:10] + sealed[10:]
    assert len(sealed[:]) == len(sealed)


def test_a_round_without_noise_gets_none() -> None:
    params = make_round()
    with pytest.raises(SharingError, match="noise_dealers=0"):
        SealedNoise(params, COMMITTEE, SIGNER, noise_of(100))


@pytest.mark.parametrize(
    "noise",
    [
        noise_of(99),
        noise_of(100).astype(np.int32),
        np.full(100, 2**60, dtype=np.int64),
        np.full(100, -(2**63), dtype=np.int64),
    ],
    ids=["short", "int32", "too large", "too small"],
)
def test_noise_that_does_not_fit_is_refused(noise: NDArray[np.int64]) -> None:
    with pytest.raises(SharingError, match="noise must be"):
        SealedNoise(noised(ShareFormat.CNF_SEEDED), COMMITTEE, SIGNER, noise)


def test_another_committees_round_is_refused() -> None:
    params = replace(noised(ShareFormat.CNF_SEEDED), committee_sha256=b"x" * 32)
    with pytest.raises(WrongRoundParametersError):
        SealedNoise(params, COMMITTEE, SIGNER, noise_of(100))
