import numpy as np
import pytest

from security.errors import SharingError
from security.secret_sharing import cnf
from security.secret_sharing.expansion import expand_words
from security.secret_sharing.field import M61
from security.secret_sharing.threshold import Threshold


def test_the_scale_of_the_usual_schemes() -> None:
    scales = {(2, 3): 6, (2, 5): 60, (3, 5): 120, (3, 7): 2520}
    assert {key: cnf.conversion_scale(Threshold(*key)) for key in scales} == scales


def test_weights_of_three_of_five_are_small() -> None:
    scheme = Threshold(3, 5)
    weights = [cnf.conversion_weights(scheme, holder) for holder in scheme.points]
    assert max(abs(weight) for row in weights for weight in row.values()) == 720


def test_the_pieces_add_up_to_the_secret() -> None:
    secret = expand_words(bytes(32), M61, 600)
    others = [expand_words(bytes([i]) * 32, M61, 600) for i in range(1, 10)]
    before = secret.copy()
    last = cnf.explicit_piece(M61, secret, iter(others))
    total = (sum(piece.astype(object) for piece in [*others, last])) % M61.modulus
    np.testing.assert_array_equal(total, before.astype(object))
    np.testing.assert_array_equal(secret, before)


def test_only_the_own_pieces_are_converted() -> None:
    scheme = Threshold(2, 3)
    pieces = {i: np.zeros(1, np.uint64) for i in range(3)}
    with pytest.raises(SharingError, match=r"pieces must be those of holder 1, \(1, 2\)"):
        cnf.convert(M61, scheme, 1, pieces)
