"""Requests built beforehand, so that sending one costs the load generator nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import xxhash
from numpy.typing import NDArray

from benchmarks.service.deployment import device_name
from benchmarks.service.load import CHUNK_BYTES, LoadPlan
from protos.fedagg.v1 import federation_pb2 as pb
from updates.codec import encode_dense


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """One encoded update."""

    data: bytes
    digest: bytes

    @classmethod
    def of(cls, dim: int) -> Self:
        """A random update of that dimension."""
        return cls.encoded(_random_vector(dim, seed=dim))

    @classmethod
    def encoded(cls, vector: NDArray[np.float32]) -> Self:
        """The update that `vector` is."""
        data = encode_dense(vector)
        return cls(data=data, digest=xxhash.xxh3_128_digest(data))


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkedUpload:
    """Messages of one `SubmitUpdate`."""

    head: bytes
    chunks: Sequence[bytes]


def header(plan: LoadPlan, payload: Payload, number: int) -> pb.UpdateHeader:
    """Header of upload `number`."""
    device = plan.first + number
    return pb.UpdateHeader(
        task=plan.task,
        round=plan.round_number,
        device_id=device_name(device),
        submission_id=f"u{device:06d}",
        model_version=plan.model_version,
        num_samples=1,
        payload_bytes=len(payload.data),
        payload_digest=payload.digest,
    )


def inline_parts(plan: LoadPlan, payload: Payload) -> tuple[list[bytes], bytes]:
    """First parts, one per upload, and the common rest of `InlineUpdate` messages."""
    heads = [
        pb.InlineUpdate(header=header(plan, payload, number)).SerializeToString()
        for number in range(plan.count)
    ]
    return heads, pb.InlineUpdate(payload=payload.data).SerializeToString()


def chunked_uploads(plan: LoadPlan) -> list[ChunkedUpload]:
    """One per upload; without `plan.distinct` they share one payload."""
    vector = _random_vector(plan.dim, seed=plan.dim)
    payload = Payload.encoded(vector)
    chunks = stream_chunks(payload)
    uploads = []
    for number in range(plan.count):
        if plan.distinct:
            # The first chunk tells the updates apart; the others lie in memory once.
            values = min(plan.dim, CHUNK_BYTES // 8)
            vector[:values] = _random_vector(values, seed=plan.first + number)
            payload = Payload.encoded(vector)
            chunks = [*stream_chunks(payload)[:1], *chunks[1:]]
        head = pb.SubmitUpdateRequest(header=header(plan, payload, number)).SerializeToString()
        uploads.append(ChunkedUpload(head=head, chunks=chunks))
    return uploads


def stream_chunks(payload: Payload) -> list[bytes]:
    """Further messages of a `SubmitUpdate`."""
    view = memoryview(payload.data)
    return [
        pb.SubmitUpdateRequest(data=bytes(view[start : start + CHUNK_BYTES])).SerializeToString()
        for start in range(0, len(view), CHUNK_BYTES)
    ]


def batches(plan: LoadPlan, payload: Payload) -> list[bytes]:
    """Messages of `SubmitUpdates`."""
    heads = [header(plan, payload, number) for number in range(plan.count)]
    groups: list[Sequence[pb.UpdateHeader]] = [
        heads[start : start + plan.batch] for start in range(0, plan.count, plan.batch)
    ]
    return [
        pb.SubmitUpdatesRequest(
            batch_id=number,
            updates=[pb.InlineUpdate(header=head, payload=payload.data) for head in group],
        ).SerializeToString()
        for number, group in enumerate(groups, start=1)
    ]


def _random_vector(dim: int, *, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(size=dim, dtype=np.float32)
