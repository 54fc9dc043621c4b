"""Requests built beforehand, so that sending one costs the load generator nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

from benchmarks.deployment import device_name
from benchmarks.load import CHUNK_BYTES, LoadPlan
from compression.codec import encode_dense
from protos.fedagg.v1 import federation_pb2 as pb


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """One update that every device sends; only the headers differ."""

    data: bytes
    digest: bytes

    @classmethod
    def of(cls, dim: int) -> "Payload":
        """A random update of that dimension."""
        vector = np.random.default_rng(dim).normal(size=dim).astype(np.float32)
        data = encode_dense(vector)
        return cls(data=data, digest=xxhash.xxh3_128_digest(data))


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


def stream_headers(plan: LoadPlan, payload: Payload) -> list[bytes]:
    """First messages of `SubmitUpdate`, one per upload."""
    return [
        pb.SubmitUpdateRequest(header=header(plan, payload, number)).SerializeToString()
        for number in range(plan.count)
    ]


def stream_chunks(payload: Payload) -> list[bytes]:
    """Further messages of `SubmitUpdate`, common to all."""
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
