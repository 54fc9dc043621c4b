import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.looped import looped
from updates.codec import CodecError, MalformedUpdateError, NonCanonicalUpdateError
from updates.errors import CompressionError
from updates.index_coding import (
    decode_coordinates,
    decode_indices,
    encode_coordinates,
    encode_indices,
    layers_of,
    max_coordinates_bytes,
)

Indices = NDArray[np.int64]


@st.composite
def supports(draw: st.DrawFn) -> tuple[tuple[int, ...], Indices]:
    """Layer sizes, some of them empty, and positions of any density."""
    sizes = tuple(draw(st.lists(st.integers(0, 400), min_size=1, max_size=6)))
    sizes = sizes if sum(sizes) else (1,)
    dim = sum(sizes)
    chosen = draw(st.sets(st.integers(0, dim - 1), max_size=60) | st.just(set(range(dim))))
    return sizes, np.array(sorted(chosen), dtype=np.int64)


def by_hand(sizes: tuple[int, ...], indices: list[int]) -> bytes:
    """Write bit by bit what the module documents."""
    counts, remainders, quotients, start = b"", "", "", 0
    for size in sizes:
        inside = [index - start for index in indices if start <= index < start + size]
        counts += len(inside).to_bytes((size.bit_length() + 7) // 8, "little")
        x = 11 * (size - len(inside)) // (16 * len(inside)) if inside else 0
        r = int(math.log2(x)) if x else 0
        gaps = [b - a - 1 for a, b in zip([-1, *inside], inside, strict=False)]
        for bit in reversed(range(r)):
            remainders += "".join(str(gap >> bit & 1) for gap in gaps)
        quotients += "".join("0" * (gap >> r) + "1" for gap in gaps)
        start += size
    packed = to_bytes(quotients)
    return counts + len(packed).to_bytes(4, "little") + to_bytes(remainders) + packed


def to_bytes(bits: str) -> bytes:
    padded = bits + "0" * (-len(bits) % 8)
    return int("1" + padded, 2).to_bytes(len(padded) // 8 + 1, "big")[1:]


def decode_all(data: bytes, sizes: tuple[int, ...], max_values: int | None = None) -> Indices:
    layers = layers_of(sizes, dim=sum(sizes))
    most = layers.dim if max_values is None else max_values
    indices, rest = decode_indices(memoryview(data), layers, max_values=most)
    if len(rest):
        message = "bytes are left"
        raise MalformedUpdateError(message)
    return indices


@given(supports())
def test_the_layout_is_the_documented_one(support: tuple[tuple[int, ...], Indices]) -> None:
    sizes, indices = support
    layers = layers_of(sizes, dim=sum(sizes))
    assert encode_indices(indices, layers) == by_hand(sizes, indices.tolist())


@given(supports(), st.binary(max_size=3))
def test_positions_come_back_and_what_follows_is_left(
    support: tuple[tuple[int, ...], Indices], tail: bytes
) -> None:
    sizes, indices = support
    layers = layers_of(sizes, dim=sum(sizes))
    data = encode_indices(indices, layers) + tail
    found, rest = decode_indices(memoryview(data), layers, max_values=len(indices))
    assert found.dtype == np.int64
    assert found.tolist() == indices.tolist()
    assert bytes(rest) == tail


@given(supports())
def test_no_encoding_is_longer_than_the_bound(support: tuple[tuple[int, ...], Indices]) -> None:
    sizes, indices = support
    layers = layers_of(sizes, dim=sum(sizes))
    for most in {max(1, len(indices)), layers.dim}:
        assert len(encode_indices(indices, layers)) <= layers.max_bytes(most)


@given(supports(), st.data())
def test_whatever_decodes_is_the_one_encoding(
    support: tuple[tuple[int, ...], Indices], data: st.DataObject
) -> None:
    sizes, indices = support
    layers = layers_of(sizes, dim=sum(sizes))
    mutated = bytearray(encode_indices(indices, layers))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(mutated) - 1))
        mutated[place] ^= 1 << data.draw(st.integers(0, 7))
    try:
        found = decode_all(bytes(mutated), sizes)
    except CodecError:
        return
    assert encode_indices(found, layers) == bytes(mutated)


@given(st.binary(max_size=40), st.lists(st.integers(0, 300), min_size=1, max_size=3))
def test_random_bytes_decode_to_their_own_encoding_or_not_at_all(
    data: bytes, some_sizes: list[int]
) -> None:
    sizes = (*some_sizes, 1)
    try:
        found = decode_all(data, sizes)
    except CodecError:
        return
    assert encode_indices(found, layers_of(sizes, dim=sum(sizes))) == data


def test_every_truncation_is_refused() -> None:
    data = by_hand((100, 20), [3, 50, 99, 100, 119])
    for length in range(len(data)):
        with pytest.raises(CodecError):
            decode_all(data[:length], (100, 20))


