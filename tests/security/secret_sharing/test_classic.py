import numpy as np
import pytest

from security.errors import SharingError
from security.secret_sharing.field import M61
from security.secret_sharing.threshold import Threshold
from tests.security.secret_sharing import classic
from tests.security.secret_sharing.sharings import from_seed


def test_shares_are_values_of_the_polynomial() -> None:
    scheme = Threshold(3, 5)
    secret = np.array([7, 0], np.uint64)
    coefficients = [np.array([2, M61.modulus - 1], np.uint64), np.array([3, 5], np.uint64)]
    shares = classic.evaluate(M61, scheme, secret, coefficients)
    p = M61.modulus
    for x, words in zip(scheme.points, shares, strict=True):
        assert [int(word) for word in words] == [7 + 2 * x + 3 * x * x, (-x + 5 * x * x) % p]


def test_coefficients_must_be_as_many_as_the_degree() -> None:
    with pytest.raises(SharingError, match="coefficients must be 2, got 1"):
        classic.evaluate(M61, Threshold(3, 5), np.zeros(1, np.uint64), [np.zeros(1, np.uint64)])


def test_the_secret_is_not_modified() -> None:
    secret = np.arange(5, dtype=np.uint64)
    classic.share(M61, Threshold(2, 3), secret, from_seed(1))
    np.testing.assert_array_equal(secret, np.arange(5, dtype=np.uint64))
