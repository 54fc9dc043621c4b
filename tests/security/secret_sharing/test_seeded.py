import numpy as np
import pytest

from security.errors import SharingError
from security.secret_sharing.expansion import Expansion, expand_words
from security.secret_sharing.field import M31, M61, MersenneField
from security.secret_sharing.seeded import explicit_shares, share_chunk
from security.secret_sharing.threshold import Threshold

LENGTH = 70_001


@pytest.mark.parametrize("field", [M31, M61], ids=lambda field: f"{field.bits}")
@pytest.mark.parametrize("scheme", [Threshold(2, 5), Threshold(3, 5), Threshold(4, 7)], ids=str)
def test_chunks_give_the_shares_of_the_whole(field: MersenneField, scheme: Threshold) -> None:
    secret = expand_words(bytes(32), field, LENGTH)
    expansions = [Expansion(bytes([i]) * 32, field, LENGTH) for i in range(1, scheme.threshold)]
    chosen = [expansion.words(0, LENGTH) for expansion in expansions]
    expected = explicit_shares(field, scheme, secret, chosen)
    for start, stop in [(0, 33_000), (33_000, 33_001), (33_001, LENGTH), (5, 5)]:
        out = np.empty((len(expected), stop - start), field.wire_dtype)
        share_chunk(scheme, secret[start:stop], expansions, start, out)
        for row, words in zip(out, expected, strict=True):
            np.testing.assert_array_equal(row, words[start:stop])


def test_what_does_not_fit_is_refused() -> None:
    scheme = Threshold(3, 5)
    secret = np.zeros(4, np.uint64)
    expansions = [Expansion(bytes(32), M61, 4)] * 2
    with pytest.raises(SharingError, match="seed_shares must be 2 vectors of 4 words"):
        explicit_shares(M61, scheme, secret, [secret])
    with pytest.raises(SharingError, match="seed_shares must be 2 vectors of 4 words"):
        explicit_shares(M61, scheme, secret, [secret, np.zeros(5, np.uint64)])
    with pytest.raises(SharingError, match="expansions must be 2"):
        share_chunk(scheme, secret, expansions[:1], 0, np.empty((3, 4), np.uint64))
    with pytest.raises(SharingError, match=r"got 2 and \(3, 5\)"):
        share_chunk(scheme, secret, expansions, 0, np.empty((3, 5), np.uint64))
    with pytest.raises(SharingError, match="must end by 4"):
        share_chunk(scheme, secret, expansions, 1, np.empty((3, 4), np.uint64))
