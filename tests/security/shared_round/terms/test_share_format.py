"""Both formats keep what the interface says: who holds what, and what can be made of it."""

import numpy as np
import pytest

from security.errors import SharingError
from security.secret_sharing.expansion import Expansion
from security.secret_sharing.field import M31, M61, MersenneField
from security.secret_sharing.reconstruction import reconstruct
from security.secret_sharing.threshold import MAX_HOLDERS, Threshold
from security.shared_round.terms.parameter_facts import ShareFormat
from security.shared_round.terms.share_format import FORMATS, sharing_scheme

THRESHOLDS = [Threshold(t, n) for n in range(2, MAX_HOLDERS + 1) for t in range(2, n + 1)]
every_format = pytest.mark.parametrize("share_format", list(ShareFormat))
every_threshold = pytest.mark.parametrize("threshold", THRESHOLDS, ids=str)


def test_every_name_has_a_format() -> None:
    assert set(FORMATS) == set(ShareFormat)


@every_format
@every_threshold
def test_t_holders_have_every_key_between_them_and_fewer_lack_one(
    share_format: ShareFormat, threshold: Threshold
) -> None:
    sharing = sharing_scheme(share_format, threshold)
    every = set(range(sharing.num_seeds + sharing.num_bodies))
    held = {holder: set(sharing.keys_of(holder)) for holder in threshold.points}
    assert set().union(*held.values()) == every
    fewer = list(threshold.points)[: threshold.threshold - 1]
    assert set().union(*(held[holder] for holder in fewer)) < every
    for holder, keys in held.items():
        bodies = {key - sharing.num_seeds for key in keys if key >= sharing.num_seeds}
        body = sharing.body_of(holder)
        assert bodies == (set() if body is None else {body})
    for stranger in (0, threshold.holders + 1):
        assert sharing.body_of(stranger) is None
        with pytest.raises(SharingError, match="holder="):
            sharing.keys_of(stranger)


@every_format
@pytest.mark.parametrize("field", [M31, M61], ids=str)
@pytest.mark.parametrize("threshold", [Threshold(2, 2), Threshold(3, 5), Threshold(4, 7)], ids=str)
def test_any_t_shares_give_the_secret_times_the_scale(
    share_format: ShareFormat, field: MersenneField, threshold: Threshold
) -> None:
    sharing = sharing_scheme(share_format, threshold)
    rng = np.random.default_rng(7)
    secret = rng.integers(field.modulus, size=40, dtype=np.uint64)
    expansions = [Expansion(rng.bytes(32), field, 40) for _ in range(sharing.num_seeds)]
    bodies = [
        np.frombuffer(body, field.wire_dtype).astype(np.uint64)
        for body in sharing.explicit(field, secret, expansions, 0)
    ]
    assert len(bodies) == sharing.num_bodies
    vectors = [*(expansion.words(0, 40) for expansion in expansions), *bodies]
    shares = {
        holder: sharing.share(
            field, holder, {sharing.piece(key): vectors[key] for key in sharing.keys_of(holder)}
        )
        for holder in list(threshold.points)[-threshold.threshold :]
    }
    opened = reconstruct(field, shares, degree=threshold.threshold - 1, scale=sharing.share_scale)
    np.testing.assert_array_equal(opened.values, secret)