def test_each_rule_has_its_error() -> None:
    with pytest.raises(MalformedUpdateError, match="3 positions must be at most 2"):
        decode_all(by_hand((9,), [1, 2, 3]), (9,), max_values=2)
    with pytest.raises(MalformedUpdateError, match="200 positions of layer 1 must be at most"):
        decode_all(bytes([0, 200]) + bytes(4), (7, 100))
    # Of 9 with 1: x = 5, r = 2. Gap 0b10_11 = 11 is outside.
    outside = bytes([1]) + (1).to_bytes(4, "little") + bytes([0b11000000, 0b00100000])
    with pytest.raises(MalformedUpdateError, match="inside its layer"):
        decode_all(outside, (9,))
    # Quotient 2 fits 8 skipped coordinates, and the remainder 1 does not.
    late = bytes([1]) + (1).to_bytes(4, "little") + bytes([0b01000000, 0b00100000])
    with pytest.raises(MalformedUpdateError, match="inside its layer"):
        decode_all(late, (9,))
    padded = bytes([1]) + (1).to_bytes(4, "little") + bytes([0b00000001, 0b10000000])
    with pytest.raises(NonCanonicalUpdateError, match="must be zero"):
        decode_all(padded, (9,))
    two_ends = bytes([1]) + (1).to_bytes(4, "little") + bytes([0, 0b10000001])
    with pytest.raises(MalformedUpdateError, match="2 quotients"):
        decode_all(two_ends, (9,))
    # Three in three: no remainders, and room for a second byte of quotients.
    longer = bytes([3]) + (2).to_bytes(4, "little") + bytes([0b11100000, 0])
    with pytest.raises(NonCanonicalUpdateError, match="must end with the last, in 1"):
        decode_all(longer, (3,))
    with pytest.raises(MalformedUpdateError, match="too many for 1 positions"):
        decode_all(bytes([1]) + (2).to_bytes(4, "little") + bytes(3), (9,))


def test_memory_follows_the_limit_whatever_the_bytes_say() -> None:
    sizes = (1 << 30,)
    data = (1 << 30).to_bytes(4, "little") + (1 << 28).to_bytes(4, "little") + bytes(1000)
    tracemalloc.start()
    try:
        for head in (data, (1000).to_bytes(4, "little") + data[4:]):
            with pytest.raises(MalformedUpdateError):
                decode_all(head, sizes, max_values=1000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_large_models_and_far_gaps_are_coded() -> None:
    dim = 1 << 31
    for indices in ([0], [dim - 1], [0, dim - 1], [5, 1 << 30, dim - 2]):
        data = encode_coordinates(np.array(indices, dtype=np.int64), dim)
        assert decode_coordinates(data, dim).tolist() == indices


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.5])
def test_random_positions_take_little_more_than_their_entropy(share: float) -> None:
    dim = 100_000
    generator = np.random.default_rng(7)
    indices = np.flatnonzero(generator.random(dim) < share)
    entropy_bits = -dim * (share * math.log2(share) + (1 - share) * math.log2(1 - share))
    # Rice codes lose at most a few percent of geometric gaps' entropy: Kiely (2004), section 3.
    assert 8 * len(encode_coordinates(indices, dim)) < 1.05 * entropy_bits + 100


@given(st.sets(st.integers(0, 999), min_size=1))
def test_coordinates_come_back_read_only(chosen: set[int]) -> None:
    indices = np.array(sorted(chosen), dtype=np.int64)
    found = decode_coordinates(encode_coordinates(indices, 1000), 1000)
    assert found.tolist() == indices.tolist()
    assert not found.flags.writeable


@given(st.sets(st.integers(0, 999), min_size=1))
def test_announced_positions_take_no_more_than_is_said(chosen: set[int]) -> None:
    indices = np.array(sorted(chosen), dtype=np.int64)
    assert len(encode_coordinates(indices, 1000)) <= max_coordinates_bytes(len(indices), 1000)


@looped("num_values", [1, 3, 10, 100, 400, 599, 600])
def test_positions_at_the_end_take_the_most(num_values: int) -> None:
    indices = np.arange(600 - num_values, 600)
    most = max_coordinates_bytes(num_values, 600)
    assert most - 1 <= len(encode_coordinates(indices, 600)) <= most


@given(st.binary(max_size=30))
def test_other_bytes_are_no_coordinates(data: bytes) -> None:
    try:
        found = decode_coordinates(data, 1000)
    except CompressionError:
        return
    assert encode_coordinates(found, 1000) == data


def test_coordinates_that_are_none_or_out_of_order_are_refused() -> None:
    for indices in ([], [1, 1], [2, 1], [-1], [10]):
        with pytest.raises(CompressionError):
            encode_coordinates(np.array(indices, dtype=np.int64), 10)
    empty = encode_indices(np.zeros(0, dtype=np.int64), layers_of((10,), dim=10))
    with pytest.raises(CompressionError, match="0 positions and 0 bytes more"):
        decode_coordinates(empty, 10)
    with pytest.raises(CompressionError, match="1 positions and 1 bytes more"):
        decode_coordinates(encode_coordinates(np.array([3]), 10) + b"\0", 10)


@pytest.mark.parametrize(("sizes", "dim"), [((3, 4), 8), ((), 1), ((-1, 2), 1), ((0,), 0)])
def test_layers_that_are_not_the_model_are_refused(sizes: tuple[int, ...], dim: int) -> None:
    with pytest.raises(CompressionError, match="must sum to"):
        layers_of(sizes, dim=dim)
