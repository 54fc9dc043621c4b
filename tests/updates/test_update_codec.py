import re
import struct
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from tests.looped import looped
from updates.codec import (
    CodecError,
    DenseValidator,
    MalformedUpdateError,
    NonCanonicalUpdateError,
    NonFiniteUpdateError,
    WrongDtypeError,
    WrongShapeError,
    encode_dense,
)
from updates.compression_plan import COMMON_MAPS, CompressionPlan, Method, ValueType, dense_plan
from updates.errors import CompressionError
from updates.index_coding import encode_coordinates, encode_indices, layers_of
from updates.sparse import Content, SparseValues
from updates.stage import zstd_version
from updates.update_codec import HEADER_BYTES, UpdateCodec, codec_for

Vector = NDArray[np.float32]

FLOATS = st.floats(allow_nan=False, allow_infinity=False, width=32)
TYPES = sorted(ValueType, key=lambda kind: kind.value)
METHODS = sorted(Method, key=lambda method: method.value)
PAIRS = [(method, kind) for method in METHODS for kind in TYPES]
VERSIONS = [0, zstd_version()]
SIZES = (30, 0, 600, 7)
DIM = sum(SIZES)


def plan_of(
    method: Method, kind: ValueType, *, num_values: int = 40, version: int = 0, dim: int = DIM
) -> CompressionPlan:
    seeded = method in {Method.RAND_K, Method.PROJECTION}
    coordinates = encode_coordinates(np.arange(num_values), dim)
    return CompressionPlan(
        method=method,
        dim=dim,
        num_values=dim if method is Method.DENSE else num_values,
        value_type=kind,
        map_seed=bytes(32) if seeded else b"",
        coordinates=coordinates if method is Method.ANNOUNCED else b"",
        zstd_version=version,
    )


def codec_of(method: Method, kind: ValueType, *, version: int = 0) -> UpdateCodec:
    return codec_for(plan_of(method, kind, version=version), SIZES)


def sparse(places: list[int], values: list[float], dim: int = DIM) -> SparseValues:
    return SparseValues(
        indices=np.array(places, dtype=np.int64),
        values=np.array(values, dtype=np.float32),
        dim=dim,
    )


@st.composite
def contents(draw: st.DrawFn, plan: CompressionPlan) -> Content:
    if plan.method is not Method.TOP_K:
        # Few different numbers, so that zstd frames occur too.
        elements = draw(st.sampled_from([FLOATS, st.sampled_from([0.0, -0.0, 1.5, 3e-7])]))
        return draw(hnp.arrays(np.float32, plan.num_values, elements=elements))
    places = sorted(draw(st.sets(st.integers(0, plan.dim - 1), max_size=plan.num_values)))
    values = draw(hnp.arrays(np.float32, len(places), elements=FLOATS))
    return sparse(places, values.tolist())


def as_dense(content: Content) -> Vector:
    if not isinstance(content, SparseValues):
        return content
    dense = np.zeros(content.dim, dtype=np.float32)
    dense[content.indices] = content.values
    return dense


def some_content(method: Method) -> Content:
    generator = np.random.default_rng(3)
    if method is Method.TOP_K:
        places = np.sort(generator.choice(DIM, 40, replace=False))
        return sparse(places.tolist(), generator.normal(size=40).tolist())
    count = DIM if method is Method.DENSE else 40
    return generator.normal(size=count).astype(np.float32)


def validate(codec: UpdateCodec, payload: bytes, cuts: list[int]) -> None:
    validator = codec.validator()
    edges = [0, *sorted(min(cut, len(payload)) for cut in cuts), len(payload)]
    for start, stop in pairwise(edges):
        validator.feed(memoryview(payload)[start:stop])
    validator.finish()


def verdict_of(codec: UpdateCodec, payload: bytes, cuts: list[int]) -> Content | None:
    """Decode, or give None; and see that a validator says the same."""
    try:
        content = codec.decode(payload)
    except CodecError as error:
        with pytest.raises(type(error), match=f"^{re.escape(str(error))}$"):
            validate(codec, payload, cuts)
        return None
    validate(codec, payload, cuts)
    return content


def check(method: Method, kind: ValueType, payload: bytes, cuts: list[int]) -> None:
    """See that a payload is refused, or the one encoding of its content for its stage."""
    content = verdict_of(codec_of(method, kind, version=zstd_version()), payload, cuts)
    is_frame = payload[6:7] == b"\1"
    version = zstd_version() if is_frame else 0
    if content is not None:
        again = codec_of(method, kind, version=version).encode(content, seed=b"another")
        assert again == payload
    # Without the plan's libzstd, frames are refused and nothing else changes.
    elsewhere = verdict_of(codec_of(method, kind), payload, cuts)
    is_dense = (method, kind) == (Method.DENSE, ValueType.FLOAT32)
    assert (elsewhere is None) == (content is None or (is_frame and not is_dense))


