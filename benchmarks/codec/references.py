"""Other ways to send the same update: copies, zstd alone, Flower's dense format, plain int8."""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import zstandard
from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
from flwr.common.serde import parameters_from_proto, parameters_to_proto
from flwr.proto.transport_pb2 import Parameters

from benchmarks.codec.real_updates import RealUpdate
from benchmarks.secure.cpu import best_of
from benchmarks.secure.figures import Figures, rounded
from updates.codec import decode, encode_dense
from updates.stage import LEVEL


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """One way to write an update and to read it."""

    name: str
    write: Callable[[], bytes]
    read: Callable[[bytes], object]


def measure(update: RealUpdate, *, repeats: int) -> list[Figures]:
    """Give a row for each reference."""
    return [_row(update, reference, repeats) for reference in references(update)]


def references(update: RealUpdate) -> list[Reference]:
    """List the ways."""
    delta = update.delta
    dense = delta.tobytes()
    tensors = update.tensors()
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
        Reference(
            name="Flower dense",
            write=lambda: parameters_to_proto(ndarrays_to_parameters(tensors)).SerializeToString(),
            read=lambda data: parameters_to_ndarrays(
                parameters_from_proto(Parameters.FromString(data))
            ),
        ),
        Reference(name="plain int8", write=lambda: _int8(update), read=_from_int8),
    ]


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
