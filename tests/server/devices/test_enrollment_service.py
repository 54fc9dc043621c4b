"""Enrollment over gRPC and a real store: one token, one key, the same answer on every retry."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from cryptography import x509
from prometheus_client import CollectorRegistry

from monitoring.logs import get_logger
from monitoring.metrics import Metrics
from monitoring.rpc_meter import RpcMeter
from protos.fedagg.v1.enrollment_pb2 import EnrollRequest, EnrollResponse
from protos.fedagg.v1.enrollment_pb2_grpc import EnrollmentStub, add_EnrollmentServicer_to_server
from protos.fedagg.v1.errors_pb2 import ErrorDetail, ErrorReason
from protos.wire import ERROR_METADATA_KEY
from security.certificates.credentials import create_authority, device_id_of, read_chain
from security.certificates.enrollment import issue_token
from security.certificates.signing_request import create_signing_request
from server.config.durability import Durability
from server.devices.enrollment_service import EnrollmentAuthority, EnrollmentService
from server.devices.handlers import METHODS
from server.storage.embedded import EmbeddedStore
from server.storage.redis_client import RedisClient
from server.storage.redis_store import RedisRoundStore
from server.wire.interceptor import ServiceInterceptor

if TYPE_CHECKING:  # exists in the stubs only
    from protos.fedagg.v1.enrollment_pb2_grpc import EnrollmentAsyncStub

NOW_S = 1_700_000_000
LIFETIME_S = 7 * 86_400
TOKEN_KEY = bytes(range(32))
AUTHORITY = EnrollmentAuthority(
    credentials=create_authority(name="A", now_s=NOW_S, valid_for_s=30 * 86_400),
    token_key=TOKEN_KEY,
    certificate_lifetime_s=LIFETIME_S,
)


@dataclass
class Clock:
    now_s: float = NOW_S

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Replicas:
    """Two servers on one store."""

    stubs: list[EnrollmentAsyncStub]
    clock: Clock
    registry: CollectorRegistry
    client: RedisClient

    async def enroll(self, token: str, csr_pem: bytes, *, replica: int = 0) -> EnrollResponse:
        request = EnrollRequest(token=token, csr_pem=csr_pem)
        return await self.stubs[replica].Enroll(request)

    def count(self, outcome: str) -> float | None:
        return self.registry.get_sample_value("federated_enrollments_total", {"outcome": outcome})


@pytest.fixture(scope="module")
def store_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("store")
    with EmbeddedStore(folder, durability=Durability.PROCESS) as store:
        yield store.url


@pytest.fixture
async def replicas(store_url: str) -> AsyncIterator[Replicas]:
    async with serving(store_url, AUTHORITY) as found:
        yield found


@pytest.fixture
async def disabled(store_url: str) -> AsyncIterator[Replicas]:
    async with serving(store_url, None) as found:
        yield found


@asynccontextmanager
async def serving(store_url: str, authority: EnrollmentAuthority | None) -> AsyncIterator[Replicas]:
    registry, clock, client = CollectorRegistry(), Clock(), RedisClient(store_url)
    metrics = Metrics.declare(registry)
    servers, channels = [], []
    for _ in range(2):
        interceptor = ServiceInterceptor(
            METHODS, meter=RpcMeter(metrics, []), log=get_logger("test")
        )
        server = grpc.aio.server(interceptors=[interceptor])
        service = EnrollmentService(
            authority, ledger=RedisRoundStore(client), metrics=metrics, now_s=clock
        )
        add_EnrollmentServicer_to_server(service, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        servers.append(server)
        channels.append(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))
    stubs = [EnrollmentStub(channel) for channel in channels]
    yield Replicas(stubs=stubs, clock=clock, registry=registry, client=client)
    for channel in channels:
        await channel.close()
    for server in servers:
        await server.stop(grace=None)
    await client.close()


def token(request: pytest.FixtureRequest, device_id: str = "phone-1", *, ttl_s: int = 600) -> str:
    return issue_token(
        device_id, key=TOKEN_KEY, expires_at_s=NOW_S + ttl_s, nonce=nonce_of(request)
    )


def nonce_of(request: pytest.FixtureRequest) -> bytes:
    """A nonce of this test's own: the store is shared by all."""
    return hashlib.sha256(request.node.nodeid.encode()).digest()[:16]


