"""Compile the loops before the first request: a few seconds where no compiled code is cached."""

import numpy as np

from security.secret_sharing import arithmetic, cnf, fixed_point, reconstruction, seeded
from security.secret_sharing.expansion import SHORT_WORDS, Expansion
from security.secret_sharing.field import M31, M61, MersenneField
from security.secret_sharing.sketch import Sketch
from security.secret_sharing.threshold import Threshold

_DIM = SHORT_WORDS + 1
_KEYS = (bytes(32), bytes([1]) * 32)  # of nobody's update


def warm_up() -> str:
    """Share, add up, check and open a vector of zeros in both fields; name the backend."""
    for field in (M31, M61):
        _share_and_open(field)
    return arithmetic.backend()


def _share_and_open(field: MersenneField) -> None:
    scheme = Threshold(3, 5)
    words = fixed_point.encode(np.zeros(_DIM, np.float32), fraction_bits=1, field=field)
    expansions = [Expansion(key, field, _DIM) for key in _KEYS]
    chosen = [expansion.words(0, _DIM) for expansion in expansions]
    explicit = np.empty((3, _DIM), field.wire_dtype)
    seeded.share_chunk(scheme, words, expansions, 0, explicit)
    shares = dict(enumerate([*chosen, *seeded.explicit_shares(field, scheme, words, chosen)], 1))
    cnf.explicit_piece(field, words, chosen)
    for weight in (1, -1, 3):
        arithmetic.add_into(field, words, chosen[0], weight)
    arithmetic.dot(field, *chosen)
    reconstruction.reconstruct(field, shares, degree=2)
    Sketch(_KEYS[0], field=field, dim=_DIM, sketch_dim=64).of([(0, words)])


if __name__ == "__main__":
    warm_up()
