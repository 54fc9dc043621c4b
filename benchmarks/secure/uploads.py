"""Devices that upload finished updates, plain or sealed, from the process that measures."""

from __future__ import annotations  # FederationAsyncStub exists in the stubs only

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, Self

import grpc
import numpy as np
import xxhash

from benchmarks.deployment import OpenRound
from benchmarks.load import CHUNK_BYTES
from protos.fedagg.v1 import federation_pb2 as pb
from protos.fedagg.v1.federation_pb2_grpc import FederationStub
from updates.codec import encode_dense

if TYPE_CHECKING:
    from protos.fedagg.v1.federation_pb2_grpc import FederationAsyncStub

INLINE_BYTES: Final = 64 << 10
"""Payloads up to this travel in one message, as the device SDK sends them."""

_IN_FLIGHT: Final = 4  # large payloads; each is made while it is sent
_SMALL_IN_FLIGHT: Final = 32


class Payload(Protocol):
    """What is uploaded."""

    @property
    def digest(self) -> bytes: ...

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice) -> bytes: ...


@dataclass(frozen=True, slots=True)
class PlainPayload:
    """An encoded update."""

    data: bytes

    @classmethod
    def of(cls, update: np.ndarray) -> Self:
        """Encode an update."""
        return cls(encode_dense(update))

    @property
    def digest(self) -> bytes:
        return xxhash.xxh3_128_digest(self.data)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, part: slice) -> bytes:
        return self.data[part]


def upload_all(
    target: str,
    opened: OpenRound,
    devices: Sequence[str],
    payload_of: Callable[[str], Payload],
) -> None:
    """Upload one payload of every device; each is made just before it is sent.

    Raises:
        grpc.aio.AioRpcError: if one is refused.
    """
    asyncio.run(_upload_all(target, opened, devices, payload_of))


async def _upload_all(
    target: str,
    opened: OpenRound,
    devices: Sequence[str],
    payload_of: Callable[[str], Payload],
) -> None:
    waiting = iter(devices)
    async with grpc.aio.insecure_channel(target) as channel:
        stub: FederationAsyncStub = FederationStub(channel)

        async def work() -> None:
            for device in waiting:
                await _upload(stub, opened, device, payload_of(device))

        # The first tells how large they are.
        first = payload_of(next(waiting))
        await _upload(stub, opened, devices[0], first)
        workers = _SMALL_IN_FLIGHT if len(first) <= INLINE_BYTES else _IN_FLIGHT
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(work())


async def _upload(
    stub: FederationAsyncStub, opened: OpenRound, device: str, payload: Payload
) -> None:
    header = pb.UpdateHeader(
        task=opened.task,
        round=opened.number,
        device_id=device,
        submission_id=f"{opened.task}-{opened.number}-{device}",
        model_version=opened.base_version,
        num_samples=1,
        payload_bytes=len(payload),
        payload_digest=payload.digest,
    )
    if len(payload) <= INLINE_BYTES:
        await stub.SubmitInlineUpdate(pb.InlineUpdate(header=header, payload=payload[:]))
    else:
        await stub.SubmitUpdate(_messages(header, payload))


async def _messages(
    header: pb.UpdateHeader, payload: Payload
) -> AsyncIterator[pb.SubmitUpdateRequest]:
    yield pb.SubmitUpdateRequest(header=header)
    for start in range(0, len(payload), CHUNK_BYTES):
        yield pb.SubmitUpdateRequest(data=payload[start : start + CHUNK_BYTES])
