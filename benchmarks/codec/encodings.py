"""Bytes and speed of each encoding of a real update."""

import hashlib
from dataclasses import dataclass
from typing import Final

import numpy as np

from benchmarks.codec.real_updates import RealUpdate
from benchmarks.secure.cpu import best_of
from benchmarks.secure.figures import Figures, Target, judged, rounded
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
class Case:
    """One encoding.

    Attributes:
        share: of the coordinates that are sent, or of numbers that a common map gives.
    """

    method: Method
    share: float
    value_type: ValueType


CASES: Final = tuple(
    Case(method=method, share=share, value_type=value_type)
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


def measure(update: RealUpdate, *, repeats: int) -> list[Figures]:
    """Give a row for each case; times are of encoding alone, without the choice of numbers."""
    return [_row(update, case, repeats) for case in CASES]


def plan_of(update: RealUpdate, case: Case, *, version: int) -> CompressionPlan:
    """Give the plan of a case, with frames of a version of libzstd; 0: without."""
    dim = len(update.delta)
    num_values = max(1, round(case.share * dim))
    announced = encode_coordinates(top_k(update.delta, num_values), dim)
    return CompressionPlan(
        method=case.method,
        dim=dim,
        num_values=num_values,
        value_type=case.value_type,
        map_seed=_SEED if case.method in {Method.RAND_K, Method.PROJECTION} else b"",
        coordinates=announced if case.method is Method.ANNOUNCED else b"",
        zstd_version=version,
    )


def _row(update: RealUpdate, case: Case, repeats: int) -> Figures:
    plan = plan_of(update, case, version=zstd_version())
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
    plain = codec_for(plan_of(update, case, version=0), update.layer_sizes)
    dense = update.dense_bytes
    return {
        "method": case.method.value,
        "share": case.share,
        "numbers": case.value_type.value,
        "bytes": len(payload),
        "stored_bytes": len(plain.encode(content, seed=_SEED)),
        "times_smaller": rounded(dense / len(payload)),
        "error": rounded(_coding_error(plan, content, codec.decode(payload))),
        "encode_dense_mb_s": rounded(dense / seconds["encode"] / 1e6),
        "decode_dense_mb_s": rounded(dense / seconds["decode"] / 1e6),
        "encode_mb_s": rounded(len(payload) / seconds["encode"] / 1e6),
        "decode_mb_s": rounded(len(payload) / seconds["decode"] / 1e6),
        **judged(*_targets(case, len(payload) / dense)),
    }


def _targets(case: Case, share_of_dense: float) -> tuple[Target, ...]:
    # A float32 takes all of its share of the bytes; positions and header have none left.
    if case.share not in LIMITS or case.value_type is ValueType.FLOAT32:
        return ()
    limit = LIMITS[case.share]
    return (Target(name="bytes", figure=share_of_dense, limit=limit, unit="x dense float32"),)


def _coding_error(plan: CompressionPlan, content: Content, decoded: Content) -> float:
    """What coding changes, as a share of what is sent."""
    sent, received = (expand(plan, each).astype(np.float64) for each in (content, decoded))
    return float(np.linalg.norm(received - sent) / np.linalg.norm(sent))
