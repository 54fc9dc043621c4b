import math
import struct
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from tests.looped import looped
from updates.codec import (
    HEADER_BYTES,
    CodecError,
    DenseValidator,
    MalformedUpdateError,
    NonCanonicalUpdateError,
    NonFiniteUpdateError,
    WrongDtypeError,
    WrongShapeError,
    decode,
    dense_payload_bytes,
    encode_dense,
)

Vector = NDArray[np.float32]

FLOATS = st.floats(allow_nan=False, allow_infinity=False, width=32)
VECTORS = hnp.arrays(np.float32, st.integers(0, 40), elements=FLOATS)
# Quiet and signalling NaN, both infinities, little-endian.
NOT_FINITE = [bytes.fromhex(bits) for bits in ("0000c07f", "0000a07f", "0000807f", "000080ff")]


def header(
    *, magic: bytes = b"FAU1", codec: int = 1, dtype: int = 1, zero: int = 0, dim: int = 3
) -> bytes:
    return struct.pack("<4sBBHQ", magic, codec, dtype, zero, dim)


def feed_all(payload: bytes, cuts: list[int], dim: int) -> DenseValidator:
    validator = DenseValidator(dim=dim)
    edges = [0, *sorted(min(cut, len(payload)) for cut in cuts), len(payload)]
    for start, stop in pairwise(edges):
        validator.feed(memoryview(payload)[start:stop])
    validator.finish()
    return validator


def verdict_of_decode(payload: bytes, dim: int) -> tuple[type[CodecError], str] | None:
    try:
        decode(payload, dim=dim)
    except CodecError as error:
        return type(error), str(error)
    return None


def verdict_of_validator(
    payload: bytes, cuts: list[int], dim: int
) -> tuple[type[CodecError], str] | None:
    try:
        feed_all(payload, cuts, dim)
    except CodecError as error:
        return type(error), str(error)
    return None


def assert_refused(payload: bytes, error: type[CodecError], dim: int = 3) -> None:
    assert (verdict_of_decode(payload, dim) or (None,))[0] is error
    for cuts in ([], list(range(len(payload)))):
        assert verdict_of_validator(payload, cuts, dim) == verdict_of_decode(payload, dim)


@given(VECTORS)
def test_round_trip_keeps_every_bit(vector: Vector) -> None:
    payload = encode_dense(vector)
    assert len(payload) == dense_payload_bytes(len(vector))
    assert decode(payload, dim=len(vector)).tobytes() == vector.tobytes()
    feed_all(payload, [], len(vector))


def test_layout_is_the_documented_one() -> None:
    payload = encode_dense(np.array([1.0, -2.0], dtype=np.float32))
    assert payload == bytes.fromhex("46415531 01 01 0000 0200000000000000 0000803f 000000c0")
    assert HEADER_BYTES == 16


def test_strided_vectors_are_encoded_in_order() -> None:
    vector = np.arange(6, dtype=np.float32)[::2]
    assert decode(encode_dense(vector), dim=3).tolist() == [0.0, 2.0, 4.0]


def test_decoding_shares_memory_and_is_read_only() -> None:
    payload = bytearray(encode_dense(np.ones(3, dtype=np.float32)))
    vector = decode(memoryview(payload), dim=3)
    assert np.shares_memory(vector, np.frombuffer(payload, dtype=np.uint8))
    assert not vector.flags.writeable


def test_unaligned_payloads_are_decoded() -> None:
    payload = memoryview(b"x" + encode_dense(np.array([1.5, 2.5, 3.5], dtype=np.float32)))[1:]
    vector = decode(payload, dim=3)
    assert vector.tolist() == [1.5, 2.5, 3.5]
    assert vector.flags.aligned
    assert not vector.flags.writeable


def test_memory_views_of_other_formats_are_decoded() -> None:
    payload = encode_dense(np.ones(3, dtype=np.float32))
    words = memoryview(payload).cast("I")
    assert decode(words, dim=3).tolist() == [1.0] * 3
    validator = DenseValidator(dim=3)
    validator.feed(words)
    validator.finish()


@looped(
    "head, error",
    [
        (header(magic=b"FAU2"), MalformedUpdateError),
        (header(magic=b"\0\0\0\0"), MalformedUpdateError),
        (header(codec=0), MalformedUpdateError),
        (header(codec=2), MalformedUpdateError),
        (header(dtype=0), MalformedUpdateError),
        (header(dtype=4), MalformedUpdateError),
        (header(dtype=2), WrongDtypeError),
        (header(dtype=3), WrongDtypeError),
        (header(zero=1), NonCanonicalUpdateError),
        (header(zero=0x100), NonCanonicalUpdateError),
        (header(dim=2), WrongShapeError),
        (header(dim=4), WrongShapeError),
        (header(dim=2**64 - 1), WrongShapeError),
    ],
)
def test_each_bad_header_has_its_error(head: bytes, error: type[CodecError]) -> None:
    assert_refused(head + bytes(12), error)
    assert_refused(head, error)


