import hashlib
import hmac
from itertools import combinations

import numpy as np
import pytest

from security.errors import SharingError
from security.secret_sharing import arithmetic
from security.secret_sharing.field import M31, M61, MersenneField, Words
from security.secret_sharing.reconstruction import reconstruct
from security.secret_sharing.replicated_keys import ReplicatedKeys
from security.secret_sharing.threshold import Threshold
from tests.security.secret_sharing import oracle
from tests.security.secret_sharing.sharings import by_coefficients, from_seed

M7 = MersenneField(7)
SCHEMES = [Threshold(2, 3), Threshold(2, 5), Threshold(3, 5), Threshold(3, 7), Threshold(4, 7)]
every_scheme = pytest.mark.parametrize("scheme", SCHEMES, ids=str)
every_field = pytest.mark.parametrize("field", [M7, M31, M61], ids=lambda field: f"{field.bits}")


def keys_of(scheme: Threshold, seed: int = 0) -> dict[tuple[int, ...], bytes]:
    rng = np.random.default_rng(seed)
    return {lacking: rng.bytes(32) for lacking in scheme.excluded_sets}


def committee(scheme: Threshold, seed: int = 0) -> dict[int, ReplicatedKeys]:
    keys = keys_of(scheme, seed)
    return {
        holder: ReplicatedKeys(
            scheme, holder, {lacking: key for lacking, key in keys.items() if holder not in lacking}
        )
        for holder in scheme.points
    }


def expanded(key: bytes, label: bytes, field: MersenneField, count: int) -> list[int]:
    digest = hmac.new(key, label, hashlib.sha256).digest()
    return oracle.expand(digest, field.bits, count)


@every_scheme
@every_field
def test_random_shares_open_to_the_sum_over_all_keys(
    scheme: Threshold, field: MersenneField
) -> None:
    shares = {j: keys.random_share(field, b"x", 30) for j, keys in committee(scheme).items()}
    rows = [expanded(k, b"fedagg/prss/1\0x", field, 30) for k in keys_of(scheme).values()]
    expected = [sum(column) % field.modulus for column in zip(*rows, strict=True)]
    for subset in combinations(scheme.points, scheme.threshold):
        some = {holder: shares[holder] for holder in subset}
        opened = reconstruct(field, some, degree=scheme.threshold - 1)
        assert [int(word) for word in opened.values] == expected


@every_scheme
@every_field
def test_zero_shares_are_those_of_the_definition(scheme: Threshold, field: MersenneField) -> None:
    p, t = field.modulus, scheme.threshold
    for holder, keys in committee(scheme).items():
        expected = [0] * 10
        for lacking, key in keys_of(scheme).items():
            weight = oracle.lagrange_at({0: 1, **dict.fromkeys(lacking, 0)}, holder, p)
            for e in range(1, t):
                label = b"fedagg/przs/1\0" + e.to_bytes(4, "little") + b"x"
                row = expanded(key, label, field, 10)
                pairs = zip(expected, row, strict=True)
                expected = [(total + r * holder**e * weight) % p for total, r in pairs]
        assert [int(word) for word in keys.zero_share(field, b"x", 10)] == expected


@pytest.mark.parametrize("scheme", SCHEMES[:4], ids=str)
@every_field
def test_zero_shares_open_to_zero_at_twice_the_degree(
    scheme: Threshold, field: MersenneField
) -> None:
    shares = {j: keys.zero_share(field, b"x", 30) for j, keys in committee(scheme).items()}
    for subset in combinations(scheme.points, scheme.product_shares):
        some = {holder: shares[holder] for holder in subset}
        opened = reconstruct(field, some, degree=scheme.product_shares - 1)
        assert not opened.values.any()


