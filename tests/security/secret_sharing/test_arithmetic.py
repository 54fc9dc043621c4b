import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from security.errors import SharingError
from security.secret_sharing import arithmetic
from security.secret_sharing.field import M31, M61, MersenneField, Words
from tests.looped import looped

M7 = MersenneField(7)
every_field = pytest.mark.parametrize("field", [M7, M31, M61], ids=lambda field: f"{field.bits}")


def words(field: MersenneField, shape: int | tuple[int, ...], seed: int = 0) -> Words:
    return np.random.default_rng(seed).integers(0, field.modulus, shape, dtype=np.uint64)


def integers(array: np.ndarray) -> list[int]:
    return [int(word) for word in array.reshape(-1)]


@given(
    field=st.sampled_from([M7, M31, M61]),
    pairs=st.lists(st.tuples(st.integers(0), st.integers(0)), max_size=40),
    weight=st.integers(-(1 << 70), 1 << 70) | st.sampled_from([0, 1, -1, 8]),
)
def test_any_weight_adds_that_multiple(
    field: MersenneField, pairs: list[tuple[int, int]], weight: int
) -> None:
    p = field.modulus
    reduced = [(a % p, b % p) for a, b in pairs]
    total = np.array([a for a, _ in reduced], dtype=np.uint64)
    added = np.array([b for _, b in reduced], dtype=np.uint64)
    arithmetic.add_into(field, total, added, weight)
    assert integers(total) == [(a + weight * b) % p for a, b in reduced]


@every_field
def test_differences_products_and_inner_products_are_those_of_integers(
    field: MersenneField,
) -> None:
    p = field.modulus
    a, b = words(field, 99, 1), words(field, 99, 2)
    pairs = list(zip(integers(a), integers(b), strict=True))
    assert integers(arithmetic.subtract(field, a, b)) == [(x - y) % p for x, y in pairs]
    assert integers(arithmetic.multiply(field, a, b)) == [x * y % p for x, y in pairs]
    assert arithmetic.dot(field, a, b) == sum(x * y for x, y in pairs) % p


@every_field
@pytest.mark.parametrize("large", [False, True])
def test_weighted_sums_take_weights_of_any_size(field: MersenneField, large: bool) -> None:
    p = field.modulus
    rows = [words(field, 20_001, seed) for seed in range(4)]
    weights = [p // 2, -(p // 3), 5, 1 << 80] if large else [1, -2, 720, -600]
    sums = arithmetic.weighted_sum(field, rows, weights)
    columns = zip(*(integers(row) for row in rows), strict=True)
    expected = [sum(w * x for w, x in zip(weights, c, strict=True)) % p for c in columns]
    assert integers(sums) == expected
    nonzero = arithmetic.nonzero_sums(field, rows, [weights, [0, 0, 0, 0]])
    np.testing.assert_array_equal(nonzero, np.array(expected) != 0)


def test_rows_and_weights_must_fit() -> None:
    rows = [words(M61, 3), words(M61, 3)]
    with pytest.raises(SharingError, match="as many as weights, at least one; got 2, 1"):
        arithmetic.weighted_sum(M61, rows, [1])
    with pytest.raises(SharingError, match="as many as weights, at least one; got 0, 0"):
        arithmetic.weighted_sum(M61, [], [])
    with pytest.raises(SharingError, match="as many as weights"):
        arithmetic.nonzero_sums(M61, rows, [[1, 2, 3]])
    with pytest.raises(SharingError, match=r"one length, got shapes \(3,\) and \(4,\)"):
        arithmetic.weighted_sum(M61, [words(M61, 3), words(M61, 4)], [1, 1])
    with pytest.raises(SharingError, match="one length"):
        arithmetic.add_into(M61, words(M61, 3), words(M61, 4))


@every_field
@looped("m, k", [(1, 1), (3, 0), (5, 7), (4, 5000)])
@looped("extreme", [False, True])
def test_the_gram_matrix_is_that_of_integers(
    field: MersenneField, m: int, k: int, extreme: bool
) -> None:
    p = field.modulus
    rows = np.full((m, k), p - 1, np.uint64) if extreme else words(field, (m, k))
    whole = [integers(row) for row in rows]
    expected = [sum(x * y for x, y in zip(a, b, strict=True)) % p for a in whole for b in whole]
    assert integers(arithmetic.products(field, rows)) == expected


@every_field
def test_signed_sums_are_those_of_integers(field: MersenneField) -> None:
    rows = words(field, (3, 7001), 5)
    rows[0, :9] = field.modulus - 1
    signs = np.random.default_rng(6).choice(np.array([-1, 0, 0, 1], np.int8), (5, 3 * 7001))
    whole = integers(rows)
    expected = [
        sum(int(s) * x for s, x in zip(row, whole, strict=True)) % field.modulus for row in signs
    ]
    assert integers(arithmetic.signed_sum(field, rows, signs)) == expected


def test_signs_and_matrices_must_fit() -> None:
    with pytest.raises(SharingError, match=r"signs must have shape \(T, 6\), got \(2, 5\)"):
        arithmetic.signed_sum(M61, words(M61, (2, 3)), np.zeros((2, 5), np.int8))
    with pytest.raises(SharingError, match="rows must be a matrix"):
        arithmetic.products(M61, words(M61, 3))


def test_the_backend_has_a_name() -> None:
    assert arithmetic.backend() in {"numba", "numpy"}
