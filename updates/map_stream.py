"""The random numbers of common linear maps: the same on every machine and in every language.

The stream of a purpose is the concatenation of segments of 2^20 bytes. Segment j, from 0, is the
first 2^20 bytes of

    SHAKE-256(b"fedagg compression map v1" || n || purpose || seed || d || k || j)

where `purpose` is ASCII, n is its length as one byte, `seed` has 32 bytes, and d, k and j are
unsigned 64-bit integers. All integers, also those that the stream is read as, are little-endian.
"""

import hashlib
from typing import Final

import numpy as np
from numpy.typing import NDArray

from updates.compression_plan import SEED_BYTES
from updates.errors import CompressionError

SEGMENT_BYTES: Final = 1 << 20

_LABEL: Final = b"fedagg compression map v1"


def stream_bytes(
    purpose: str, *, seed: bytes, dim: int, num_values: int, count: int
) -> NDArray[np.uint8]:
    """Read the first `count` bytes of a stream.

    Args:
        purpose: what the numbers are for; streams of different purposes are independent.
        seed: 32 bytes.
        dim: d of the map.
        num_values: k of the map.
        count: bytes, from 0.

    Returns:
        (count,), uint8.

    Raises:
        CompressionError: if `seed` does not have 32 bytes.

    Guarantees:
        A longer read begins with the same bytes.

    Cost: O(count); SHAKE-256 makes some hundreds of MB a second.
    References: NIST FIPS 202, section 6.2.
    """
    if len(seed) != SEED_BYTES:
        message = f"len(seed)={len(seed)} must be {SEED_BYTES}"
        raise CompressionError(message)
    name = purpose.encode("ascii")
    prefix = hashlib.shake_256(_LABEL + bytes([len(name)]) + name + seed)
    prefix.update(dim.to_bytes(8, "little") + num_values.to_bytes(8, "little"))
    out = np.empty(count, np.uint8)
    for segment, start in enumerate(range(0, count, SEGMENT_BYTES)):
        state = prefix.copy()
        state.update(segment.to_bytes(8, "little"))
        length = min(SEGMENT_BYTES, count - start)
        out[start : start + length] = np.frombuffer(state.digest(length), np.uint8)
    return out
