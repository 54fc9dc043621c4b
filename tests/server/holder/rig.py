"""A committee of real holders in one event loop, and devices that seal real updates for it."""

import functools
import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import grpc
import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec

from protos.fedagg.v1 import errors_pb2
from protos.fedagg.v1 import share_holder_pb2 as pb
from protos.fedagg.v1 import shared_round_pb2 as shared_pb
from protos.fedagg.v1.share_holder_pb2_grpc import ShareHolderStub
from protos.wire import ERROR_METADATA_KEY
from security.certificates.credentials import (
    Credentials,
    create_authority,
    issue_device_certificate,
    private_key_pem,
)
from security.shared_round.keys.holder_keys import HolderSecrets
from security.shared_round.keys.signing import DeviceSigner, verify_statement
from security.shared_round.terms.committee import Committee, dump_committee
from security.shared_round.terms.parameter_facts import Checks
from security.shared_round.terms.parameters import RoundParameters, RoundPlan, plan_parameters
from security.shared_round.update.bundle import BundleIndex, SealedUpdate, parse_prefix
from server.config import HolderConfig, parse_holder_config
from server.holder.app import HolderServer, build_holder

if TYPE_CHECKING:  # known to the stubs only
    from protos.fedagg.v1.share_holder_pb2_grpc import ShareHolderAsyncStub

NOW_S = 1_800_000_000.0
DIM = 24


@functools.cache
def authority() -> Credentials:
    return create_authority(name="devices", now_s=NOW_S, valid_for_s=1e6)


@functools.cache
def signer(device_id: str, of: Credentials | None = None) -> DeviceSigner:
    key = ec.generate_private_key(ec.SECP256R1())
    certified = issue_device_certificate(
        of or authority(),
        device_id=device_id,
        key=key.public_key(),
        now_s=NOW_S,
        valid_for_s=1e5,
    )
    return DeviceSigner.from_pem(certified.chain_pem, private_key_pem(key))


@functools.cache
def members_of(threshold: int, holders: int) -> tuple[Committee, tuple[HolderSecrets, ...]]:
    """A committee and its secrets; the same in every test of a run."""
    draw = random.Random(threshold * 10 + holders).randbytes
    secrets = tuple(HolderSecrets.generate(draw) for _ in range(holders))
    identities = tuple(
        each.identity(index=index, name=f"holder {index}", address="")
        for index, each in enumerate(secrets, start=1)
    )
    return Committee(threshold=threshold, holders=identities), secrets


def round_parameters(committee: Committee, **changes: Any) -> RoundParameters:
    plan: dict[str, Any] = {
        "task": "digits",
        "round": 1,
        "base_version": 5,
        "model_sha256": "ab" * 32,
        "committee_sha256": committee.sha256,
        "threshold": committee.threshold,
        "holders": len(committee.holders),
        "dim": DIM,
        "clip_norm": 1.0,
        "min_members": 3,
        "max_members": 20,
        "checks": Checks.SUM,
        "sketch_dim": 64,
        "wrap_tests": 16,
    }
    return plan_parameters(RoundPlan(**(plan | changes)))


def update_of(device_id: str, dim: int = DIM) -> np.ndarray:
    values = np.random.default_rng(sum(device_id.encode())).normal(size=dim)
    return (0.5 * values / np.linalg.norm(values)).astype(np.float32)


class Bundle:
    """One device's sealed update, cut into what each holder gets."""

    def __init__(
        self,
        params: RoundParameters,
        committee: Committee,
        device_id: str,
        *,
        vector: np.ndarray | None = None,
        model_version: int | None = None,
    ) -> None:
        sealed = SealedUpdate(
            params,
            committee,
            signer(device_id),
            update_of(device_id, params.dim) if vector is None else vector,
            device_id=device_id,
            model_version=params.base_version if model_version is None else model_version,
        )
        self.device_id = device_id
        self.header_sha256 = sealed.header_sha256
        self._params = params
        self._data = sealed[:]
        self._prefix, prefix_bytes = parse_prefix(self._data)
        self._index = BundleIndex(params=params, prefix_bytes=prefix_bytes)

    @property
    def member(self) -> pb.Member:
        return pb.Member(device_id=self.device_id, header_sha256=self.header_sha256)

    def start(self, holder: int) -> pb.ShareStart:
        return pb.ShareStart(
            params_sha256=self._params.sha256,
            header=self._prefix.header,
            frame=self._prefix.frames[holder - 1],
            body_bytes=len(self.body(holder)),
        )

    def body(self, holder: int) -> bytes:
        return b"".join(self._data[at : at + length] for at, length in self._index.extents(holder))

    def inline(self, holder: int) -> pb.InlineShare:
        return pb.InlineShare(start=self.start(holder), body=self.body(holder))

    def stream(self, holder: int, piece_bytes: int = 1 << 20) -> list[pb.StoreShareRequest]:
        body = self.body(holder)
        return [
            pb.StoreShareRequest(start=self.start(holder)),
            *(
                pb.StoreShareRequest(data=body[at : at + piece_bytes])
                for at in range(0, len(body), piece_bytes)
            ),
        ]


class DealtNoise(Bundle):
    """One holder's sealed noise, cut into what each holder gets."""

    def __init__(self, params: RoundParameters, data: bytes) -> None:
        self._params = params
        self._data = data
        self._prefix, prefix_bytes = parse_prefix(data)
        self._index = BundleIndex(params=params, prefix_bytes=prefix_bytes)
        signed = self._prefix.header.header
        self.device_id = shared_pb.SharedHeader.FromString(signed).device_id
        self.header_sha256 = hashlib.sha256(signed).digest()