@given(data=st.data(), pair=st.sampled_from(PAIRS), version=st.sampled_from(VERSIONS))
def test_updates_come_back_as_their_type_writes_them(
    data: st.DataObject, pair: tuple[Method, ValueType], version: int
) -> None:
    method, kind = pair
    plan = plan_of(method, kind, version=version)
    codec = codec_for(plan, SIZES)
    content = data.draw(contents(plan))
    payload = codec.encode(content, seed=b"seed")
    assert payload == codec.encode(content, seed=b"seed")
    assert len(payload) <= codec.max_payload_bytes
    found = codec.decode(payload)
    assert isinstance(found, SparseValues) == (method is Method.TOP_K)
    assert codec.encode(found, seed=b"other") == payload
    if kind is ValueType.FLOAT32:
        assert (as_dense(found) == as_dense(content)).all()
    if isinstance(found, SparseValues):
        assert isinstance(content, SparseValues)
        assert found.values.all()
        assert set(found.indices.tolist()) <= set(content.indices.tolist())
    validate(codec, payload, [3, 17, 30])


@looped("method, kind", PAIRS)
def test_typical_updates_come_back_with_every_method_and_type(
    method: Method, kind: ValueType
) -> None:
    content = some_content(method)
    largest = np.abs(as_dense(content)).max()
    # Two scales, or the rounding of bfloat16.
    tolerance = {ValueType.INT4: 2 / 7, ValueType.INT8: 2 / 127}.get(kind, 2**-8) * largest
    for version in VERSIONS:
        codec = codec_of(method, kind, version=version)
        payload = codec.encode(content, seed=b"seed")
        found = codec.decode(payload)
        assert np.abs(as_dense(found) - as_dense(content)).max() < tolerance
        check(method, kind, payload, [])


@given(data=st.data(), pair=st.sampled_from(PAIRS), version=st.sampled_from(VERSIONS))
def test_mutated_cut_and_extended_payloads_are_refused_or_their_own_encoding(
    data: st.DataObject, pair: tuple[Method, ValueType], version: int
) -> None:
    content = some_content(pair[0])
    if not isinstance(content, SparseValues) and data.draw(st.booleans()):
        content = np.sign(content)  # which zstd makes small
    payload = bytearray(codec_of(*pair, version=version).encode(content, seed=b""))
    for _ in range(data.draw(st.integers(0, 3))):
        place = data.draw(st.integers(0, len(payload) - 1))
        payload[place] ^= 1 << data.draw(st.integers(0, 7))
    cut = data.draw(st.integers(0, len(payload)) | st.just(len(payload)))
    mutated = bytes(payload[:cut]) + data.draw(st.binary(max_size=5))
    check(*pair, mutated, data.draw(st.lists(st.integers(0, 100), max_size=3)))


@given(
    pair=st.sampled_from(PAIRS), body=st.binary(max_size=60), stage=st.sampled_from([0, 0, 1, 2])
)
def test_random_bodies_are_refused_or_their_own_encoding(
    pair: tuple[Method, ValueType], body: bytes, stage: int
) -> None:
    head = bytearray(codec_of(*pair).encode(some_content(pair[0]), seed=b"")[:HEADER_BYTES])
    head[6] = stage
    check(*pair, bytes(head) + body, [5])


@pytest.mark.parametrize("method", METHODS)
def test_every_mutated_header_byte_is_refused(method: Method) -> None:
    codec = codec_of(method, ValueType.FLOAT16)
    payload = codec.encode(some_content(method), seed=b"")
    for place in range(HEADER_BYTES):
        for value in set(range(256)) - {payload[place]}:
            mutated = payload[:place] + bytes([value]) + payload[place + 1 :]
            with pytest.raises(CodecError):
                codec.decode(mutated)


