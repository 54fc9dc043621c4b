import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from tests.looped import looped
from updates.block_scales import BLOCK_VALUES, MIN_SCALE
from updates.codec import (
    CodecError,
    MalformedUpdateError,
    NonCanonicalUpdateError,
    NonFiniteUpdateError,
)
from updates.compression_plan import ValueType
from updates.quantization import can_be_nonzero, dequantize, num_bytes, quantize

Vector = NDArray[np.float32]

LARGEST: dict[ValueType, int] = {ValueType.INT8: 127, ValueType.INT4: 7}
TYPES = sorted(ValueType, key=lambda kind: kind.value)
BLOCK_TYPES = [kind for kind in TYPES if kind in LARGEST]
FLOATS = st.floats(allow_nan=False, allow_infinity=False, width=32)
# Whole blocks of one number, some others among them, and a short block at the end.
VECTORS = hnp.arrays(np.float32, st.integers(0, 600), elements=FLOATS, fill=FLOATS) | hnp.arrays(
    np.float32, st.integers(0, 12), elements=FLOATS
)
SEEDS = st.binary(max_size=4)


def read(data: bytes, count: int, kind: ValueType, *, has_zero: bool = True) -> Vector:
    return dequantize(memoryview(data), num_values=count, value_type=kind, has_zero=has_zero)


def read_back(values: Vector, kind: ValueType, *, seed: bytes, has_zero: bool = True) -> Vector:
    data = quantize(values, value_type=kind, seed=seed, has_zero=has_zero)
    return read(data, len(values), kind, has_zero=has_zero)


@pytest.mark.parametrize("kind", TYPES)
@given(values=VECTORS, seeds=st.tuples(SEEDS, SEEDS), has_zero=st.booleans())
def test_what_is_read_is_written_the_same_with_any_seed(
    kind: ValueType, values: Vector, seeds: tuple[bytes, bytes], has_zero: bool
) -> None:
    if not has_zero:
        values = values[can_be_nonzero(values, kind)]
    before = values.tobytes()
    data = quantize(values, value_type=kind, seed=seeds[0], has_zero=has_zero)
    assert data == quantize(values, value_type=kind, seed=seeds[0], has_zero=has_zero)
    assert values.tobytes() == before
    assert len(data) == num_bytes(len(values), kind)
    found = read(data, len(values), kind, has_zero=has_zero)
    assert found.dtype == np.float32
    assert not np.signbit(found[found == 0]).any()
    assert quantize(found, value_type=kind, seed=seeds[1], has_zero=has_zero) == data


@pytest.mark.parametrize("kind", TYPES)
@given(values=VECTORS)
def test_numbers_that_cannot_be_nonzero_are_written_as_zero(
    kind: ValueType, values: Vector
) -> None:
    small = np.array([2.0**-25, 2.0**-134, 2.0**-111, 2.0**-149, -0.0], dtype=np.float32)
    values = np.concatenate((values[:20], small, np.nextafter(small, np.float32(1))))
    for value in values:
        alone = np.array([value])
        assert can_be_nonzero(alone, kind).all() == read_back(alone, kind, seed=b"").all()


def test_float32_is_kept_but_for_minus_zero() -> None:
    values = np.array([1.5, -0.0, 1e-45, -3e38], dtype=np.float32)
    found = read_back(values, ValueType.FLOAT32, seed=b"")
    assert found.tobytes() == (values + np.float32(0)).tobytes()


@pytest.mark.parametrize("kind", BLOCK_TYPES)
@given(values=VECTORS, seed=SEEDS, has_zero=st.booleans())
def test_errors_are_below_a_scale_and_magnitudes_do_not_grow(
    kind: ValueType, values: Vector, seed: bytes, has_zero: bool
) -> None:
    if not has_zero:
        values = values[can_be_nonzero(values, kind)]
    found = read_back(values, kind, seed=seed, has_zero=has_zero)
    for start in range(0, len(values), BLOCK_VALUES):
        block, got = values[start : start + BLOCK_VALUES], found[start : start + BLOCK_VALUES]
        largest = float(np.abs(block).max())
        if largest < MIN_SCALE:
            assert not got.any()
            continue
        # Exactly, since no number may hide behind a rounding of this test.
        scale = max(Fraction(largest) / LARGEST[kind], Fraction(MIN_SCALE))
        for value, number in {*zip(block.tolist(), got.tolist(), strict=True)}:
            assert abs(number) <= largest
            assert abs(Fraction(number) - Fraction(value)) < (1 if has_zero else 2) * scale
            # Q scales are less than the largest by what the truncation leaves out, below 2^-16.
            steps = abs(Fraction(number)) / scale
            assert abs(steps - round(steps)) <= LARGEST[kind] * Fraction(1, 2**16)


