"""A coordinator as it is deployed, on the loopback interface, and calls of its protocol by hand."""

from __future__ import annotations  # FederationAsyncStub exists in the stubs only

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import grpc
import httpx
import numpy as np
import pytest
import redis
import xxhash
from numpy.typing import NDArray

from protos.fedagg.v1 import federation_pb2 as pb
from protos.fedagg.v1.errors_pb2 import ErrorDetail, ErrorReason
from protos.fedagg.v1.federation_pb2_grpc import FederationStub
from protos.wire import ERROR_METADATA_KEY
from server.app import build_server
from server.config import parse_config
from server.production_server import ProductionFederatedServer
from server.storage.redis_client import SERVER_CLOCK
from updates.codec import encode_dense
from updates.vectors import encode_model

if TYPE_CHECKING:
    from protos.fedagg.v1.federation_pb2_grpc import FederationAsyncStub

TASK: Final = "digits"
DEADLINE_S: Final = 30.0
CALL_TIMEOUT_S: Final = 30.0
WAIT_MS: Final = 20_000
KEYS: Final = f"fedagg:{{{TASK}}}:"
CLOCK_KEY: Final = "test:clock"
CLOCK: Final = f"local function now_ms() return tonumber(redis.call('GET', '{CLOCK_KEY}')) end"

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """What a peer learns of a refused call."""

    code: grpc.StatusCode
    reason: str
    message: str
    retry_after_ms: int


