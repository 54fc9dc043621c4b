"""Who may call a holder over real TLS, and how large a call may be."""

import functools
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from protos.fedagg.v1 import share_holder_pb2 as pb
from protos.fedagg.v1.share_holder_pb2_grpc import ShareHolderStub
from protos.wire import MAX_HOLDER_MESSAGE_BYTES
from security.certificates.credentials import (
    Credentials,
    create_authority,
    issue_device_certificate,
    issue_server_certificate,
    private_key_pem,
)
from security.shared_round.terms.parameter_facts import ShareFormat
from server.config.holder_config import HolderConfig, HolderTlsConfig, PolicyConfig
from server.holder.gate import OPEN_METHODS, request_limits
from server.holder.rpc import METHODS
from tests.server.holder.conversation import Conversation
from tests.server.holder.rig import Bundle, Rig, reason_of, round_parameters

if TYPE_CHECKING:  # known to the stubs only
    from protos.fedagg.v1.share_holder_pb2_grpc import ShareHolderAsyncStub

COORDINATOR: Final = "coordinator-a"
NAMES: Final = ("anna", "berta", "carla")
GUARDED: Final = sorted({method.rpartition("/")[2] for method in METHODS} - OPEN_METHODS)
LIFE_S: Final = 3600.0


@functools.cache
def authority(name: str) -> Credentials:
    return create_authority(name=name, now_s=time.time(), valid_for_s=LIFE_S)


@functools.cache
def identity(name: str, issuer: str = "callers") -> Credentials:
    key = ec.generate_private_key(ec.SECP256R1())
    issued = issue_device_certificate(
        authority(issuer),
        device_id=name,
        key=key.public_key(),
        now_s=time.time(),
        valid_for_s=LIFE_S,
    )
    return Credentials(certificate_pem=issued.chain_pem, private_key_pem=private_key_pem(key))