def polynomials(field: MersenneField, shares: dict[int, Words], degree: int) -> list[list[int]]:
    """Give the coefficients 1 .. degree of the polynomial through degree + 1 shares."""
    p = field.modulus
    points = sorted(shares)[: degree + 1]
    found = []
    for i in range(len(shares[points[0]])):
        values = {0: 0}
        rows = []
        for j in points:
            values[j] = int(shares[j][i])
            rows.append([pow(j, e, p) for e in range(degree + 1)] + [values[j]])
        for column in range(degree + 1):  # Gauss, mod p
            pivot = next(r for r in range(column, degree + 1) if rows[r][column])
            rows[column], rows[pivot] = rows[pivot], rows[column]
            inverse = pow(rows[column][column], -1, p)
            rows[column] = [v * inverse % p for v in rows[column]]
            for r in range(degree + 1):
                if r != column:
                    factor = rows[r][column]
                    pairs = zip(rows[r], rows[column], strict=True)
                    rows[r] = [(a - factor * b) % p for a, b in pairs]
        found.append([row[-1] for row in rows[1:]])
    return found


def chi_square(values: list[int], p: int) -> float:
    """Give the distance from uniform in standard deviations of the statistic."""
    counts = np.bincount(np.array(values), minlength=p)
    expected = len(values) / p
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return (statistic - (p - 1)) / float(np.sqrt(2 * (p - 1)))


def test_openings_of_products_show_nothing_but_the_value_once_zeros_are_added() -> None:
    scheme, count = Threshold(3, 5), 2000
    left = by_coefficients(M7, scheme, np.full(count, 5, np.uint64), from_seed(1))
    # The same polynomials on both sides: the product's coefficients are far from uniform.
    shares = {j: arithmetic.multiply(M7, left[j], left[j]) for j in scheme.points}
    bare = polynomials(M7, shares, degree=4)
    for holder, keys in committee(scheme).items():
        arithmetic.add_into(M7, shares[holder], keys.zero_share(M7, b"x", count))
    opened = reconstruct(M7, shares, degree=4)
    assert set(opened.values.tolist()) == {25}
    hidden = polynomials(M7, shares, degree=4)
    for e in range(4):
        assert abs(chi_square([row[e] for row in hidden], M7.modulus)) < 6
    # The control: without the zeros the leading coefficient is a square.
    assert chi_square([row[3] for row in bare], M7.modulus) > 50


def test_labels_give_unrelated_values() -> None:
    keys = committee(Threshold(3, 5))[1]
    for share in (keys.random_share, keys.zero_share):
        assert not np.array_equal(share(M61, b"a", 5), share(M61, b"b", 5))
        np.testing.assert_array_equal(share(M61, b"a", 5), share(M61, b"a", 5))


def test_a_missing_key_is_noticed() -> None:
    scheme = Threshold(3, 5)
    held = {lacking: key for lacking, key in keys_of(scheme).items() if 1 not in lacking}
    assert ReplicatedKeys(scheme, 1, held).is_complete
    held.pop((2, 3))
    partial = ReplicatedKeys(scheme, 1, held)
    assert not partial.is_complete
    with pytest.raises(SharingError, match="holder 1 must have all its keys"):
        partial.random_share(M61, b"x", 1)
    with pytest.raises(SharingError, match="holder 1 must have all its keys"):
        partial.zero_share(M61, b"x", 1)


def test_keys_that_are_not_the_holders_are_refused() -> None:
    scheme = Threshold(3, 5)
    for lacking in ((1, 2), (2,), (3, 2), (2, 6)):
        with pytest.raises(SharingError, match="must be 2 holders but 1"):
            ReplicatedKeys(scheme, 1, {lacking: bytes(32)})
    with pytest.raises(SharingError, match="must have 32 bytes, got 16"):
        ReplicatedKeys(scheme, 1, {(2, 3): bytes(16)})
    with pytest.raises(SharingError, match="holder=6"):
        ReplicatedKeys(scheme, 6, {})


def test_keys_are_not_shown() -> None:
    held: dict[tuple[int, ...], bytes] = {(2,): b"k" * 32, (3,): b"k" * 32}
    assert "kkk" not in repr(ReplicatedKeys(Threshold(2, 3), 1, held))