def test_every_mutated_header_byte_is_refused() -> None:
    payload = encode_dense(np.ones(3, dtype=np.float32))
    for position in range(HEADER_BYTES):
        for value in range(256):
            if value != payload[position]:
                mutated = payload[:position] + bytes([value]) + payload[position + 1 :]
                assert verdict_of_decode(mutated, 3) is not None
                assert verdict_of_validator(mutated, [7], 3) == verdict_of_decode(mutated, 3)


def test_every_truncation_is_malformed() -> None:
    payload = encode_dense(np.ones(3, dtype=np.float32))
    for length in range(len(payload)):
        assert_refused(payload[:length], MalformedUpdateError)


@pytest.mark.parametrize("excess", [1, 3, 4, 100])
def test_excess_bytes_are_malformed(excess: int) -> None:
    payload = encode_dense(np.ones(3, dtype=np.float32))
    assert_refused(payload + bytes(excess), MalformedUpdateError)
    for cut in range(len(payload) + excess):
        verdict = verdict_of_validator(payload + bytes(excess), [cut], 3)
        assert verdict == verdict_of_decode(payload + bytes(excess), 3)


@looped("bits", NOT_FINITE)
@looped("position", [0, 1, 2])
def test_a_value_that_is_not_finite_is_found_anywhere(bits: bytes, position: int) -> None:
    body = bytearray(12)
    body[4 * position : 4 * position + 4] = bits
    payload = header() + bytes(body)
    verdict = verdict_of_decode(payload, 3)
    assert verdict == (NonFiniteUpdateError, f"value at coordinate {position} must be finite")
    for cut in range(len(payload) + 1):
        assert verdict_of_validator(payload, [cut], 3) == verdict


@pytest.mark.parametrize("position", [0, 16_383, 16_384, 39_999])
def test_a_value_that_is_not_finite_is_found_in_long_updates(position: int) -> None:
    vector = np.ones(40_000, dtype=np.float32)
    vector[position] = np.inf
    payload = header(dim=40_000) + vector.tobytes()
    verdict = verdict_of_decode(payload, 40_000)
    assert verdict == (NonFiniteUpdateError, f"value at coordinate {position} must be finite")
    for cuts in ([], [4 * position + 17], [30_001, 99_999]):
        assert verdict_of_validator(payload, cuts, 40_000) == verdict
    with pytest.raises(NonFiniteUpdateError, match=f"coordinate {position} "):
        encode_dense(vector)


CUTS = st.lists(st.integers(0, 80), max_size=6)


@given(st.binary(max_size=64), CUTS, st.integers(0, 10))
def test_random_bytes_get_one_verdict_however_they_are_cut(
    payload: bytes, cuts: list[int], dim: int
) -> None:
    assert verdict_of_validator(payload, cuts, dim) == verdict_of_decode(payload, dim)


BODIES = st.lists(
    st.one_of(FLOATS.map(lambda x: struct.pack("<f", x)), st.sampled_from(NOT_FINITE)), max_size=9
).map(b"".join)


@given(BODIES, st.binary(max_size=5), CUTS, st.integers(0, 10))
def test_bodies_behind_a_good_header_get_one_verdict_however_they_are_cut(
    body: bytes, tail: bytes, cuts: list[int], dim: int
) -> None:
    payload = header(dim=dim) + body + tail
    verdict = verdict_of_decode(payload, dim)
    assert verdict_of_validator(payload, cuts, dim) == verdict
    values = struct.unpack(f"<{len(body) // 4}f", body)
    if len(body) == 4 * dim and not tail:
        assert (verdict is None) == all(math.isfinite(value) for value in values)
    else:
        assert verdict is not None


def test_bad_header_is_refused_before_the_body_arrives() -> None:
    validator = DenseValidator(dim=3)
    validator.feed(header(dim=4)[:10])
    with pytest.raises(WrongShapeError):
        validator.feed(header(dim=4)[10:])


def test_a_refusal_is_final() -> None:
    validator = DenseValidator(dim=1)
    with pytest.raises(NonFiniteUpdateError):
        validator.feed(header(dim=1) + NOT_FINITE[0])
    with pytest.raises(NonFiniteUpdateError):
        validator.feed(b"")
    with pytest.raises(NonFiniteUpdateError):
        validator.finish()


def test_encoding_refuses_other_shapes_types_and_values() -> None:
    with pytest.raises(WrongShapeError):
        encode_dense(np.zeros((2, 2), dtype=np.float32))
    with pytest.raises(WrongDtypeError):
        encode_dense(np.zeros(2))  # type: ignore[arg-type]  # the refusal is under test
    with pytest.raises(NonFiniteUpdateError):
        encode_dense(np.array([0.0, np.nan], dtype=np.float32))