class Rig:
    """Holders of one committee over gRPC on loopback; each can be closed and built again."""

    def __init__(self, folder: Path, threshold: int, holders: int, **policy: Any) -> None:
        self.committee, self.secrets = members_of(threshold, holders)
        self.folder = folder
        self.policy: dict[str, Any] = {
            "min-members": 2,
            "min-group-size": 2,
            "min-wrap-tests": 16,
            "min-sketch-dim": 64,
        } | policy
        self.limits: dict[str, Any] = {}
        self.now_s = NOW_S
        self.servers: dict[int, HolderServer] = {}
        self.stubs: dict[int, ShareHolderAsyncStub] = {}
        self._stacks: dict[int, AsyncExitStack] = {}
        (folder / "committee.json").write_bytes(dump_committee(self.committee))
        (folder / "ca.pem").write_bytes(authority().certificate_pem)
        for index, secrets in enumerate(self.secrets, start=1):
            (folder / f"keys-{index}.json").write_bytes(secrets.to_json())

    async def __aenter__(self) -> Self:
        for index in self.indices:
            await self.start(index)
        await self.exchange_keys()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for index in list(self.servers):
            await self.stop(index)

    @property
    def indices(self) -> range:
        return range(1, len(self.secrets) + 1)

    def config(self, index: int) -> HolderConfig:
        return parse_holder_config(
            {
                "holder": {
                    "index": index,
                    "committee": str(self.folder / "committee.json"),
                    "keys": str(self.folder / f"keys-{index}.json"),
                    "device-ca": str(self.folder / "ca.pem"),
                    "data-dir": str(self.folder / f"data-{index}"),
                    "durability": "process",
                },
                "listen": {"grpc": "127.0.0.1:0"},
                "tls": {"insecure": True},
                "policy": self.policy,
                "limits": self.limits,
            },
            {},
        )

    async def start(self, index: int) -> None:
        server = build_holder(self.config(index), now_s=lambda: self.now_s)
        await server.start()
        channel = grpc.aio.insecure_channel(server.address)
        self.servers[index] = server
        self._stacks[index] = AsyncExitStack()
        self._stacks[index].push_async_callback(server.stop, 0)
        self._stacks[index].push_async_callback(channel.close)
        self.stubs[index] = ShareHolderStub(channel)

    async def stop(self, index: int) -> None:
        await self._stacks.pop(index).aclose()
        del self.servers[index], self.stubs[index]

    async def restart(self, index: int) -> None:
        """Close the holder and open its folder again: what it had in memory is gone."""
        await self.stop(index)
        await self.start(index)

    async def exchange_keys(self) -> None:
        keys: list[pb.SealedKey] = []
        for index in self.indices:
            dealt = await self.stubs[index].DealKeys(pb.DealKeysRequest())
            keys += dealt.keys
        for index in self.indices:
            answer = await self.stubs[index].AcceptKeys(pb.AcceptKeysRequest(keys=keys))
            assert answer.has_keys

    async def open(self, params: RoundParameters) -> None:
        request = pb.OpenRoundRequest(parameters=params.to_bytes())
        for stub in self.stubs.values():
            answer = await stub.OpenRound(request)
            assert answer.params_sha256 == params.sha256

    async def deal(self, params: RoundParameters, index: int) -> DealtNoise:
        """A holder's noise for a round."""
        request = pb.DealNoiseRequest(params_sha256=params.sha256)
        chunks = [chunk async for chunk in self.stubs[index].DealNoise(request)]
        data = b"".join(chunk.data for chunk in chunks)
        assert {chunk.total_bytes for chunk in chunks} == {len(data)}
        return DealtNoise(params, data)

    async def store(self, bundles: Sequence[Bundle], at: Iterable[int] | None = None) -> None:
        for index in at or self.indices:
            answer = await self.stubs[index].StoreShares(
                pb.StoreSharesRequest(shares=[bundle.inline(index) for bundle in bundles])
            )
            for outcome in answer.outcomes:
                assert outcome.WhichOneof("outcome") == "receipt", outcome.error

    async def ask(
        self, method: str, request: Any, at: Iterable[int] | None = None
    ) -> list[shared_pb.SignedStatement]:
        """The same question to several holders."""
        return [await getattr(self.stubs[index], method)(request) for index in at or self.indices]

    async def release(
        self, request: pb.ReleaseSumRequest, index: int
    ) -> tuple[shared_pb.SignedStatement, bytes]:
        chunks = [chunk async for chunk in self.stubs[index].ReleaseSum(request)]
        assert chunks[0].WhichOneof("part") == "statement"
        return chunks[0].statement, b"".join(chunk.data for chunk in chunks[1:])

    def read(
        self, params: RoundParameters, signed: shared_pb.SignedStatement
    ) -> shared_pb.HolderStatement:
        return verify_statement(signed, committee=self.committee, params_sha256=params.sha256)


def reason_of(error: grpc.aio.AioRpcError) -> str:
    metadata = dict(error.trailing_metadata() or ())
    detail = errors_pb2.ErrorDetail.FromString(metadata[ERROR_METADATA_KEY])
    return errors_pb2.ErrorReason.Name(detail.reason)


def expected_sum(
    params: RoundParameters, vectors: Mapping[str, np.ndarray], weights: Mapping[str, int]
) -> np.ndarray:
    """The sum of the encoded updates, by the definition of the encoding."""
    scale = 2.0**params.fraction_bits
    total = np.zeros(params.dim, dtype=np.int64)
    for name, vector in vectors.items():
        encoded = np.rint(vector.astype(np.float64) * scale).astype(np.int64)
        total += weights.get(name, 1) * encoded
    return total
