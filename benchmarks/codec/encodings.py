"""Bytes and speed of each encoding of a real update."""

import hashlib
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from benchmarks.codec.real_updates import RealUpdate, real_update
from benchmarks.harness.cases import Benchmark, Case
from benchmarks.harness.cpu import best_of
from benchmarks.harness.figures import Figures, Target, judged, rounded
from updates.compression_plan import CompressionPlan, Method, ValueType
from updates.compressor import compress, expand
from updates.index_coding import encode_coordinates
from updates.sparse import Content
from updates.stage import zstd_version
from updates.topk import top_k
from updates.update_codec import codec_for

LIMITS: Final = {0.01: 1 / 100, 0.1: 1 / 12}
"""By share of coordinates, the most bytes as a share of dense float32."""

_SEED: Final = hashlib.sha256(b"benchmark").digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """A method, how much of an update it sends, and how numbers are written.

    Attributes:
        share: of the coordinates that are sent, or of numbers that a common map gives.
    """

    method: Method
    share: float
    value_type: ValueType


ENCODINGS: Final = tuple(
    Encoding(method=method, share=share, value_type=value_type)
    for method, shares in (
        (Method.DENSE, (1.0,)),
        (Method.TOP_K, tuple(LIMITS)),
        (Method.RAND_K, tuple(LIMITS)),
        (Method.ANNOUNCED, tuple(LIMITS)),
        (Method.PROJECTION, tuple(LIMITS)),
    )
    for share in shares
    for value_type in ValueType
)


def measure(repeats: int, *, model: str, encoding: Encoding) -> list[Figures]:
    """Give one row; times are of encoding alone, without the choice of numbers."""
    return [_row(real_update(model), encoding, repeats)]


def plan_of(update: RealUpdate, encoding: Encoding, *, version: int) -> CompressionPlan:
    """Give the plan of an encoding, with frames of a version of libzstd; 0: without."""
    dim = len(update.delta)
    num_values = max(1, round(encoding.share * dim))
    announced = encode_coordinates(top_k(update.delta, num_values), dim)
    return CompressionPlan(
        method=encoding.method,
        dim=dim,
        num_values=num_values,
        value_type=encoding.value_type,
        map_seed=_SEED if encoding.method in {Method.RAND_K, Method.PROJECTION} else b"",
        coordinates=announced if encoding.method is Method.ANNOUNCED else b"",
        zstd_version=version,
    )


def _row(update: RealUpdate, encoding: Encoding, repeats: int) -> Figures:
    plan = plan_of(update, encoding, version=zstd_version())
    codec = codec_for(plan, update.layer_sizes)
    content = compress(plan, update.delta)
    payload = codec.encode(content, seed=_SEED)
    seconds = best_of(
        {
            "encode": lambda: codec.encode(content, seed=_SEED),
            "decode": lambda: codec.decode(payload),
        },
        repeats=repeats,
    )
    plain = codec_for(plan_of(update, encoding, version=0), update.layer_sizes)
    dense = update.dense_bytes
    return {
        "method": encoding.method.value,
        "share": encoding.share,
        "numbers": encoding.value_type.value,
        "bytes": len(payload),
        "stored_bytes": len(plain.encode(content, seed=_SEED)),
        "times_smaller": rounded(dense / len(payload)),
        "error": rounded(_coding_error(plan, content, codec.decode(payload))),
        "encode_dense_mb_s": rounded(dense / seconds["encode"] / 1e6),
        "decode_dense_mb_s": rounded(dense / seconds["decode"] / 1e6),
        "encode_mb_s": rounded(len(payload) / seconds["encode"] / 1e6),
        "decode_mb_s": rounded(len(payload) / seconds["decode"] / 1e6),
        **judged(*_targets(encoding, len(payload) / dense)),
    }


def _targets(encoding: Encoding, share_of_dense: float) -> tuple[Target, ...]:
    # A float32 takes all of its share of the bytes; positions and header have none left.
    if encoding.share not in LIMITS or encoding.value_type is ValueType.FLOAT32:
        return ()
    limit = LIMITS[encoding.share]
    return (Target(name="bytes", figure=share_of_dense, limit=limit, unit="x dense float32"),)


def _coding_error(plan: CompressionPlan, content: Content, decoded: Content) -> float:
    """What coding changes, as a share of what is sent."""
    sent, received = (expand(plan, each).astype(np.float64) for each in (content, decoded))
    return float(np.linalg.norm(received - sent) / np.linalg.norm(sent))


BENCHMARK: Final = Benchmark(
    cases=[
        Case(
            name=f"{encoding.method.value} {encoding.share:g} {encoding.value_type.value}",
            full=partial(measure, model="convolutional", encoding=encoding),
            quick=partial(measure, model="perceptron", encoding=encoding),
        )
        for encoding in ENCODINGS
    ],
    repeats=5,
)
