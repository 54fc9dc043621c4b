import math
import struct

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.looped import looped
from updates.error_feedback import (
    Residual,
    ResidualError,
    carried,
    from_bytes,
    remaining,
    to_bytes,
)
from updates.errors import CompressionError
from updates.topk import Vector, top_k

OWNER = bytes(range(32))
MODERATE = st.floats(-1e6, 1e6, width=32)
VECTORS = hnp.arrays(np.float32, st.integers(1, 20), elements=MODERATE)


def floats(*values: float) -> Vector:
    return np.array(values, np.float32)


def norm(vector: Vector) -> float:
    return math.sqrt(math.fsum(float(x) ** 2 for x in vector))


def kept_after(residual: Residual | None, round_number: int) -> Vector | None:
    return carried(residual, round_number=round_number, decay=0.5, max_age=4)


def test_nothing_has_decayed_in_the_very_next_round() -> None:
    residual = Residual(vector=floats(1, -2), round=7)
    assert kept_after(residual, 8) is residual.vector


@pytest.mark.parametrize("missed", [1, 2, 3])
def test_what_is_kept_decays_with_every_round_missed(missed: int) -> None:
    kept = kept_after(Residual(vector=floats(1, -2), round=7), 8 + missed)
    assert kept is not None
    assert kept.tolist() == [0.5**missed, -2 * 0.5**missed]
    assert kept.dtype == np.float32


@pytest.mark.parametrize("round_number", [12, 1000, 7, 6, 0])
def test_what_is_too_old_or_of_no_earlier_round_is_dropped(round_number: int) -> None:
    residual = Residual(vector=floats(1), round=7)
    assert kept_after(residual, 11) is not None
    assert kept_after(residual, round_number) is None


def test_a_device_that_holds_nothing_adds_nothing() -> None:
    assert kept_after(None, 3) is None


def test_out_of_range_terms_of_decay_are_refused() -> None:
    for decay in (0.0, 1.1, math.nan):
        with pytest.raises(CompressionError, match=r"decay=.* must be in \(0, 1\]"):
            carried(None, round_number=1, decay=decay, max_age=1)
    with pytest.raises(CompressionError, match="max_age=0 must be at least 1"):
        carried(None, round_number=1, decay=1.0, max_age=0)


def test_what_was_not_sent_is_kept_exactly() -> None:
    kept = remaining(floats(1, 2, 3), floats(0, 2, 2.5), scale=1.0, max_norm=100.0)
    assert kept.tolist() == [1, 0, 0.5]


def test_what_clipping_cut_off_is_dropped() -> None:
    """The compressed vector (0, 4) was halved: what is kept is as if it had been sent whole."""
    kept = remaining(floats(1, 4), floats(0, 2), scale=0.5, max_norm=100.0)
    assert kept.tolist() == [1, 0]


@given(
    st.lists(hnp.arrays(np.float32, 4, elements=MODERATE), min_size=1, max_size=6),
    st.integers(1, 3),
)
def test_all_that_was_sent_and_what_is_kept_add_up_to_all_updates(
    updates: list[Vector], k: int
) -> None:
    kept = np.zeros(4, np.float32)
    total = np.zeros(4)
    largest = 0.0
    for update in updates:
        wanted = update + kept
        sent = np.zeros(4, np.float32)
        sent[top_k(wanted, k)] = wanted[top_k(wanted, k)]
        kept = remaining(wanted, sent, scale=1.0, max_norm=1e9)
        total += sent
        largest = max(largest, float(np.abs(wanted).max()))
    expected = np.sum(np.array(updates, np.float64), axis=0)
    # Each of at most six additions in float32 rounds by 2^-24 of its result.
    np.testing.assert_allclose(total + kept, expected, rtol=0, atol=6 * largest * 2.0**-24)


@given(VECTORS, st.floats(1e-3, 10))
def test_what_is_kept_is_bounded_and_keeps_its_direction(vector: Vector, max_norm: float) -> None:
    kept = remaining(vector, np.zeros_like(vector), scale=1.0, max_norm=max_norm)
    length = norm(vector)
    assert norm(kept) <= max_norm
    if length <= max_norm:
        np.testing.assert_array_equal(kept, vector)
    else:
        # 2^-23 is taken off for rounding, and each coordinate rounds by 2^-24.
        expected = vector.astype(np.float64) * (max_norm / length)
        np.testing.assert_allclose(kept, expected, rtol=2.0**-22, atol=1e-44)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_broken_update_leaves_nothing_behind(value: float) -> None:
    whole, broken = floats(1, 2, 3), floats(1, value, 3)
    assert remaining(broken, whole, scale=1.0, max_norm=9.0).tolist() == [0, 0, 0]
    assert remaining(whole, broken, scale=1.0, max_norm=9.0).tolist() == [0, 0, 0]


def test_a_difference_too_large_for_float32_leaves_nothing_behind() -> None:
    large = floats(3e38, 1)
    assert remaining(large, -large, scale=1.0, max_norm=9.0).tolist() == [0, 0]


