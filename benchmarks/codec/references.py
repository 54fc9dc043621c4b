"""Other ways to send the same update: copies, zstd alone, plain int8, Flower's dense format.

Flower's is left out where Flower is not installed.
"""

import importlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Final

import numpy as np
import zstandard

from benchmarks.codec.real_updates import RealUpdate, real_update
from benchmarks.harness.cases import Benchmark, Case
from benchmarks.harness.cpu import best_of
from benchmarks.harness.figures import Figures, rounded
from updates.codec import decode, encode_dense
from updates.stage import LEVEL


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """One way to write an update and to read it."""

    name: str
    write: Callable[[], bytes]
    read: Callable[[bytes], object]


def measure(repeats: int, *, model: str) -> list[Figures]:
    """Give a row for each reference."""
    update = real_update(model)
    return [_row(update, reference, repeats) for reference in references(update)]


def references(update: RealUpdate) -> list[Reference]:
    """List the ways."""
    delta = update.delta
    dense = delta.tobytes()
    return [
        Reference(name="memcpy", write=delta.tobytes, read=lambda data: bytes(bytearray(data))),
        Reference(
            name="dense float32",
            write=lambda: encode_dense(delta),
            read=lambda data: decode(data, dim=len(delta)).copy(),
        ),
        Reference(
            name=f"zstd {LEVEL} alone",
            write=lambda: zstandard.ZstdCompressor(level=LEVEL).compress(dense),
            read=lambda data: zstandard.ZstdDecompressor().decompress(data),
        ),
        *_flower(update),
        Reference(name="plain int8", write=lambda: _int8(update), read=_from_int8),
    ]


def _flower(update: RealUpdate) -> list[Reference]:
    if find_spec("flwr") is None:
        return []
    module = importlib.import_module("benchmarks.codec.flower_format")
    tensors = update.tensors()
    return [Reference(name="Flower dense", write=lambda: module.write(tensors), read=module.read)]


def _row(update: RealUpdate, reference: Reference, repeats: int) -> Figures:
    data = reference.write()
    seconds = best_of(
        {"write": reference.write, "read": lambda: reference.read(data)}, repeats=repeats
    )
    return {
        "reference": reference.name,
        "bytes": len(data),
        "times_smaller": rounded(update.dense_bytes / len(data)),
        "write_dense_mb_s": rounded(update.dense_bytes / seconds["write"] / 1e6),
        "read_dense_mb_s": rounded(update.dense_bytes / seconds["read"] / 1e6),
    }


def _int8(update: RealUpdate) -> bytes:
    """One scale for each tensor, rounded to the nearest: what is done most often."""
    written = io.BytesIO()
    for tensor in update.tensors():
        scale = np.float32(max(float(np.abs(tensor).max()), 1e-30) / 127)
        written.write(scale.tobytes() + np.rint(tensor / scale).astype(np.int8).tobytes())
    return written.getvalue()


def _from_int8(data: bytes) -> object:
    # The same work as for all tensors; their borders do not matter to the time.
    return np.frombuffer(data, dtype=np.int8).astype(np.float32)


BENCHMARK: Final = Benchmark(
    cases=[
        Case(
            name="references",
            full=partial(measure, model="convolutional"),
            quick=partial(measure, model="perceptron"),
        )
    ],
    repeats=5,
)
