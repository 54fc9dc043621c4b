import hashlib
import struct

import pytest

from updates.errors import CompressionError
from updates.map_stream import SEGMENT_BYTES, stream_bytes

SEED = bytes(range(32))


def segment(number: int, *, purpose: bytes = b"signs", dim: int = 7, num_values: int = 3) -> bytes:
    """As the module's documentation says, with nothing of the module."""
    text = b"fedagg compression map v1" + struct.pack("B", len(purpose)) + purpose + SEED
    text += struct.pack("<QQQ", dim, num_values, number)
    return hashlib.shake_256(text).digest(1 << 20)


def read(count: int, *, purpose: str = "signs", dim: int = 7, num_values: int = 3) -> bytes:
    drawn = stream_bytes(purpose, seed=SEED, dim=dim, num_values=num_values, count=count)
    return drawn.tobytes()


def test_the_stream_is_the_one_documented() -> None:
    assert read(100) == segment(0)[:100]
    assert read(SEGMENT_BYTES + 9) == segment(0) + segment(1)[:9]


@pytest.mark.parametrize("count", [0, 1, 1000, SEGMENT_BYTES - 1, SEGMENT_BYTES])
def test_a_longer_read_begins_with_the_same_bytes(count: int) -> None:
    assert read(SEGMENT_BYTES + 1)[:count] == read(count)


def test_streams_differ_by_purpose_dimension_and_number_of_values() -> None:
    streams = {
        read(32),
        read(32, purpose="sign"),
        read(32, dim=8),
        read(32, num_values=4),
        stream_bytes("signs", seed=bytes(32), dim=7, num_values=3, count=32).tobytes(),
    }
    assert len(streams) == 5


def test_a_seed_of_another_length_is_refused() -> None:
    with pytest.raises(CompressionError, match=r"len\(seed\)=31 must be 32"):
        stream_bytes("signs", seed=SEED[:31], dim=1, num_values=1, count=1)
