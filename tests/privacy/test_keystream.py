import hashlib
import hmac

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.errors import PrivacyError
from privacy.keystream import KEY_BYTES, Keystream, derive_key

KEY = bytes(range(KEY_BYTES))
PARTS = st.lists(
    st.one_of(st.binary(max_size=4), st.text(max_size=4), st.integers(0, 2**64 - 1)), max_size=3
)


def hkdf(key: bytes, salt: bytes, info: bytes) -> bytes:
    # RFC 5869, one block.
    extracted = hmac.digest(salt, key, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")


def test_the_stream_is_that_of_published_vectors() -> None:
    # AES-256 under the zero key of blocks 0 (NIST AESAVS) and 1 (GCM specification, test case 13).
    blocks = "dc95c078a2408989ad48a21492842087" + "530f8afbc74536b9a963b4f1c4cb738b"
    words = Keystream(bytes(KEY_BYTES)).words(4)
    assert words.astype("<u8").tobytes().hex() == blocks


@given(st.lists(st.integers(0, 40_000), max_size=5))
def test_words_do_not_depend_on_how_many_are_read_at_a_time(counts: list[int]) -> None:
    stream = Keystream(KEY)
    parts = [stream.words(count) for count in counts]
    np.testing.assert_array_equal(
        np.concatenate([np.empty(0, np.uint64), *parts]), Keystream(KEY).words(sum(counts))
    )


def test_bits_are_balanced_and_keys_unrelated() -> None:
    one, other = Keystream(KEY).words(10_000), Keystream(KEY[::-1]).words(10_000)
    for words in (one, one ^ other):
        ones = int(np.unpackbits(words.view(np.uint8)).sum())
        # 640,000 fair bits: the standard deviation is 400.
        assert abs(ones - 320_000) < 2000


def test_a_derived_key_is_that_of_rfc_5869() -> None:
    info = b"b" + bytes([5, *bytes(7)]) + b"label" + b"i" + bytes([8, *bytes(7), 7, *bytes(7)])
    info += b"s" + bytes([2, *bytes(7)]) + "é".encode()
    assert derive_key(KEY, b"label", 7, "é") == hkdf(KEY, b"fedagg/privacy/1", info)


@given(PARTS, PARTS)
def test_different_contexts_give_different_keys(
    one: list[bytes | str | int], other: list[bytes | str | int]
) -> None:
    same = [(type(part), part) for part in one] == [(type(part), part) for part in other]
    assert (derive_key(KEY, b"x", *one) == derive_key(KEY, b"x", *other)) == same


def test_keys_are_bound_to_key_label_kind_and_borders() -> None:
    keys = {
        derive_key(KEY, b"x"),
        derive_key(KEY[::-1], b"x"),
        derive_key(KEY, b"y"),
        derive_key(KEY, b"x", 1),
        derive_key(KEY, b"x", "1"),
        derive_key(KEY, b"x", b"1"),
        derive_key(KEY, b"x", "ab", "c"),
        derive_key(KEY, b"x", "a", "bc"),
        hashlib.sha256(KEY).digest(),
    }
    assert len(keys) == 9


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(33)])
def test_keys_of_another_length_are_refused_and_not_shown(key: bytes) -> None:
    with pytest.raises(PrivacyError, match=f"key must have 32 bytes, got {len(key)}"):
        Keystream(key)
    with pytest.raises(PrivacyError, match="key must have 32 bytes"):
        derive_key(key, b"x")
    assert str(KEY) not in repr(Keystream(KEY))


def test_other_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(PrivacyError, match="label must not be empty"):
        derive_key(KEY, b"")
    with pytest.raises(PrivacyError, match="context=-1"):
        derive_key(KEY, b"x", -1)
    with pytest.raises(PrivacyError, match="context=18446744073709551616"):
        derive_key(KEY, b"x", 2**64)
    with pytest.raises(PrivacyError, match="count=-1"):
        Keystream(KEY).words(-1)