@pytest.mark.parametrize("has_zero", [True, False])
@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_the_mean_over_many_draws_is_the_number(kind: ValueType, has_zero: bool) -> None:
    count = BLOCK_VALUES * 400
    for mean in (-1.71, -1.03, -0.5, 0.06, 0.31):
        values = np.full(count, mean, dtype=np.float32)
        values[::BLOCK_VALUES] = LARGEST[kind]  # so that the scale is 1
        found = read_back(values, kind, seed=b"mean", has_zero=has_zero)
        drawn = np.delete(found, np.arange(0, count, BLOCK_VALUES))
        if has_zero or abs(mean) > 1:
            assert set(drawn.tolist()) == {math.floor(mean), math.ceil(mean)}
        else:
            assert set(drawn.tolist()) == {-1.0, 1.0}
        deviation = float(drawn.std()) / math.sqrt(len(drawn))
        # Five deviations: a false alarm in two million runs.
        assert abs(drawn.mean() - mean) < 5 * deviation
        # The same test tells rounding that is off by a twentieth of a step.
        assert abs(drawn.mean() - mean - 0.05) > 5 * deviation


def test_seeds_give_different_draws_and_do_not_repeat_along_the_numbers() -> None:
    values = np.full(BLOCK_VALUES * 400, 0.5, dtype=np.float32)
    values[::BLOCK_VALUES] = 127
    rest = np.arange(len(values)) % BLOCK_VALUES != 0
    one, two = (read_back(values, ValueType.INT8, seed=seed)[rest] for seed in (b"1", b"2"))
    # Of fair coins half agree, within five deviations.
    for first, second in ((one, two), (one[:50_000], one[-50_000:]), (one[:-1], one[1:])):
        deviation = math.sqrt(len(first)) / 2
        assert abs(int(np.sum(first == second)) - len(first) / 2) < 5 * deviation


@looped(
    "kind, values, data",
    [
        (ValueType.FLOAT32, [1, -2], "0000 0000 8000 3fc0"),
        (ValueType.FLOAT16, [1, -2], "0000 3cc0"),
        (ValueType.BFLOAT16, [1, -2], "8000 3fc0"),
        (ValueType.INT8, [-127, 3, -1], "00 00 80 3f 81 03 ff"),
        (ValueType.INT4, [-7, 3, -1], "00 00 80 3f 39 0f"),
        (ValueType.INT8, [0, 0], "00 00 00 00 00 00"),
    ],
)
def test_the_layout_is_the_documented_one(kind: ValueType, values: list[int], data: str) -> None:
    written = quantize(np.array(values, dtype=np.float32), value_type=kind, seed=b"")
    assert written == bytes.fromhex(data)


def int8(scale_bits: int, quanta: list[int]) -> bytes:
    return scale_bits.to_bytes(4, "little") + np.array(quanta, dtype=np.int8).tobytes()


ONE = 0x3F800000
SMALLEST = (127 - 110) << 23


