"""Mutual TLS: from the operator's token to a round in which only certified devices take part."""

from __future__ import annotations  # FederationAsyncStub exists in the stubs only

import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import grpc
import pytest

from client import ClientConfig, ErrorReason, MobileClient, TlsFiles
from client.errors import AuthenticationError
from protos.fedagg.v1 import federation_pb2 as pb
from protos.fedagg.v1.enrollment_pb2 import EnrollRequest, EnrollResponse
from protos.fedagg.v1.enrollment_pb2_grpc import EnrollmentStub
from protos.fedagg.v1.federation_pb2_grpc import FederationStub
from security.certificates.credentials import (
    Credentials,
    create_authority,
    device_id_of,
    issue_server_certificate,
)
from security.certificates.enrollment import issue_token
from security.certificates.signing_request import SigningRequest, create_signing_request
from tests.integration.service import (
    CALL_TIMEOUT_S,
    TASK,
    WAIT_MS,
    Service,
    header,
    refusal_of,
    reserved_port,
    serving,
    status_of,
    unless_overtaken,
)
from tests.integration.trainers import Adding

if TYPE_CHECKING:
    from protos.fedagg.v1.federation_pb2_grpc import FederationAsyncStub

TOKEN_KEY: Final = "k" * 32
DAY_S: Final = 86_400
DENIED: Final = grpc.StatusCode.PERMISSION_DENIED


@dataclass(frozen=True)
class Installation:
    """A coordinator with an authority of its own, and what an operator holds."""

    service: Service
    authority: Credentials
    enrollment_address: str
    folder: Path

    def token(self, device: str) -> str:
        return issue_token(
            device,
            key=TOKEN_KEY.encode(),
            expires_at_s=int(time.time()) + 600,
            nonce=device.encode().ljust(16, b"."),
        )

    async def enroll(self, token: str, request: SigningRequest) -> EnrollResponse:
        credentials = grpc.ssl_channel_credentials(self.authority.certificate_pem)
        async with grpc.aio.secure_channel(self.enrollment_address, credentials) as channel:
            return await EnrollmentStub(channel).Enroll(
                EnrollRequest(token=token, csr_pem=request.csr_pem), timeout=CALL_TIMEOUT_S
            )

    async def enrolled(self, device: str) -> Credentials:
        request = create_signing_request(device)
        answer = await self.enroll(self.token(device), request)
        return Credentials(
            certificate_pem=answer.certificate_chain_pem, private_key_pem=request.private_key_pem
        )

    @asynccontextmanager
    async def calling(self, device: Credentials | None) -> AsyncIterator[FederationAsyncStub]:
        credentials = grpc.ssl_channel_credentials(
            self.authority.certificate_pem,
            device.private_key_pem if device else None,
            device.certificate_pem if device else None,
        )
        async with grpc.aio.secure_channel(self.service.address, credentials) as channel:
            yield FederationStub(channel)

    def files(self, device: Credentials) -> TlsFiles:
        """What the device keeps on its disk."""
        return TlsFiles(
            root_ca=write(self.folder / "device-ca.pem", self.authority.certificate_pem),
            certificate=write(self.folder / "device.pem", device.certificate_pem),
            private_key=write(self.folder / "device.key", device.private_key_pem),
        )


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@asynccontextmanager
async def installed(
    folder: Path, store_url: str, *, gateways: Sequence[str] = ()
) -> AsyncIterator[Installation]:
    """Create the authority and its files, and serve under TLS with enrollment."""
    now_s = time.time()
    authority = create_authority(name="tests", now_s=now_s, valid_for_s=DAY_S)
    server = issue_server_certificate(
        authority, names=["127.0.0.1"], now_s=now_s, valid_for_s=DAY_S
    )
    ca = str(write(folder / "ca.pem", authority.certificate_pem))
    with reserved_port() as port:
        enrollment_address = f"127.0.0.1:{port}"
        sections: dict[str, dict[str, object]] = {
            "listen": {"enrollment": enrollment_address},
            "tls": {
                "insecure": False,
                "certificate": str(write(folder / "server.pem", server.certificate_pem)),
                "private-key": str(write(folder / "server.key", server.private_key_pem)),
                "client-ca": ca,
                "gateways": list(gateways),
            },
            "enrollment": {
                "ca-certificate": ca,
                "ca-private-key": str(write(folder / "ca.key", authority.private_key_pem)),
                "token-key": TOKEN_KEY,
            },
        }
        task = {"reporting-goal": 1, "num-rounds": 1}
        async with serving(folder, store_url, task=task, sections=sections) as service:
            yield Installation(service, authority, enrollment_address, folder)


