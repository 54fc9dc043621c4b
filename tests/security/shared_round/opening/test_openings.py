"""What holders compute from their shares, against plain integers."""

from dataclasses import replace
from fractions import Fraction
from math import prod

import numpy as np
import pytest

from security.errors import SharingError
from security.secret_sharing.fixed_point import centered
from security.secret_sharing.reconstruction import reconstruct
from security.shared_round.opening import vector_scan
from security.shared_round.opening.coins import Coin
from security.shared_round.opening.openings import (
    compute_openings,
    member_pairs,
    opening_sizes,
    sum_shares,
)
from security.shared_round.opening.vector_scan import VectorScan
from security.shared_round.terms.parameter_facts import Checks, ShareFormat
from security.shared_round.terms.parameters import RoundParameters
from tests.looped import looped
from tests.security.shared_round.shared_vectors import (
    Committee,
    HeldVector,
    deal,
    device_vector,
    parameters,
    update,
)

P = 2**61 - 1
SCHEMES = [(2, 3), (2, 5), (3, 5), (3, 7)]
FORMATS = list(ShareFormat)


def committee(params: RoundParameters, count: int = 6, seed: int = 1) -> Committee:
    rng = np.random.default_rng(seed)
    vectors = [device_vector(params, update(params, rng), i) for i in range(count)]
    return Committee.of(params, vectors, seed)


def plain_sketches(
    params: RoundParameters, coin: Coin, seed: int = 1, count: int = 6
) -> np.ndarray:
    """Sketch the updates themselves, as Python integers."""
    rng = np.random.default_rng(seed)
    scan = VectorScan(params, coin)
    rows = []
    for i in range(count):
        vector = HeldVector(words=device_vector(params, update(params, rng), i))
        rows.append(centered(scan.scan(vector).sketches.reshape(-1), params.field))
    return np.array(rows, dtype=object)


@looped("format_", FORMATS)
@looped("threshold, holders", SCHEMES)
def test_opened_distances_are_those_of_the_plain_integer_sketches(
    threshold: int, holders: int, format_: ShareFormat
) -> None:
    params = parameters(
        threshold=threshold, holders=holders, format=format_, dim=700, sketch_dim=256
    )
    group = committee(params)
    coin = group.coin()
    opened = reconstruct(
        params.field,
        {j: row.distances for j, row in group.openings(coin).items()},
        degree=2 * (threshold - 1),
        scale=params.sharing.share_scale**2,
    )
    sketches = plain_sketches(params, coin)
    expected = [
        sum(int(v) ** 2 for v in sketches[a] - sketches[b]) for b in range(6) for a in range(b)
    ]
    assert opened.values.tolist() == expected
    assert opened.liars == ()


def test_sketched_distances_estimate_the_true_ones_twice() -> None:
    params = parameters(dim=5_000)
    coin = Coin(value=bytes(range(32)))
    sketches = plain_sketches(params, coin)
    rng = np.random.default_rng(1)
    updates = np.array(
        [centered(update(params, rng), params.field) for _ in range(6)], dtype=np.float64
    )
    for a, b in zip(*member_pairs(6), strict=True):
        true = 2.0 * float(((updates[a] - updates[b]) ** 2).sum())
        seen = float(sum(int(v) ** 2 for v in sketches[a] - sketches[b]))
        # Two sketches of 1024 buckets: one standard deviation is 3.1 %; five of those.
        assert seen == pytest.approx(true, rel=0.16)


@pytest.mark.parametrize("format_", FORMATS)
def test_honest_norms_open_to_zero_and_consistency_does_not(format_: ShareFormat) -> None:
    params = parameters(format=format_)
    group = committee(params)
    rows = group.openings(group.coin())
    norms = reconstruct(params.field, {j: r.norms for j, r in rows.items()}, degree=4)
    assert not norms.values.any()
    if format_ is ShareFormat.SHAMIR_SEEDED:
        opened = reconstruct(params.field, {j: r.consistency for j, r in rows.items()}, degree=2)
        assert len(set(opened.values.tolist())) == 6
        assert opened.liars == ()
    else:
        assert all(len(row.consistency) == 0 for row in rows.values())