@looped("method, kind", PAIRS)
def test_truncations_and_excesses_are_refused(method: Method, kind: ValueType) -> None:
    codec = codec_of(method, kind, version=zstd_version())
    payload = codec.encode(some_content(method), seed=b"")
    for length in (*range(HEADER_BYTES + 20), *range(36, len(payload), len(payload) // 20)):
        assert verdict_of(codec, payload[:length], []) is None
    assert verdict_of(codec, payload[:-1], []) is None
    for excess in (1, 4, 10_000):
        assert verdict_of(codec, payload + bytes(excess), []) is None


def header(
    *,
    magic: bytes = b"FAU1",
    number: int = 3,
    kind: int = 2,
    stage: int = 0,
    zero: int = 0,
    dim: int = DIM,
) -> bytes:
    return struct.pack("<4sBBBBQ", magic, number, kind, stage, zero, dim)


def test_layout_is_the_documented_one() -> None:
    codec = codec_for(plan_of(Method.RAND_K, ValueType.FLOAT16, num_values=2), SIZES)
    payload = codec.encode(np.array([1, -2], dtype=np.float32), seed=b"")
    assert payload == header() + bytes.fromhex("0000 3cc0")
    numbers = {Method.TOP_K: 2, Method.DENSE: 4} | dict.fromkeys(COMMON_MAPS, 3)
    types = {"float32": 1, "float16": 2, "bfloat16": 4, "int8": 5, "int4": 6}
    for method, kind in PAIRS:
        if (method, kind) != (Method.DENSE, ValueType.FLOAT32):
            payload = codec_of(method, kind).encode(some_content(method), seed=b"")
            assert payload[:16] == header(number=numbers[method], kind=types[kind.value])
    two = codec_for(plan_of(Method.TOP_K, ValueType.FLOAT16), SIZES)
    payload = two.encode(sparse([3, 100], [1, -2]), seed=b"")
    positions = encode_indices(np.array([3, 100]), layers_of(SIZES, dim=DIM))
    assert payload == header(number=2) + positions + bytes.fromhex("0000 3cc0")


@looped(
    "head, error",
    [
        (header(magic=b"FAU2"), MalformedUpdateError),
        (header(number=1), MalformedUpdateError),
        (header(number=2), MalformedUpdateError),
        (header(kind=1), WrongDtypeError),
        (header(kind=3), WrongDtypeError),
        (header(kind=7), MalformedUpdateError),
        (header(stage=2), MalformedUpdateError),
        (header(zero=1), NonCanonicalUpdateError),
        (header(dim=DIM + 1), WrongShapeError),
        (header(dim=2**64 - 1), WrongShapeError),
        (header()[:15], MalformedUpdateError),
    ],
)
def test_each_bad_header_has_its_error(head: bytes, error: type[CodecError]) -> None:
    codec = codec_of(Method.RAND_K, ValueType.FLOAT16)
    with pytest.raises(error):
        codec.decode(head + bytes(80 if len(head) == HEADER_BYTES else 0))
    assert verdict_of(codec, head, [2]) is None


def test_a_bad_header_is_refused_before_the_body_arrives_and_for_good() -> None:
    validator = codec_of(Method.RAND_K, ValueType.FLOAT16).validator()
    validator.feed(header(zero=1)[:9])
    with pytest.raises(NonCanonicalUpdateError):
        validator.feed(header(zero=1)[9:])
    with pytest.raises(NonCanonicalUpdateError):
        validator.feed(b"")
    with pytest.raises(NonCanonicalUpdateError):
        validator.finish()


def test_a_validator_holds_no_more_than_the_longest_payload() -> None:
    codec = codec_of(Method.RAND_K, ValueType.FLOAT16)
    validator = codec.validator()
    validator.feed(header() + bytes(codec.max_payload_bytes - HEADER_BYTES))
    with pytest.raises(MalformedUpdateError, match="at most 96 bytes"):
        validator.feed(b"\0")
    tracemalloc.start()
    try:
        with pytest.raises(MalformedUpdateError):
            codec.validator().feed(memoryview(BIG))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000


BIG = bytes(1 << 22)


def bombs() -> Iterator[tuple[Method, bytes]]:
    for method in (Method.TOP_K, Method.RAND_K):
        number = 2 if method is Method.TOP_K else 3
        frame = zstandard.ZstdCompressor(level=3).compress(bytes(1 << 27))
        yield method, header(number=number, stage=1) + frame
        # All counts and sizes as large as they can be written.
        yield method, header(number=number) + b"\xff" * 100
        body = b"\xff" * 60 + bytes(40)
        yield method, header(number=number, stage=1) + zstandard.compress(body, 3)


def test_bombs_are_refused_without_the_memory_they_ask_for() -> None:
    for method, payload in bombs():
        codec = codec_of(method, ValueType.FLOAT16, version=zstd_version())
        tracemalloc.start()
        try:
            with pytest.raises(CodecError):
                codec.decode(payload)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 200_000


@pytest.mark.parametrize("kind", TYPES)
def test_only_coordinates_too_small_for_the_type_are_not_sent(kind: ValueType) -> None:
    codec = codec_of(Method.TOP_K, kind)
    tiny = {ValueType.FLOAT16: 2.0**-25, ValueType.BFLOAT16: 2.0**-134}
    smallest = {ValueType.FLOAT16: 2.0**-24, ValueType.BFLOAT16: 2.0**-133}
    if kind in {ValueType.INT8, ValueType.INT4}:
        tiny[kind], smallest[kind] = 2.0**-111, 2.0**-110
    numbers = [0.0, tiny.get(kind, 0.0), -5.0, smallest.get(kind, 2.0**-149), -0.0]
    found = codec.decode(codec.encode(sparse([1, 2, 3, 90, 99], numbers), seed=b""))
    assert isinstance(found, SparseValues)
    assert found.indices.tolist() == [3, 90]
    nothing = codec.decode(codec.encode(sparse([7], [0]), seed=b""))
    assert isinstance(nothing, SparseValues)
    assert len(nothing.indices) == 0


def test_a_sent_zero_is_refused() -> None:
    positions = encode_indices(np.array([3, 100]), layers_of(SIZES, dim=DIM))
    payload = header(number=2) + positions + bytes.fromhex("0000 3c00")
    with pytest.raises(NonCanonicalUpdateError, match="number 1 is sent and must not be"):
        codec_of(Method.TOP_K, ValueType.FLOAT16).decode(payload)


def test_more_coordinates_than_planned_are_refused() -> None:
    codec = codec_for(plan_of(Method.TOP_K, ValueType.FLOAT16, num_values=2), SIZES)
    with pytest.raises(WrongShapeError, match="3 values of dimension 637 must be at most 2"):
        codec.encode(sparse([1, 2, 3], [1, 1, 1]), seed=b"")
    three = codec_of(Method.TOP_K, ValueType.FLOAT16).encode(sparse([1, 2, 3], [1, 1, 1]), seed=b"")
    with pytest.raises(MalformedUpdateError):
        codec.decode(three)


def test_dense_float32_is_as_ever() -> None:
    codec = codec_for(dense_plan(DIM), SIZES)
    vector = some_content(Method.DENSE)
    assert not isinstance(vector, SparseValues)
    assert codec.encode(vector, seed=b"x") == encode_dense(vector)
    assert codec.max_payload_bytes == HEADER_BYTES + 4 * DIM
    assert isinstance(codec.validator(), DenseValidator)


@pytest.mark.parametrize("method", METHODS)
def test_a_stored_payload_is_accepted_beside_the_frame(method: Method) -> None:
    ours = codec_of(method, ValueType.BFLOAT16, version=zstd_version())
    plain = codec_of(method, ValueType.BFLOAT16)
    content = some_content(method)
    if not isinstance(content, SparseValues):
        content = np.ones_like(content)
    frame, payload = ours.encode(content, seed=b""), plain.encode(content, seed=b"")
    assert as_dense(ours.decode(frame)).tolist() == as_dense(ours.decode(payload)).tolist()
    if frame != payload:
        with pytest.raises(MalformedUpdateError, match="is not accepted"):
            plain.decode(frame)
    assert (frame != payload) == (method is not Method.TOP_K)


def test_decoded_contents_are_read_only() -> None:
    for method, kind in PAIRS:
        codec = codec_of(method, kind)
        found = codec.decode(codec.encode(some_content(method), seed=b""))
        if isinstance(found, SparseValues):
            assert not found.indices.flags.writeable
            assert not found.values.flags.writeable
        else:
            assert not found.flags.writeable


@looped("method, kind", PAIRS)
def test_other_contents_are_refused(method: Method, kind: ValueType) -> None:
    codec = codec_of(method, kind)
    other = Method.RAND_K if method is Method.TOP_K else Method.TOP_K
    with pytest.raises(WrongShapeError):
        codec.encode(some_content(other), seed=b"")
    if method is Method.TOP_K:
        with pytest.raises(WrongShapeError):
            codec.encode(sparse([1], [1], dim=DIM + 1), seed=b"")
        return
    right = some_content(method)
    assert not isinstance(right, SparseValues)
    with pytest.raises(WrongShapeError):
        codec.encode(right[:-1], seed=b"")
    with pytest.raises(WrongDtypeError):
        codec.encode(right.astype(np.float64), seed=b"")
    bad = right.copy()
    bad[-1] = np.nan
    with pytest.raises(NonFiniteUpdateError):
        codec.encode(bad, seed=b"")


def test_a_model_of_another_size_is_refused() -> None:
    for method in METHODS:
        with pytest.raises(CompressionError, match="must sum to dim=637"):
            codec_for(plan_of(method, ValueType.INT8), (600,))


def test_strided_vectors_are_encoded_in_order() -> None:
    for method in (Method.RAND_K, Method.DENSE):
        for kind in TYPES:
            codec = codec_of(method, kind)
            vector = some_content(method)
            assert not isinstance(vector, SparseValues)
            wide = np.repeat(vector, 2)[::2]
            assert codec.encode(wide, seed=b"") == codec.encode(vector, seed=b"")
