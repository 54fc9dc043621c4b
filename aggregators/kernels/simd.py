"""Instructions on vectors of a fixed number of lanes, for kernels to be made of.

Written as LLVM vectors rather than left to the loop vectorizer: the number of lanes then belongs
to the definition of a result, not to the processor, and registers hold what the loops reuse. For
narrower processors LLVM splits a vector; the bits stay.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

from llvmlite import ir
from numba.core import cgutils

LANES: Final = 16
"""Columns per float32 vector; kernels work on whole vectors."""

HALF: Final = 8  # lanes per float64 vector

F32: Final = ir.FloatType()
F64: Final = ir.DoubleType()
I32: Final = ir.IntType(32)
I64: Final = ir.IntType(64)
V8F32: Final = ir.VectorType(F32, HALF)
V4F64: Final = ir.VectorType(F64, 4)
V8F64: Final = ir.VectorType(F64, HALF)
V16F32: Final = ir.VectorType(F32, LANES)
V16I32: Final = ir.VectorType(I32, LANES)

_MAX_FINITE_BITS: Final = 0x7F7FFFFF
_MAGNITUDE_MASK: Final = 0x7FFFFFFF
_FLOAT_BYTES: Final = 4

Value = Any


class Emitter:
    """Emits vector instructions into the function that a builder builds. Addresses are int64."""

    def __init__(self, builder: Any) -> None:
        """Emit where the builder stands."""
        self.builder = builder

    def integer(self, value: int) -> Value:
        """Make a constant int64."""
        return ir.Constant(I64, value)

    def zeros(self, kind: Any) -> Value:
        """Make a constant vector of zeros."""
        zero = 0.0 if kind.element in {F32, F64} else 0
        return ir.Constant(kind, [zero] * kind.count)

    def load(self, address: Value, kind: Any) -> Value:
        """Read a value or vector that need only be aligned to four bytes."""
        pointer = self.builder.inttoptr(address, kind.as_pointer())
        return self.builder.load(pointer, align=_FLOAT_BYTES)

    def store(self, value: Value, address: Value) -> None:
        """Write a value or vector that need only be aligned to four bytes."""
        pointer = self.builder.inttoptr(address, value.type.as_pointer())
        self.builder.store(value, pointer, align=_FLOAT_BYTES)

    def prefetch(self, address: Value) -> None:
        """Ask for a cache line that will be read soon; any address is allowed."""
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32])
        function = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.prefetch.p0i8")
        flags = [ir.Constant(I32, flag) for flag in (0, 3, 1)]  # read, keep in every level, data
        self.builder.call(function, [self.builder.inttoptr(address, byte), *flags])

    def item(self, address: Value, index: int, size: int = 8) -> Value:
        """Compute the address of an array's entry."""
        return self.builder.add(address, self.integer(index * size))

    def broadcast(self, value: Value, lanes: int) -> Value:
        """Fill a vector with one value."""
        kind = ir.VectorType(value.type, lanes)
        nothing = ir.Constant(kind, ir.Undefined)
        first = self.builder.insert_element(nothing, value, ir.Constant(I32, 0))
        picks = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
        return self.builder.shuffle_vector(first, nothing, picks)

    def part(self, vector: Value, start: int, count: int) -> Value:
        """Take some neighbouring lanes."""
        picks = ir.Constant(ir.VectorType(I32, count), list(range(start, start + count)))
        return self.builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), picks)

    def join(self, low: Value, high: Value) -> Value:
        """Put two vectors side by side."""
        count = 2 * low.type.count
        picks = ir.Constant(ir.VectorType(I32, count), list(range(count)))
        return self.builder.shuffle_vector(low, high, picks)

    def call(self, name: str, arguments: Sequence[Value]) -> Value:
        """Call an LLVM function of vectors, such as fma or fabs."""
        kind = arguments[0].type
        element = "f32" if kind.element == F32 else "f64"
        function = cgutils.get_or_insert_function(
            self.builder.module,
            ir.FunctionType(kind, [kind] * len(arguments)),
            f"llvm.{name}.v{kind.count}{element}",
        )
        return self.builder.call(function, list(arguments))

    def widen(self, vector: Value) -> Value:
        """Convert float32 lanes to float64."""
        return self.builder.fpext(vector, ir.VectorType(F64, vector.type.count))

    def lane_sum(self, vector: Value) -> Value:
        """Add up float64 lanes by halves."""
        width = vector.type.count
        while width > 1:
            width //= 2
            low, high = self.part(vector, 0, width), self.part(vector, width, width)
            vector = self.builder.fadd(low, high)
        return self.builder.extract_element(vector, ir.Constant(I32, 0))

    def squares(self, vector: Value) -> Value:
        """Multiply each lane with itself."""
        return self.builder.fmul(vector, vector)

    def sum_over_columns(self, count: Value, terms: Callable[[Value], Value]) -> Value:
        """Add up what `terms` makes of each byte offset: 16 float64 lanes a vector of columns."""
        kind = ir.VectorType(F64, LANES)
        total = cgutils.alloca_once_value(self.builder, self.zeros(kind))
        with cgutils.for_range(self.builder, count, intp=I64) as loop:
            at = self.builder.mul(loop.index, self.integer(_FLOAT_BYTES * LANES))
            self.builder.store(self.builder.fadd(self.builder.load(total), terms(at)), total)
        return self.lane_sum(self.builder.load(total))

    def lane_sums(self, vectors: Sequence[Value]) -> Value:
        """Add up the lanes of each of four vectors, neighbours first; the sums become lanes."""
        while len(vectors) > 1:
            vectors = [
                self._neighbours(low, high)
                for low, high in zip(vectors[::2], vectors[1::2], strict=True)
            ]
        (sums,) = vectors
        while sums.type.count > 4:
            half = sums.type.count // 2
            sums = self._neighbours(self.part(sums, 0, half), self.part(sums, half, half))
        return sums

    def _neighbours(self, low: Value, high: Value) -> Value:
        """Add every two neighbouring lanes, first those of `low`, then those of `high`."""
        count = low.type.count
        even, odd = (
            ir.Constant(ir.VectorType(I32, count), [start + 2 * lane for lane in range(count)])
            for start in (0, 1)
        )
        return self.builder.fadd(
            self.builder.shuffle_vector(low, high, even),
            self.builder.shuffle_vector(low, high, odd),
        )

    def scaled(self, vector: Value, factor: Value) -> Value:
        """Multiply 16 or 8 float32 lanes by a float64 factor, rounding once."""
        if vector.type.count == LANES:
            low, high = self.part(vector, 0, HALF), self.part(vector, HALF, HALF)
            return self.join(self.scaled(low, factor), self.scaled(high, factor))
        product = self.builder.fmul(self.widen(vector), self.broadcast(factor, HALF))
        return self.builder.fptrunc(product, V8F32)

    def lesser(self, first: Value, second: Value) -> Value:
        """Take the lesser of each two lanes."""
        return self.builder.select(self.builder.fcmp_ordered("<", first, second), first, second)

    def greater(self, first: Value, second: Value) -> Value:
        """Take the greater of each two lanes."""
        return self.builder.select(self.builder.fcmp_ordered(">", first, second), first, second)

    def largest_bits(self, bits: Value, vector: Value) -> Value:
        """Keep the larger magnitude as bits: those order as magnitudes do, NaN above infinity."""
        mask = ir.Constant(V16I32, [_MAGNITUDE_MASK] * LANES)
        magnitude = self.builder.and_(self.builder.bitcast(vector, V16I32), mask)
        return self.builder.select(
            self.builder.icmp_unsigned(">", bits, magnitude), bits, magnitude
        )

    def largest_lane(self, bits: Value) -> Value:
        """Reduce `largest_bits` to the largest lane, as int64."""
        width = bits.type.count
        while width > 1:
            width //= 2
            low, high = self.part(bits, 0, width), self.part(bits, width, width)
            bits = self.builder.select(self.builder.icmp_unsigned(">", low, high), low, high)
        return self.builder.zext(self.builder.extract_element(bits, ir.Constant(I32, 0)), I64)

    def is_not_finite(self, bits: Value) -> Value:
        """Tell, as int64 1 or 0, whether any lane of `largest_bits` stands for no finite value."""
        limit = ir.Constant(V16I32, [_MAX_FINITE_BITS] * LANES)
        flags = self.builder.icmp_unsigned(">", bits, limit)
        packed = self.builder.bitcast(flags, ir.IntType(LANES))
        found = self.builder.icmp_unsigned("!=", packed, ir.Constant(ir.IntType(LANES), 0))
        return self.builder.zext(found, I64)


def odd_even_merge_sort(count: int) -> list[tuple[int, int]]:
    """List the comparators of Batcher's network for any number of wires, lesser value first.

    References: Batcher (1968), "Sorting networks and their applications"; Knuth, TAOCP 3, 5.2.2.
    """
    pairs = []
    span = 1
    while span < count:
        step = span
        while step >= 1:
            for start in range(step % span, count - step, 2 * step):
                pairs += [
                    (low, low + step)
                    for low in range(start, min(start + step, count - step))
                    if low // (2 * span) == (low + step) // (2 * span)
                ]
            step //= 2
        span *= 2
    return pairs