def test_long_vectors_are_treated_in_chunks() -> None:
    rng = np.random.default_rng(1)
    wanted = rng.standard_normal(200_001).astype(np.float32)
    sent = rng.standard_normal(200_001).astype(np.float32)
    expected = (wanted.astype(np.float64) - sent.astype(np.float64) / 0.3).astype(np.float32)
    kept = remaining(wanted, sent, scale=0.3, max_norm=1e9)
    np.testing.assert_array_equal(kept, expected)
    halved = remaining(wanted, sent, scale=0.3, max_norm=norm(expected) / 2)
    np.testing.assert_allclose(halved, expected / 2, rtol=2.0**-22)


@looped(
    "sent, scale, max_norm, problem",
    [
        (floats(1), 1.0, 1.0, r"sent of float32\(1,\) must be float32 of the shape \(2,\)"),
        (np.zeros(2), 1.0, 1.0, r"sent of float64\(2,\) must be float32"),
        (floats(1, 2), 0.0, 1.0, r"scale=0.0 must be in \(0, 1\]"),
        (floats(1, 2), 1.5, 1.0, r"scale=1.5 must be in \(0, 1\]"),
        (floats(1, 2), math.nan, 1.0, r"scale=nan must be in \(0, 1\]"),
        (floats(1, 2), 1.0, 0.0, "max_norm=0.0 must be finite"),
        (floats(1, 2), 1.0, math.inf, "max_norm=inf must be finite"),
    ],
)
def test_arguments_out_of_range_are_refused(
    sent: Vector, scale: float, max_norm: float, problem: str
) -> None:
    with pytest.raises(CompressionError, match=problem):
        remaining(floats(1, 2), sent, scale=scale, max_norm=max_norm)


@looped(
    "vector, number, problem",
    [
        (floats(math.nan), 1, "must be finite"),
        (floats(math.inf), 1, "must be finite"),
        (np.zeros((1, 1), np.float32), 1, "must be float32 of shape"),
        (np.zeros(1), 1, "must be float32 of shape"),
        (floats(1), -1, "round=-1 must be in"),
        (floats(1), 2**64, "must be in"),
    ],
)
def test_a_residual_cannot_exist_in_an_invalid_state(
    vector: Vector, number: int, problem: str
) -> None:
    with pytest.raises(CompressionError, match=problem):
        Residual(vector=vector, round=number)


@given(
    hnp.arrays(
        np.float32,
        st.integers(0, 20),
        elements=st.floats(allow_nan=False, allow_infinity=False, width=32),
    ),
    st.integers(0, 2**64 - 1),
)
def test_reading_gives_back_what_was_written_bit_for_bit(vector: Vector, number: int) -> None:
    data = to_bytes(Residual(vector=vector, round=number), owner=OWNER)
    read = from_bytes(data, owner=OWNER, dim=len(vector))
    assert read.round == number
    np.testing.assert_array_equal(read.vector.view(np.uint32), vector.view(np.uint32))


def file_of(
    *, magic: bytes = b"FAR1", zero: int = 0, dim: int = 2, values: tuple[float, ...] = (1, 2)
) -> bytes:
    """A file as documented, with a checksum that fits."""
    body = struct.pack("<4sIQQ", magic, zero, dim, 7) + OWNER
    body += struct.pack(f"<{len(values)}f", *values)
    return body + struct.pack("<Q", xxhash.xxh3_64_intdigest(body))


def test_the_bytes_are_the_ones_documented() -> None:
    assert to_bytes(Residual(vector=floats(1, 2), round=7), owner=OWNER) == file_of()


def test_every_damaged_bit_is_noticed() -> None:
    data = file_of()
    for position in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[position // 8] ^= 1 << position % 8
        with pytest.raises(ResidualError):
            from_bytes(bytes(damaged), owner=OWNER, dim=2)


@looped("length", [0, 1, 55, 56, 63, 64, 71, 73, 80])
def test_bytes_cut_short_or_too_long_are_refused(length: int) -> None:
    data = (file_of() + bytes(80))[:length]
    with pytest.raises(ResidualError, match="must have 72 for dim=2"):
        from_bytes(data, owner=OWNER, dim=2)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (file_of(magic=b"FAU1"), "must begin with"),
        (file_of(zero=1), "must begin with"),
        (file_of(dim=3), "must begin with"),
        (file_of(values=(1, math.nan)), "must be finite"),
    ],
)
def test_a_fitting_checksum_does_not_make_a_residual(data: bytes, problem: str) -> None:
    with pytest.raises(ResidualError, match=problem):
        from_bytes(data, owner=OWNER, dim=2)


def test_a_residual_of_another_owner_is_refused() -> None:
    with pytest.raises(ResidualError, match="owner="):
        from_bytes(file_of(), owner=bytes(32), dim=2)
    with pytest.raises(CompressionError, match=r"len\(owner\)=3 must be 32"):
        from_bytes(file_of(), owner=b"abc", dim=2)
    with pytest.raises(CompressionError, match=r"len\(owner\)=0 must be 32"):
        to_bytes(Residual(vector=floats(1), round=1), owner=b"")