def refusal(caught: pytest.ExceptionInfo[grpc.aio.AioRpcError]) -> tuple[grpc.StatusCode, str]:
    trailer = dict(caught.value.trailing_metadata())[ERROR_METADATA_KEY]
    detail = ErrorDetail.FromString(trailer if isinstance(trailer, bytes) else b"")
    assert detail.message
    return caught.value.code(), ErrorReason.Name(detail.reason)


async def test_a_device_gets_a_certificate(
    replicas: Replicas, request: pytest.FixtureRequest
) -> None:
    made = create_signing_request("phone-1")
    response = await replicas.enroll(token(request), made.csr_pem)
    certificate, root = x509.load_pem_x509_certificates(response.certificate_chain_pem)
    certificate.verify_directly_issued_by(root)
    assert device_id_of(response.certificate_chain_pem) == "phone-1"
    assert response.not_after_s == NOW_S + LIFETIME_S
    assert replicas.count("issued") == 1


async def test_a_retry_gets_the_same_certificate_from_any_replica(
    replicas: Replicas, request: pytest.FixtureRequest
) -> None:
    made = create_signing_request("phone-1")
    first = await replicas.enroll(token(request), made.csr_pem)
    replicas.clock.now_s += 60
    second = await replicas.enroll(token(request), made.csr_pem, replica=1)
    assert first == second
    assert read_chain(second.certificate_chain_pem).not_after_s == NOW_S + LIFETIME_S


async def test_a_token_enrolls_one_key(replicas: Replicas, request: pytest.FixtureRequest) -> None:
    await replicas.enroll(token(request), create_signing_request("phone-1").csr_pem)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await replicas.enroll(token(request), create_signing_request("phone-1").csr_pem, replica=1)
    assert refusal(caught) == (grpc.StatusCode.PERMISSION_DENIED, "ENROLLMENT_TOKEN_USED")
    assert replicas.count("enrollment_token_used") == 1


async def test_of_many_keys_at_once_one_wins(
    replicas: Replicas, request: pytest.FixtureRequest
) -> None:
    requests = [create_signing_request("phone-1").csr_pem for _ in range(8)]
    answers = await asyncio.gather(
        *(
            replicas.enroll(token(request), csr_pem, replica=index % 2)
            for index, csr_pem in enumerate(requests)
        ),
        return_exceptions=True,
    )
    assert sum(isinstance(answer, EnrollResponse) for answer in answers) == 1
    assert replicas.count("issued") == 1
    assert replicas.count("enrollment_token_used") == 7


async def test_an_expired_token_is_refused_and_forgotten_later(
    replicas: Replicas, request: pytest.FixtureRequest
) -> None:
    made = create_signing_request("phone-1")
    await replicas.enroll(token(request, ttl_s=600), made.csr_pem)
    grant_id = nonce_of(request).hex()
    ttl = await replicas.client.command("TTL", f"fedagg:enrolled:{grant_id}")
    # The memory of the token outlives the token, for clocks differ.
    assert isinstance(ttl, int)
    assert 600 < ttl <= 1_200
    replicas.clock.now_s += 600
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await replicas.enroll(token(request), made.csr_pem)
    assert refusal(caught) == (grpc.StatusCode.PERMISSION_DENIED, "ENROLLMENT_TOKEN_INVALID")


@pytest.mark.parametrize("forged", ["", "x", "A" * 600])
async def test_a_forged_token_is_refused(replicas: Replicas, forged: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await replicas.enroll(forged, b"never looked at")
    assert refusal(caught) == (grpc.StatusCode.PERMISSION_DENIED, "ENROLLMENT_TOKEN_INVALID")


async def test_a_bad_request_does_not_use_up_the_token(
    replicas: Replicas, request: pytest.FixtureRequest
) -> None:
    for csr_pem in (b"garbage", create_signing_request("phone-2").csr_pem):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await replicas.enroll(token(request), csr_pem)
        assert refusal(caught) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_CSR")
    await replicas.enroll(token(request), create_signing_request("phone-1").csr_pem)
    assert replicas.count("invalid_csr") == 2


async def test_a_server_without_authority_enrolls_nobody(
    disabled: Replicas, request: pytest.FixtureRequest
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await disabled.enroll(token(request), create_signing_request("phone-1").csr_pem)
    assert refusal(caught) == (grpc.StatusCode.PERMISSION_DENIED, "ENROLLMENT_DISABLED")


def test_no_key_is_shown() -> None:
    assert "PRIVATE" not in repr(AUTHORITY)
    assert repr(TOKEN_KEY) not in repr(AUTHORITY)
