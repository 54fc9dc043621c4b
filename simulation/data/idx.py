"""Reader of the IDX format, in which MNIST and its relatives are published.

A file is two zero bytes, one byte for the element type, one byte for the number of dimensions,
each dimension as a big-endian 32-bit integer, then the elements in row-major order.
"""

import gzip
import struct
import zlib
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from simulation.errors import DatasetError

_UNSIGNED_BYTE: Final = 0x08
_MAX_ELEMENTS: Final = 1 << 28  # elements; a damaged header must not make us allocate more


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def read_idx(path: Path, *, num_dimensions: int) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, gzip-compressed where its name ends in `.gz`.

    Args:
        path: the file.
        num_dimensions: dimensions the file must have, from 1.

    Returns:
        uint8 array of the file's shape, read-only.

    Raises:
        DatasetError: if the file is unreadable, no IDX file of that many dimensions, or its
            length is not exactly what its header says.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            return _parse(file, path, num_dimensions)
    except (OSError, EOFError, zlib.error) as error:
        message = f"{path} cannot be read: {error}"
        raise DatasetError(message) from error


def _parse(file: _Readable, path: Path, num_dimensions: int) -> NDArray[np.uint8]:
    expected = bytes((0, 0, _UNSIGNED_BYTE, num_dimensions))
    magic = file.read(len(expected))
    if magic != expected:
        message = f"{path} starts with {magic.hex()!r}, expected {expected.hex()!r}"
        raise DatasetError(message)
    header = file.read(4 * num_dimensions)
    if len(header) != 4 * num_dimensions:
        message = f"{path} ends inside its header"
        raise DatasetError(message)
    shape = struct.unpack(f">{num_dimensions}I", header)
    size = 1
    for length in shape:
        size *= length
    if size > _MAX_ELEMENTS:
        message = f"{path} declares {size} elements, more than {_MAX_ELEMENTS}"
        raise DatasetError(message)
    # One byte more than declared, to see a file that goes on; never an unbounded read.
    body = file.read(size + 1)
    if len(body) != size:
        found = "more" if len(body) > size else str(len(body))
        message = f"{path} declares {size} elements but holds {found}"
        raise DatasetError(message)
    return np.frombuffer(body, dtype=np.uint8).reshape(shape)