@pytest.fixture
async def installation(tmp_path: Path, redis_url: str) -> AsyncIterator[Installation]:
    async with installed(tmp_path, redis_url) as found:
        yield found


def offer(device: str, *, max_wait_ms: int = 0) -> pb.CheckInRequest:
    return pb.CheckInRequest(
        task=TASK,
        device_id=device,
        check_in_id="c1",
        max_wait_ms=max_wait_ms,
        state=pb.DeviceState(charging=True),
    )


async def test_an_enrolled_device_takes_part(installation: Installation) -> None:
    device = await installation.enrolled("phone-1")
    assert device_id_of(device.certificate_pem) == "phone-1"
    config = ClientConfig(
        servers=(installation.service.address,),
        task=TASK,
        device_id="phone-1",
        tls=installation.files(device),
    )
    async with MobileClient(config, Adding(1.0)) as client:
        assert await client.run() == 1
    record = await installation.service.finished(1)
    assert (record["decision"], record["accepted"]) == ("published", 1)


async def test_a_device_speaks_for_itself_only(installation: Installation) -> None:
    device = await installation.enrolled("phone-1")
    payload = installation.service.update()
    head = header("phone-2", payload)
    async with installation.calling(device) as stub:
        inline = pb.InlineUpdate(header=head, payload=payload)
        part = pb.SubmitUpdateRequest(header=head)
        status = pb.GetUploadStatusRequest(
            task=TASK,
            round=1,
            device_id="phone-2",
            submission_id="s1",
            payload_digest=head.payload_digest,
        )
        report = pb.ReportProgressRequest(task=TASK, round=1, device_id="phone-2")
        calls: list[Awaitable[object]] = [
            stub.CheckIn(offer("phone-2"), timeout=CALL_TIMEOUT_S),
            stub.SubmitInlineUpdate(inline, timeout=CALL_TIMEOUT_S),
            unless_overtaken(lambda: stub.SubmitUpdate(iter([part]), timeout=CALL_TIMEOUT_S)),
            stub.GetUploadStatus(status, timeout=CALL_TIMEOUT_S),
            stub.ReportProgress(report, timeout=CALL_TIMEOUT_S),
        ]
        for call in calls:
            refusal = await refusal_of(call)
            assert (refusal.code, refusal.reason) == (DENIED, "DEVICE_ID_MISMATCH"), call
        own = await stub.CheckIn(offer("phone-1"), timeout=CALL_TIMEOUT_S)
        assert own.WhichOneof("outcome")
    # The stranger's offer was not taken.
    assert installation.service.store.hkeys(f"fedagg:{{{TASK}}}:offers") in ([], [b"phone-1"])


async def test_the_client_tells_the_application_that_it_is_not_accepted(
    installation: Installation,
) -> None:
    device = await installation.enrolled("phone-1")
    config = ClientConfig(
        servers=(installation.service.address,),
        task=TASK,
        device_id="phone-2",
        tls=installation.files(device),
    )
    async with MobileClient(config, Adding(1.0)) as client:
        with pytest.raises(AuthenticationError) as caught:
            await client.run()
    assert caught.value.reason is ErrorReason.DEVICE_ID_MISMATCH