class TlsRig(Rig):
    """Holders that ask for certificates; the rig itself calls as the coordinator."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, 2, 3)
        server = issue_server_certificate(
            authority("holders"), names=["127.0.0.1"], now_s=time.time(), valid_for_s=LIFE_S
        )
        (folder / "server.pem").write_bytes(server.certificate_pem)
        (folder / "server-key.pem").write_bytes(server.private_key_pem)
        (folder / "callers.pem").write_bytes(authority("callers").certificate_pem)
        self._channels: list[grpc.aio.Channel] = []

    def config(self, index: int) -> HolderConfig:
        tls = HolderTlsConfig(
            certificate=self.folder / "server.pem",
            private_key=self.folder / "server-key.pem",
            client_ca=self.folder / "callers.pem",
            coordinators=(COORDINATOR,),
        )
        return super().config(index).model_copy(update={"tls": tls})

    async def start(self, index: int) -> None:
        await super().start(index)
        self.stubs[index] = self.stub(identity(COORDINATOR), index)

    async def stop(self, index: int) -> None:
        await super().stop(index)
        while self._channels:
            await self._channels.pop().close()

    def stub(self, caller: Credentials | None, index: int = 1) -> "ShareHolderAsyncStub":
        return ShareHolderStub(self.channel(caller, index))

    def channel(self, caller: Credentials | None, index: int = 1) -> grpc.aio.Channel:
        credentials = grpc.ssl_channel_credentials(
            root_certificates=authority("holders").certificate_pem,
            private_key=None if caller is None else caller.private_key_pem,
            certificate_chain=None if caller is None else caller.certificate_pem,
        )
        channel = grpc.aio.secure_channel(self.servers[index].address, credentials)
        self._channels.append(channel)
        return channel


@pytest.fixture
async def tls_rig(tmp_path: Path) -> AsyncIterator[TlsRig]:
    async with TlsRig(tmp_path) as running:
        yield running


async def refusal_of(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value.code(), reason_of(error.value)


async def test_a_coordinator_runs_a_whole_round(tls_rig: TlsRig) -> None:
    params = round_parameters(tls_rig.committee)
    await tls_rig.open(params)
    bundles = [Bundle(params, tls_rig.committee, name) for name in NAMES]
    await tls_rig.store(bundles)
    talk = Conversation(tls_rig, params, bundles)
    await talk.run_to_commitments()
    opened = await talk.open_sum(talk.selection(), tls_rig.indices)
    assert opened.liars == ()
    await tls_rig.ask("Purge", pb.PurgeRequest(params_sha256=params.sha256))


@pytest.mark.parametrize("method", GUARDED)
async def test_a_device_may_not_call_what_only_coordinators_call(
    tls_rig: TlsRig, method: str
) -> None:
    request = getattr(pb, f"{method}Request")()
    call = getattr(tls_rig.stub(identity("anna")), method)(request)
    waited = anext(aiter(call)) if method in {"DealNoise", "ReleaseSum"} else call
    expected = (grpc.StatusCode.PERMISSION_DENIED, "DEVICE_ID_MISMATCH")
    assert await refusal_of(waited) == expected


async def test_a_device_hands_in_its_own_share_and_no_other(tls_rig: TlsRig) -> None:
    params = round_parameters(tls_rig.committee, format=ShareFormat.SHAMIR_SEEDED)
    await tls_rig.open(params)
    anna, berta = (Bundle(params, tls_rig.committee, name) for name in ("anna", "berta"))
    stub = tls_rig.stub(identity("anna"), 2)
    described = await stub.Describe(pb.DescribeRequest())
    assert described.holder == 2
    code, reason = await refusal_of(stub.StoreShare(iter(berta.stream(2))))
    assert (code, reason) == (grpc.StatusCode.PERMISSION_DENIED, "DEVICE_ID_MISMATCH")
    both = pb.StoreSharesRequest(shares=[anna.inline(2), berta.inline(2)])
    answer = await stub.StoreShares(both)
    assert [each.WhichOneof("outcome") for each in answer.outcomes] == ["receipt", "error"]
    receipt = await stub.StoreShare(iter(anna.stream(2)))
    assert receipt == answer.outcomes[0].receipt
    # Stored by the coordinator meanwhile: also its receipt is not for others.
    await tls_rig.store([berta], at=[2])
    assert await refusal_of(stub.StoreShare(iter(berta.stream(2)))) == (code, reason)


@pytest.mark.parametrize("caller", [None, identity(COORDINATOR, "strangers")])
async def test_a_certificate_of_nobody_or_a_stranger_opens_no_connection(
    tls_rig: TlsRig, caller: Credentials | None
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await tls_rig.stub(caller).Describe(pb.DescribeRequest())
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(("has_tls", "warnings"), [(False, 1), (True, 0)])
async def test_a_holder_that_believes_everyone_says_so_when_it_starts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, has_tls: bool, warnings: int
) -> None:
    rig = TlsRig(tmp_path) if has_tls else Rig(tmp_path, 2, 3)
    await rig.start(1)
    await rig.stop(1)
    told = [record.message for record in caplog.records]
    assert told.count("open_to_every_caller") == warnings


async def test_a_message_larger_than_its_method_needs_is_refused_unread(tmp_path: Path) -> None:
    rig = Rig(tmp_path, 2, 3, **{"max-members": 20, "max-wrap-tests": 16})
    async with rig:
        stub = rig.stubs[1]
        long = bytes(65 << 10)
        code = grpc.StatusCode.INVALID_ARGUMENT
        for call in (
            stub.Purge(pb.PurgeRequest(params_sha256=long)),
            stub.ListShares(pb.ListSharesRequest(params_sha256=long)),
            stub.OpenRound(pb.OpenRoundRequest(parameters=long)),
            stub.Freeze(pb.FreezeRequest(params_sha256=long + bytes(7 << 10))),
        ):
            assert await refusal_of(call) == (code, "MALFORMED_REQUEST")


async def test_a_message_larger_than_any_method_needs_does_not_arrive(tmp_path: Path) -> None:
    async with Rig(tmp_path, 2, 3, **{"max-members": 20}) as rig:
        request = pb.CommitRequest(params_sha256=bytes(3 << 20))
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await rig.stubs[1].Commit(request)
        assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_what_is_no_message_is_told(tmp_path: Path) -> None:
    rig = Rig(tmp_path, 2, 3)
    await rig.start(1)
    try:
        async with grpc.aio.insecure_channel(rig.servers[1].address) as channel:
            for method in METHODS:
                ask: Any = channel.unary_unary(method)
                expected = (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")
                assert await refusal_of(ask(b"\xff\xff")) == expected, method
    finally:
        await rig.stop(1)


def test_limits_follow_the_largest_round_of_the_policy() -> None:
    small = request_limits(PolicyConfig(max_members=20))
    large = request_limits(PolicyConfig())
    assert small["Freeze"] < 128 << 10 < large["Freeze"]
    assert small["Commit"] < 1 << 20
    assert large["Commit"] == MAX_HOLDER_MESSAGE_BYTES
    assert small["Purge"] == large["Purge"]