@dataclass(kw_only=True)
class Service:
    """One running coordinator and the store behind it."""

    server: ProductionFederatedServer
    stub: FederationAsyncStub
    channel: grpc.aio.Channel
    store: redis.Redis
    data_dir: Path
    model: bytes
    dim: int

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.grpc_port}"

    @property
    def audit_path(self) -> Path:
        return self.data_dir / "audit.jsonl"

    def update(self, value: float = 1.0) -> bytes:
        """An encoded update, different for every `value`."""
        return encode_dense(np.full(self.dim, value, np.float32))

    async def check_in(
        self, device: str, check_in_id: str = "c1", *, max_wait_ms: int = WAIT_MS
    ) -> pb.CheckInResponse:
        return await self.stub.CheckIn(
            pb.CheckInRequest(
                task=TASK,
                device_id=device,
                check_in_id=check_in_id,
                max_wait_ms=max_wait_ms,
                state=pb.DeviceState(charging=True),
            ),
            timeout=CALL_TIMEOUT_S,
        )

    async def open_round(self, *devices: str, check_in_id: str = "c1") -> list[pb.Assignment]:
        """Offer the devices, all of which must be selected."""
        answers = await asyncio.gather(*(self.check_in(d, check_in_id) for d in devices))
        for answer in answers:
            assert answer.WhichOneof("outcome") == "assignment", answer
        return [answer.assignment for answer in answers]

    async def inline(self, header: pb.UpdateHeader, payload: bytes) -> pb.SubmissionReceipt:
        request = pb.InlineUpdate(header=header, payload=payload)
        return await self.stub.SubmitInlineUpdate(request, timeout=CALL_TIMEOUT_S)

    async def stream(self, header: pb.UpdateHeader, *chunks: bytes) -> pb.SubmissionReceipt:
        parts = [pb.SubmitUpdateRequest(data=chunk) for chunk in chunks]
        return await self.stream_parts(pb.SubmitUpdateRequest(header=header), *parts)

    async def stream_parts(self, *parts: pb.SubmitUpdateRequest) -> pb.SubmissionReceipt:
        return await unless_overtaken(
            lambda: self.stub.SubmitUpdate(_each(parts), timeout=CALL_TIMEOUT_S)
        )

    async def batch(self, *updates: tuple[pb.UpdateHeader, bytes]) -> list[pb.SubmissionOutcome]:
        request = pb.SubmitUpdatesRequest(
            batch_id=7, updates=[pb.InlineUpdate(header=h, payload=p) for h, p in updates]
        )
        call = self.stub.SubmitUpdates(_each([request]), timeout=CALL_TIMEOUT_S)
        answers = [answer async for answer in call]
        assert [answer.batch_id for answer in answers] == [7]
        return list(answers[0].outcomes)

    async def upload_status(self, header: pb.UpdateHeader) -> pb.GetUploadStatusResponse:
        return await self.stub.GetUploadStatus(
            pb.GetUploadStatusRequest(
                task=header.task,
                round=header.round,
                device_id=header.device_id,
                submission_id=header.submission_id,
                payload_digest=header.payload_digest,
            ),
            timeout=CALL_TIMEOUT_S,
        )

    async def fetch(self, version: int = 0, offset: int = 0, task: str = TASK) -> bytes:
        request = pb.FetchModelRequest(task=task, model_version=version, offset=offset)
        chunks = self.stub.FetchModel(request, timeout=CALL_TIMEOUT_S)
        return b"".join([chunk.data async for chunk in chunks])

    async def get(self, path: str) -> Any:
        """Ask the admin API."""
        return await self._http("GET", path)

    async def post(self, path: str, body: object) -> Any:
        return await self._http("POST", path, body)

    async def finished(self, number: int) -> dict[str, Any]:
        """The record of a round, once it has ended."""

        async def record() -> dict[str, Any] | None:
            rounds = await self.get(f"/api/v1/tasks/{TASK}/rounds?limit=100")
            return next((found for found in rounds if found["number"] == number), None)

        return await eventually(record)

    async def audited(self, count: int) -> list[str]:
        """The audit log's lines, once there are `count`."""

        async def lines() -> list[str] | None:
            found = self.audit_path.read_text().splitlines() if self.audit_path.exists() else []
            return found if len(found) >= count else None

        return await eventually(lines)

    async def metric(self, name: str, **labels: str) -> float:
        """The value of one sample on the metrics page; 0 where it was never set."""
        wanted = {f'{key}="{value}"' for key, value in labels.items()}
        async with httpx.AsyncClient() as client:
            page = await client.get(f"http://127.0.0.1:{self.server.metrics_port}/metrics")
        for line in page.text.splitlines():
            series, _, value = line.rpartition(" ")
            found, _, rest = series.partition("{")
            if found == name and wanted == set(filter(None, rest.rstrip("}").split(","))):
                return float(value)
        return 0.0

    def advance(self, ms: int) -> None:
        """Move the store's clock; for services started with `CLOCK`."""
        self.store.incrby(CLOCK_KEY, ms)

    def stored_updates(self) -> dict[str, object]:
        """Every trace an admitted or half-received update leaves, in Redis and in files."""
        found: dict[str, object] = {"accepted": self.store.hget(KEYS + "round", "accepted")}
        for name in ("submissions", "payloads"):
            for key in sorted(self.store.scan_iter(f"{KEYS}{name}:*")):
                found[key.decode()] = self.store.hgetall(key)
        updates = self.data_dir / "blobs" / "updates"
        for path in sorted(updates.rglob("*")):
            if path.is_file():
                found[str(path)] = path.read_bytes()
        return found

    async def _http(self, method: str, path: str, body: object = None) -> Any:
        async with httpx.AsyncClient(timeout=DEADLINE_S) as client:
            url = f"http://127.0.0.1:{self.server.http_port}{path}"
            answer = await client.request(method, url, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()


@asynccontextmanager
async def serving(
    folder: Path,
    store_url: str,
    *,
    task: Mapping[str, object] | None = None,
    sections: Mapping[str, Mapping[str, object]] | None = None,
    dim: int = 7,
    clock: str = SERVER_CLOCK,
) -> AsyncIterator[Service]:
    """Run a coordinator until the block ends.

    Args:
        folder: model, blobs and audit log; services that share it share these.
        store_url: the round store; services that share it are replicas.
        task: settings of the task over the defaults: two devices a round, all of them needed.
        sections: further settings, by section.
        dim: elements of the model.
        clock: `CLOCK` for one that stands still and is moved by `advance`.
    """
    model = initial_model(dim)
    (folder / "model.safetensors").write_bytes(model)
    data_dir = folder / "data"
    tree: dict[str, object] = {
        "listen": {
            "grpc": "127.0.0.1:0",
            "http": "127.0.0.1:0",
            "metrics": "127.0.0.1:0",
        },
        "tls": {"insecure": True},
        "store": {"data-dir": str(data_dir)},
        "rounds": {"poll-interval-s": 0.05},
        "task": [
            {
                "name": TASK,
                "initial-model": str(folder / "model.safetensors"),
                "num-rounds": 3,
                "reporting-goal": 2,
                "over-selection": 1.0,
                **(task or {}),
            }
        ],
    }
    for name, section in (sections or {}).items():
        before = tree.get(name, {})
        tree[name] = {**before, **section} if isinstance(before, dict) else section
    with redis.Redis.from_url(store_url) as store:
        store.setnx(CLOCK_KEY, 1_000_000)
        server = await build_server(parse_config(tree, {}), store_url=store_url, clock=clock)
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
                yield Service(
                    server=server,
                    stub=FederationStub(channel),
                    channel=channel,
                    store=store,
                    data_dir=data_dir,
                    model=model,
                    dim=dim,
                )
        finally:
            await server.stop()


def initial_model(dim: int) -> bytes:
    """A model whose tensors are not in alphabetical order."""
    tensors: dict[str, NDArray[np.float32]] = {
        "weight": np.zeros((dim - 1, 1), np.float32),
        "bias": np.zeros(1, np.float32),
    }
    return encode_model(tensors)


def header(
    device: str,
    payload: bytes,
    *,
    round_number: int = 1,
    model_version: int = 1,
    submission_id: str = "s1",
    num_samples: int = 10,
    offset: int = 0,
    task: str = TASK,
) -> pb.UpdateHeader:
    """A truthful description of `payload`."""
    return pb.UpdateHeader(
        task=task,
        round=round_number,
        device_id=device,
        submission_id=submission_id,
        model_version=model_version,
        num_samples=num_samples,
        payload_bytes=len(payload),
        payload_digest=xxhash.xxh3_128_digest(payload),
        offset=offset,
    )


async def refusal_of(call: Awaitable[object]) -> Refusal:
    """Await a call that must be refused."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = caught.value
    metadata = dict(error.trailing_metadata() or ())
    detail = ErrorDetail()
    value = metadata.get(ERROR_METADATA_KEY)
    if isinstance(value, bytes):
        detail.ParseFromString(value)
    return Refusal(
        code=error.code(),
        reason=ErrorReason.Name(detail.reason),
        message=detail.message,
        retry_after_ms=detail.retry_after_ms,
    )


async def unless_overtaken(start: Callable[[], Awaitable[T]]) -> T:
    """Make a call again where gRPC lost the answer because it came before all was sent.

    The status is then one that gRPC's client made up, without the server's detail.
    """
    for _ in range(20):
        try:
            return await start()
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.INTERNAL or error.trailing_metadata():
                raise
    return await start()


async def status_of(call: Awaitable[object]) -> grpc.StatusCode:
    """The status a call ends with."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def eventually(found: Callable[[], Awaitable[T | None]], *, pause_s: float = 0.01) -> T:
    """What `found` returns once it is no longer None; fails after a deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        value = await found()
        if value is not None:
            return value
        assert time.monotonic() < deadline, "the condition never came true"
        await asyncio.sleep(pause_s)


@contextmanager
def reserved_port() -> Iterator[int]:
    """A port that only sockets with SO_REUSEPORT can take while the block runs."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


async def _each(items: Sequence[T]) -> AsyncIterator[T]:
    for item in items:
        yield item
