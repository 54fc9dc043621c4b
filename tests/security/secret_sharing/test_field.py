import numpy as np
import pytest

from security.errors import OutOfRangeWordError, SharingError
from security.secret_sharing.field import M31, M61, MersenneField, field_of

M7 = MersenneField(7)


@pytest.mark.parametrize(("field", "size"), [(M7, 1), (M31, 4), (M61, 8)])
def test_words_go_to_the_wire_and_back(field: MersenneField, size: int) -> None:
    words = np.array([0, 1, 2, field.modulus - 1], dtype=np.uint64)
    data = field.to_wire(words)
    assert data == b"".join(int(word).to_bytes(size, "little") for word in words)
    np.testing.assert_array_equal(field.from_wire(data), words)


@pytest.mark.parametrize("field", [M7, M31, M61])
def test_a_word_that_is_no_element_is_refused(field: MersenneField) -> None:
    for word in (field.modulus, (1 << 8 * field.word_bytes) - 1):
        data = bytes(field.word_bytes) + word.to_bytes(field.word_bytes, "little")
        with pytest.raises(OutOfRangeWordError, match="word 1 must be below"):
            field.from_wire(data)


def test_half_a_word_is_refused() -> None:
    with pytest.raises(SharingError, match="whole words of 8 bytes, got 9 bytes"):
        M61.from_wire(bytes(9))


@pytest.mark.parametrize("field", [M7, M31, M61])
def test_an_inverse_times_its_element_is_one(field: MersenneField) -> None:
    for value in (1, 2, -1, 120, field.modulus - 2, field.modulus + 5):
        assert field.inverse(value) * value % field.modulus == 1
    with pytest.raises(SharingError, match="must not be a multiple"):
        field.inverse(-field.modulus)


def test_only_prime_orders_make_a_field() -> None:
    for bits in (0, 3, 11, 32, 64, 89):
        with pytest.raises(SharingError, match=f"bits={bits} must be one of"):
            MersenneField(bits)


def test_rounds_use_two_fields() -> None:
    assert field_of(61) is M61
    assert field_of(31) is M31
    with pytest.raises(SharingError, match="bits=7 must be 31 or 61"):
        field_of(7)