def test_openings_are_the_same_bytes_every_time_and_whatever_the_chunks() -> None:
    params = parameters(dim=700)
    group = committee(params)
    coin = group.coin()
    first = compute_openings(params, coin, group.set_sha256, group.vectors(2), group.keys[2])
    other = [HeldVector(words=words, chunk=699) for words in group.shares[2]]
    again = compute_openings(params, coin, group.set_sha256, other, group.keys[2])
    for name in ("consistency", "norms", "wraps", "distances"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    sizes = (len(first.consistency), len(first.norms), len(first.wraps), len(first.distances))
    assert sizes == opening_sizes(params, 6) == (6, 6, 40, 15)


def test_rounds_without_checks_open_nothing() -> None:
    params = parameters(checks=Checks.SUM)
    row = compute_openings(params, Coin(value=bytes(32)), bytes(32), [], deal(params.scheme)[1])
    assert [len(row.consistency), len(row.norms), len(row.wraps), len(row.distances)] == [0] * 4
    assert opening_sizes(params, 9) == (0, 0, 0, 0)


@pytest.mark.parametrize("cut", [1, 100])
def test_a_share_of_another_length_is_refused(cut: int) -> None:
    params = parameters()
    coin = Coin(value=bytes(32))
    words = np.zeros(params.length, dtype=np.uint64)
    with pytest.raises(SharingError):
        VectorScan(params, coin).scan(HeldVector(words=words[:-cut]))
    with pytest.raises(SharingError):
        VectorScan(params, coin).scan(HeldVector(words=np.append(words, words[:cut])))


def test_sums_carry_weights_and_drop_extras() -> None:
    params = parameters(format=ShareFormat.CNF_SEEDED, staleness_weights=(8, 1))
    group = committee(params)
    rng = np.random.default_rng(1)
    plain = [centered(update(params, rng), params.field) for _ in range(6)]
    shares = group.sums([[0, 2], [3, 4, 5]], {0: 8})
    for index, expected in enumerate([8 * plain[0] + plain[2], plain[3] + plain[4] + plain[5]]):
        opened = reconstruct(
            params.field,
            {j: shares[j][index] for j in (2, 4, 5)},
            degree=2,
            scale=params.sharing.share_scale,
        )
        assert centered(opened.values, params.field).tolist() == expected.tolist()


def test_a_sum_of_a_share_that_is_too_short_is_refused() -> None:
    params = parameters()
    short = HeldVector(words=np.zeros(params.dim - 1, dtype=np.uint64))
    with pytest.raises(SharingError, match="words"):
        sum_shares(params, [(short, 1)], [[0]])


def coefficients(points: dict[int, int]) -> list[int]:
    """Interpolate a polynomial mod P by solving with fractions' integers, lowest power first."""
    result = [0] * len(points)
    for j, value in points.items():
        basis = [Fraction(1)]
        for i in points:
            if i != j:
                basis = [
                    (basis[k - 1] if k else Fraction(0))
                    - i * (basis[k] if k < len(basis) else Fraction(0))
                    for k in range(len(basis) + 1)
                ]
        divisor = prod(j - i for i in points if i != j)
        for power, coefficient in enumerate(basis):
            result[power] += value * int(coefficient) * pow(divisor, -1, P)
    return [value % P for value in result]


def test_norm_polynomials_of_equal_secrets_cannot_be_linked() -> None:
    params = replace(parameters(dim=4, sketch_dim=64), min_members=2)
    coin = Coin(value=bytes(range(32)))
    group = committee(params, count=24)
    tops: list[int] = []
    seen: list[list[list[int]]] = []
    for run in range(4):
        again = replace(group, set_sha256=bytes([run]) * 32)
        rows = again.openings(coin)
        polynomials = [
            coefficients({j: int(row.norms[i]) for j, row in rows.items()}) for i in range(24)
        ]
        assert all(polynomial[0] == 0 for polynomial in polynomials)
        seen.append(polynomials)
        tops += [value >> 58 for polynomial in polynomials for value in polynomial[1:]]
    for one in range(4):
        for other in range(one):
            for a, b in zip(seen[one], seen[other], strict=True):
                assert all(x != y for x, y in zip(a[1:], b[1:], strict=True))
    # 384 coefficients in 8 bins; chi-square with 7 degrees of freedom is above 36 once in 10^5.
    expected = len(tops) / 8
    assert sum((tops.count(k) - expected) ** 2 / expected for k in range(8)) < 36


def test_without_the_sharing_of_zero_they_would_be_linked() -> None:
    params = parameters(dim=4, sketch_dim=64)
    coin = Coin(value=bytes(range(32)))
    group = committee(params, count=3)
    bare = []
    for run in range(2):
        set_sha256 = bytes([run]) * 32
        label = b"fedagg/zero/norms/1\0" + set_sha256 + coin.sha256
        rows = replace(group, set_sha256=set_sha256).openings(coin)
        zeros = {j: keys.zero_share(params.field, label, 3) for j, keys in group.keys.items()}
        bare.append(
            {
                j: [(int(a) - int(b)) % P for a, b in zip(row.norms, zeros[j], strict=True)]
                for j, row in rows.items()
            }
        )
    assert bare[0] == bare[1]


def test_any_two_holders_see_uniform_shares_of_a_norm() -> None:
    # What holders 1 and 2 hold does not determine what 3 sends: with other keys it differs.
    params = parameters(dim=4, sketch_dim=64)
    coin = Coin(value=bytes(range(32)))
    group = committee(params, count=3)
    rows = group.openings(coin)
    other = replace(group, keys=deal(params.scheme, seed=2)).openings(coin)
    assert not np.any(rows[3].norms == other[3].norms)


def test_factors_that_are_not_kept_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    params = parameters()
    group = committee(params)
    coin = group.coin()
    kept = group.openings(coin)
    monkeypatch.setattr(vector_scan, "_KEPT_WORDS", 0)
    for holder, row in group.openings(coin).items():
        assert np.array_equal(row.consistency, kept[holder].consistency)
