import numpy as np
import pytest

from security.errors import SharingError
from security.secret_sharing.expansion import Expansion, derive_key, expand_words
from security.secret_sharing.field import M31, M61, MersenneField, Words
from tests.looped import looped
from tests.security.secret_sharing import oracle

M7 = MersenneField(7)
KEY = bytes(range(32))
every_field = pytest.mark.parametrize("field", [M7, M31, M61], ids=lambda field: f"{field.bits}")


def whole(field: MersenneField, length: int, key: bytes = KEY) -> Words:
    return np.array(oracle.expand(key, field.bits, length), dtype=np.uint64)


@every_field
@looped("length", [0, 1, 511, 512, 513, 1001])
def test_elements_are_those_of_the_definition(field: MersenneField, length: int) -> None:
    np.testing.assert_array_equal(expand_words(KEY, field, length), whole(field, length))


@every_field
@looped("length", [300, 40_000])
def test_any_part_can_be_read_alone(field: MersenneField, length: int) -> None:
    expansion = Expansion(KEY, field, length)
    everything = expansion.words(0, length)
    for start, count in [(0, 0), (1, 1), (3, 17), (length - 1, 1), (5, length - 5), (length, 0)]:
        part = expansion.words(start, count)
        np.testing.assert_array_equal(part, everything[start : start + count])


def test_a_reader_goes_on_where_it_stopped() -> None:
    expansion = Expansion(KEY, M61, 50_000)
    everything = expansion.words(0, 50_000)
    read = expansion.reader(7)
    parts = [np.empty(count, np.uint64) for count in (1, 20_000, 0, 333)]
    for part in parts:
        read(part)
    np.testing.assert_array_equal(np.concatenate(parts), everything[7 : 7 + 20_334])
    with pytest.raises(SharingError, match="must end by 50000"):
        read(np.empty(50_000, np.uint64))


def test_the_word_that_is_no_element_is_replaced_by_its_position() -> None:
    # In 7 bits one word of 128 comes out as p: the rare path of the real fields.
    for length in (512, 5000):
        words = expand_words(KEY, M7, length)
        assert int(words.max()) < M7.modulus
        np.testing.assert_array_equal(words, whole(M7, length))
        counts = np.bincount(words.astype(np.int64), minlength=M7.modulus)
        # chi-square of 126 degrees: mean 126, standard deviation 16
        assert ((counts - length / 127) ** 2 / (length / 127)).sum() < 126 + 6 * 16


def test_keys_differ_by_all_they_are_derived_from() -> None:
    seed = bytes(32)
    params_sha256, other = bytes(32), bytes([1]) * 32
    keys = {
        derive_key(seed, params_sha256=params_sha256, device_id="a", piece=1),
        derive_key(other, params_sha256=params_sha256, device_id="a", piece=1),
        derive_key(seed, params_sha256=other, device_id="a", piece=1),
        derive_key(seed, params_sha256=params_sha256, device_id="b", piece=1),
        derive_key(seed, params_sha256=params_sha256, device_id="a", piece=2),
    }
    assert len(keys) == 5


def test_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(SharingError, match="must have 32 bytes, got 31 and 32"):
        derive_key(bytes(31), params_sha256=bytes(32), device_id="a", piece=1)
    with pytest.raises(SharingError, match="piece=-1"):
        derive_key(bytes(32), params_sha256=bytes(32), device_id="a", piece=-1)
    with pytest.raises(SharingError, match="key must have 32 bytes"):
        Expansion(bytes(16), M61, 10)
    expansion = Expansion(KEY, M61, 10)
    with pytest.raises(SharingError, match=r"start=-1 must be in 0\.\.10"):
        expansion.words(-1, 2)
    with pytest.raises(SharingError, match="count=-1"):
        expansion.words(0, -1)
    with pytest.raises(SharingError, match=r"words 9\.\.11 must end by 10"):
        expansion.words(9, 2)


def test_a_key_is_not_shown() -> None:
    assert KEY.hex() not in repr(Expansion(KEY, M61, 1))
    assert repr(KEY) not in repr(Expansion(KEY, M61, 1))