@looped(
    "data, error, message",
    [
        (int8(ONE, [126, 0]), NonCanonicalUpdateError, "largest multiple 126 of block 0 must be"),
        (int8(ONE, [-128, 0]), NonCanonicalUpdateError, "largest multiple 128"),
        (int8(ONE, [127, -128]), NonCanonicalUpdateError, "largest multiple 128"),
        (int8(ONE, [0, 0]), NonCanonicalUpdateError, "largest multiple 0 of block 0 must be 127"),
        (int8(0, [1, 0]), NonCanonicalUpdateError, "largest multiple 1 of block 0 must be 0"),
        (int8(SMALLEST, [0, 0]), NonCanonicalUpdateError, "largest multiple 0 of block 0"),
        (int8(SMALLEST, [-128, 0]), NonCanonicalUpdateError, "largest multiple 128"),
        (int8(ONE + 1, [127, 0]), NonCanonicalUpdateError, "with few enough bits"),
        (int8(SMALLEST - 128, [127, 0]), NonCanonicalUpdateError, "must be 0 or from"),
        (int8(0x80000000, [0, 0]), MalformedUpdateError, "must be from 0"),
        (int8(ONE | 0x80000000, [127, 0]), MalformedUpdateError, "must be from 0"),
        (int8(0x7F800000, [127, 0]), MalformedUpdateError, "multiples finite"),
        (int8(0x7FC00000, [127, 0]), MalformedUpdateError, "multiples finite"),
        (int8(0x7F000000, [127, 0]), MalformedUpdateError, "multiples finite"),
        (int8(ONE, [127]), MalformedUpdateError, "numbers of 5 bytes must have 6, for 2 of int8"),
    ],
)
def test_each_other_form_of_a_block_is_refused(
    data: bytes, error: type[CodecError], message: str
) -> None:
    with pytest.raises(error, match=message):
        read(data, 2, ValueType.INT8)


def test_at_the_smallest_scale_any_multiple_may_be_the_largest() -> None:
    for quanta in ([1, 0], [-90, 3], [127, 127]):
        found = read(int8(SMALLEST, quanta), 2, ValueType.INT8)
        assert found.tolist() == [multiple * MIN_SCALE for multiple in quanta]


@pytest.mark.parametrize("kind", TYPES)
def test_zeros_are_refused_where_none_may_be(kind: ValueType) -> None:
    data = quantize(np.array([1, 0], dtype=np.float32), value_type=kind, seed=b"")
    assert read(data, 2, kind).tolist()[1] == 0
    with pytest.raises(NonCanonicalUpdateError, match="number 1 is sent and must not be zero"):
        read(data, 2, kind, has_zero=False)


def test_the_unused_half_of_a_byte_is_zero() -> None:
    assert read(bytes.fromhex("0000803f 07"), 1, ValueType.INT4).tolist() == [7.0]
    with pytest.raises(NonCanonicalUpdateError, match="half of a byte"):
        read(bytes.fromhex("0000803f 17"), 1, ValueType.INT4)
    with pytest.raises(NonCanonicalUpdateError, match="largest multiple 8"):
        read(bytes.fromhex("0000803f 08"), 1, ValueType.INT4)


@pytest.mark.parametrize(
    ("kind", "bits"),
    [
        (ValueType.FLOAT32, "00000080"),
        (ValueType.FLOAT16, "0080"),
        (ValueType.BFLOAT16, "0080"),
    ],
)
def test_minus_zero_is_refused(kind: ValueType, bits: str) -> None:
    with pytest.raises(NonCanonicalUpdateError, match="number 0 must be 0 where it is -0"):
        read(bytes.fromhex(bits), 1, kind)


@looped(
    "kind, bits",
    [
        (ValueType.FLOAT32, "0000807f"),
        (ValueType.FLOAT32, "0100807f"),
        (ValueType.FLOAT16, "007c"),
        (ValueType.FLOAT16, "01fc"),
        (ValueType.BFLOAT16, "807f"),
        (ValueType.BFLOAT16, "81ff"),
    ],
)
def test_numbers_that_are_not_finite_are_refused(kind: ValueType, bits: str) -> None:
    with pytest.raises(NonFiniteUpdateError, match="number 0 must be finite"):
        read(bytes.fromhex(bits), 1, kind)


@pytest.mark.parametrize("kind", TYPES)
@given(data=st.binary(max_size=24), count=st.integers(0, 6), has_zero=st.booleans())
def test_random_bytes_are_what_is_written_or_refused(
    kind: ValueType, data: bytes, count: int, has_zero: bool
) -> None:
    try:
        found = read(data, count, kind, has_zero=has_zero)
    except CodecError:
        return
    assert quantize(found, value_type=kind, seed=b"", has_zero=has_zero) == data


@pytest.mark.parametrize("has_zero", [True, False])
def test_the_end_of_a_chunk_is_no_seam(has_zero: bool) -> None:
    count = (1 << 15) + 300
    values = np.linspace(-1, 2, count, dtype=np.float32)
    found = read_back(values, ValueType.INT8, seed=b"", has_zero=has_zero)
    assert np.abs(found - values).max() <= 2 / 127 * (1 if has_zero else 2)
