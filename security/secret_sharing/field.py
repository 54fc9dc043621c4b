"""Prime fields of Mersenne order p = 2^bits - 1, and their elements as bytes.

In memory elements are uint64 arrays holding canonical values, 0 <= word < p, whatever the field.
On the wire a word is little-endian and as short as the field allows: 8 bytes for 61 bits, 4 for 31.

Such primes need no division: x = a 2^bits + b is a + b mod p, and -x is the bitwise complement.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from security.errors import OutOfRangeWordError, SharingError

Words = NDArray[np.uint64]

_EXPONENTS: Final = (7, 13, 17, 19, 31, 61)  # of the Mersenne primes below 2^64 that have room


@dataclass(frozen=True, slots=True)
class MersenneField:
    """The integers modulo 2^bits - 1.

    Rounds use 61 and 31 bits. The smaller fields serve exhaustive tests of the same code.

    Raises:
        SharingError: if 2^bits - 1 is not one of the primes supported.
    """

    bits: int

    def __post_init__(self) -> None:
        """Refuse what is no prime, or has no room for the points 1 to 7."""
        if self.bits not in _EXPONENTS:
            message = f"bits={self.bits} must be one of {_EXPONENTS}"
            raise SharingError(message)

    @property
    def modulus(self) -> int:
        """The order of the field, p."""
        return (1 << self.bits) - 1

    @property
    def word_bytes(self) -> int:
        """Bytes of one element on the wire: 1, 2, 4 or 8."""
        return 1 << (((self.bits + 7) // 8) - 1).bit_length()

    @property
    def wire_dtype(self) -> np.dtype[np.unsignedinteger]:
        """One element on the wire: an unsigned little-endian integer."""
        return np.dtype(f"<u{self.word_bytes}")

    def reduce(self, value: int) -> int:
        """Give the canonical element of an integer, negative ones included."""
        return value % self.modulus

    def inverse(self, value: int) -> int:
        """Invert an element.

        Raises:
            SharingError: if `value` is a multiple of p.
        """
        reduced = self.reduce(value)
        if reduced == 0:
            message = f"value={value} must not be a multiple of 2^{self.bits} - 1"
            raise SharingError(message)
        return pow(reduced, -1, self.modulus)

    def to_wire(self, words: Words) -> bytes:
        """Write canonical elements, `word_bytes` bytes each."""
        return words.astype(self.wire_dtype, copy=False).tobytes()

    def from_wire(self, data: bytes | bytearray | memoryview) -> Words:
        """Read elements.

        Returns:
            (len(data) / word_bytes,), uint64, canonical, a copy.

        Raises:
            SharingError: if `data` is not a whole number of words.
            OutOfRangeWordError: if a word is p or more. It would break the lazy folding.
        """
        if len(data) % self.word_bytes:
            message = f"data must be whole words of {self.word_bytes} bytes, got {len(data)} bytes"
            raise SharingError(message)
        words = np.frombuffer(data, dtype=self.wire_dtype).astype(np.uint64)
        self.check_range(words)
        return words

    def check_range(self, words: NDArray[np.unsignedinteger]) -> None:
        """Refuse words that are no elements.

        Raises:
            OutOfRangeWordError: if a word is p or more; names the first.
        """
        if words.size and int(words.max()) >= self.modulus:
            first = int(np.argmax(words >= np.uint64(self.modulus)))
            message = f"word {first} must be below 2^{self.bits} - 1"
            raise OutOfRangeWordError(message)


M61: Final = MersenneField(61)
M31: Final = MersenneField(31)


def field_of(bits: int) -> MersenneField:
    """Give the field of a round.

    Raises:
        SharingError: if `bits` is neither 31 nor 61.
    """
    if bits not in (M31.bits, M61.bits):
        message = f"bits={bits} must be {M31.bits} or {M61.bits}"
        raise SharingError(message)
    return M61 if bits == M61.bits else M31