async def test_who_has_no_certificate_of_ours_is_not_spoken_to(
    installation: Installation,
) -> None:
    now_s = time.time()
    other = create_authority(name="tests", now_s=now_s, valid_for_s=DAY_S)
    server = issue_server_certificate(
        installation.authority, names=["phone-1"], now_s=now_s, valid_for_s=DAY_S
    )
    foreign = issue_server_certificate(other, names=["phone-1"], now_s=now_s, valid_for_s=DAY_S)
    for nobody in (None, foreign, server):
        async with installation.calling(nobody) as stub:
            status = await status_of(stub.CheckIn(offer("phone-1"), timeout=CALL_TIMEOUT_S))
            assert status is grpc.StatusCode.UNAVAILABLE
    plain = await status_of(installation.service.check_in("phone-1"))
    assert plain is grpc.StatusCode.UNAVAILABLE
    assert not installation.service.store.exists(f"fedagg:{{{TASK}}}:offers")


async def test_each_port_serves_what_it_is_for(installation: Installation) -> None:
    device = await installation.enrolled("phone-1")
    root = installation.authority.certificate_pem
    anyone = grpc.ssl_channel_credentials(root)
    async with grpc.aio.secure_channel(installation.enrollment_address, anyone) as channel:
        stub = FederationStub(channel)
        status = await status_of(stub.CheckIn(offer("phone-1"), timeout=CALL_TIMEOUT_S))
        assert status is grpc.StatusCode.UNIMPLEMENTED
    certified = grpc.ssl_channel_credentials(root, device.private_key_pem, device.certificate_pem)
    async with grpc.aio.secure_channel(installation.service.address, certified) as channel:
        call = EnrollmentStub(channel).Enroll(EnrollRequest(), timeout=CALL_TIMEOUT_S)
        assert await status_of(call) is grpc.StatusCode.UNIMPLEMENTED


async def test_a_token_enrolls_one_key_however_often_it_is_sent(
    installation: Installation,
) -> None:
    token, request = installation.token("phone-1"), create_signing_request("phone-1")
    first = await installation.enroll(token, request)
    assert await installation.enroll(token, request) == first
    refusal = await refusal_of(installation.enroll(token, create_signing_request("phone-1")))
    assert (refusal.code, refusal.reason) == (DENIED, "ENROLLMENT_TOKEN_USED")
    # The first key's certificate still counts.
    assert await installation.enroll(token, request) == first
    counted = await installation.service.metric("federated_enrollments_total", outcome="issued")
    assert counted == 3


async def test_a_server_without_authority_enrolls_nobody(service: Service) -> None:
    request = EnrollRequest(token="t", csr_pem=b"c")  # noqa: S106  # no secret
    refusal = await refusal_of(
        EnrollmentStub(service.channel).Enroll(request, timeout=CALL_TIMEOUT_S)
    )
    assert (refusal.code, refusal.reason) == (DENIED, "ENROLLMENT_DISABLED")


async def test_only_a_gateway_speaks_for_others(tmp_path: Path, redis_url: str) -> None:
    async with installed(tmp_path, redis_url, gateways=["gateway-1"]) as installation:
        gateway = await installation.enrolled("gateway-1")
        device = await installation.enrolled("phone-1")
        payload = installation.service.update()
        async with installation.calling(device) as stub:
            answer = await stub.CheckIn(
                offer("phone-1", max_wait_ms=WAIT_MS), timeout=CALL_TIMEOUT_S
            )
            assert answer.HasField("assignment")
        request = pb.SubmitUpdatesRequest(
            updates=[pb.InlineUpdate(header=header("phone-1", payload), payload=payload)]
        )
        stranger = await installation.enrolled("phone-2")
        for caller, accepted in ((stranger, False), (gateway, True), (device, True)):
            async with installation.calling(caller) as stub:
                call = stub.SubmitUpdates(iter([request]), timeout=CALL_TIMEOUT_S)
                (response,) = [answer async for answer in call]
                (outcome,) = response.outcomes
                assert outcome.HasField("receipt") is accepted
                if not accepted:
                    assert ErrorReason(outcome.error.reason) is ErrorReason.DEVICE_ID_MISMATCH
