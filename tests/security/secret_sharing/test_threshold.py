from math import comb

import pytest

from security.errors import SharingError
from security.secret_sharing.threshold import MAX_HOLDERS, Threshold

ALL = [Threshold(t, n) for n in range(2, MAX_HOLDERS + 1) for t in range(2, n + 1)]


@pytest.mark.parametrize("scheme", ALL, ids=str)
def test_t_holders_have_all_pieces_and_fewer_lack_one(scheme: Threshold) -> None:
    t, n = scheme.threshold, scheme.holders
    assert scheme.num_pieces == comb(n, t - 1)
    assert list(scheme.excluded_sets) == sorted(scheme.excluded_sets)
    for holder in scheme.points:
        assert len(scheme.pieces_of(holder)) == comb(n - 1, t - 1)
    for lacking in scheme.excluded_sets:
        held = {piece for holder in lacking for piece in scheme.pieces_of(holder)}
        assert set(range(scheme.num_pieces)) - held == {scheme.excluded_sets.index(lacking)}
        one_more = next(holder for holder in scheme.points if holder not in lacking)
        assert held | set(scheme.pieces_of(one_more)) == set(range(scheme.num_pieces))


@pytest.mark.parametrize("scheme", ALL, ids=str)
def test_two_quorums_share_an_honest_holder(scheme: Threshold) -> None:
    overlap = 2 * scheme.default_quorum - scheme.holders
    assert overlap >= scheme.threshold  # of whom t - 1 may lie
    assert 2 * (scheme.default_quorum - 1) - scheme.holders < scheme.threshold
    assert scheme.product_shares == 2 * scheme.threshold - 1


@pytest.mark.parametrize(("t", "n"), [(1, 3), (4, 3), (0, 0), (3, 8)])
def test_a_threshold_that_hides_nothing_or_opens_never_is_refused(t: int, n: int) -> None:
    with pytest.raises(SharingError, match=f"threshold={t} and holders={n} must satisfy"):
        Threshold(t, n)


def test_an_unknown_holder_is_refused() -> None:
    for holder in (0, 6):
        with pytest.raises(SharingError, match=rf"holder={holder} must be in 1\.\.5"):
            Threshold(3, 5).pieces_of(holder)
