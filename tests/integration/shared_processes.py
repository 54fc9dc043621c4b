"""Share holders, coordinators and a store as processes that can be killed; devices by hand."""

from __future__ import annotations  # FederationAsyncStub exists in the stubs only

import asyncio
import contextlib
import json
import os
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import grpc
import numpy as np

from cli.holder.committee_files import HOLDER_CONFIG, CommitteePlan
from cli.holder.local_committee import LocalCommittee
from cli.serve.service import server_template
from protos.fedagg.v1 import federation_pb2 as pb
from protos.fedagg.v1.federation_pb2_grpc import FederationStub
from security.shared_round.keys.signing import DeviceSigner
from security.shared_round.terms.committee import Committee, load_committee
from security.shared_round.terms.parameters import RoundParameters
from security.shared_round.update.bundle import SealedUpdate
from server.config.durability import Durability
from server.processes.child_process import ProcessSpec, tied_to_parent
from server.round.blob_names import model_blob
from server.round.ports import FinishedRound
from server.storage.embedded import EmbeddedStore
from server.storage.redis_client import RedisClient
from server.storage.redis_store import RedisRoundStore
from simulation.fleet.identities import identity_files
from tests.integration.processes import Worker
from tests.integration.service import eventually, header, reserved_port
from tests.integration.shared_committee import Vector, update_of
from updates.vectors import decode_model, encode_model

if TYPE_CHECKING:
    from protos.fedagg.v1.federation_pb2_grpc import FederationAsyncStub

THRESHOLD: Final = 3
HOLDERS: Final = range(1, 6)
DEVICES: Final = tuple(f"d{number}" for number in range(8))
DIM: Final = 40
CALL_S: Final = 20.0

# A connection to a process that was killed must not be taken for one to its successor.
_OWN_CONNECTION: Final = (("grpc.use_local_subchannel_pool", 1),)

_SERVER: Final = """
[tls]
insecure = true
[listen]
http = "127.0.0.1:0"
metrics = "127.0.0.1:0"
[store]
data-dir = {data_dir}
[rounds]
lease-ttl-s = 0.5
poll-interval-s = 0.02
check-in-ttl-s = 60.0
"""
_TASK: Final = """
[[task]]
name = "{name}"
mode = "shared"
initial-model = {model}
num-rounds = 100
reporting-goal = 8
over-selection = 1.0
collection-timeout-s = 60.0
plan.clipping-norm = 1.0
[task.sharing]
committee = {committee}
sketch-dim = 64
min-members = 2
holder-timeout-s = 0.5
max-wait-s = {max_wait_s}
quorum = {quorum}
checks = "{checks}"
degraded = "{degraded}"
{more}
"""
_POLICY: Final = """
min-sketch-dim = 64
assume-honest-holders = true
degraded = ["wait", "abort", "grouped", "unchecked"]
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSettings:
    """What tasks differ in."""

    quorum: int = 0
    checks: str = "sum"
    degraded: str = "wait"
    max_wait_s: float = 30.0
    more: str = ""  # further settings, as TOML


@dataclass
class HolderProcess:
    """One share holder on a port and a folder that stay its own."""

    index: int
    committee: LocalCommittee
    database: Path
    process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start the process and wait until it serves."""
        spec = self.committee.specs[self.index - 1]
        self.process = _spawn(spec)
        assert spec.ready is not None
        async with asyncio.timeout(CALL_S):
            await spec.ready()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def stated(self, kind: str, params_sha256: bytes) -> int:
        """How many statements of a kind, or "receipt"s, it made in a round, from its own files."""
        table = "shares" if kind == "receipt" else "statements"
        question = f"SELECT COUNT(*) FROM {table} WHERE params_sha256 = ?"  # noqa: S608
        values: list[object] = [params_sha256]
        if kind != "receipt":
            question += " AND kind = ?"
            values.append(kind)
        with contextlib.closing(sqlite3.connect(self.database, timeout=5.0)) as sql:
            found: tuple[int] = sql.execute(question, values).fetchone()
        return found[0]


@dataclass
class SharedCluster:
    """Five holders, two coordinators and their store."""

    folder: Path
    committee: Committee
    identities: Path
    holders: Mapping[int, HolderProcess]
    workers: Sequence[Worker]
    connection: RedisClient
    _check_ins: int = 0
    _signers: dict[str, DeviceSigner] = field(default_factory=dict)

    @property
    def store(self) -> RedisRoundStore:
        return RedisRoundStore(self.connection)

    async def mend(self) -> None:
        """Start everything that does not run."""
        await asyncio.gather(
            *(each.start() for each in self.holders.values() if each.process is None),
            *(worker.start() for worker in self.workers if worker.process is None),
        )

    async def open(self, task: str) -> RoundParameters:
        """Let all devices be chosen for a round."""
        self._check_ins += 1
        async with self._stub() as stub:
            answers = await asyncio.gather(*(self._check_in(stub, task, one) for one in DEVICES))
        (told,) = {answer.assignment.shared_parameters for answer in answers}
        return RoundParameters.from_bytes(told)

    async def submit(
        self, params: RoundParameters, devices: Iterable[str], *, avoid: Worker | None = None
    ) -> None:
        """Seal and upload updates; each has its receipt when this returns.

        Args:
            params: the round.
            devices: whose updates.
            avoid: the worker that they are not sent to.
        """
        async with self._stub(avoid) as stub:
            for device in devices:
                bundle = self._sealed(params, device)
                facts = header(
                    device,
                    bundle,
                    round_number=params.round,
                    model_version=params.base_version,
                    task=params.task,
                )
                request = pb.InlineUpdate(header=facts, payload=bundle)
                await stub.SubmitInlineUpdate(request, timeout=CALL_S)

    async def relayed(self, params: RoundParameters, count: int) -> None:
        """Wait until every holder has so many shares."""

        async def done() -> bool | None:
            found = [each.stated("receipt", params.sha256) for each in self.holders.values()]
            return True if min(found) >= count else None

        await eventually(done)

    async def stated(self, holder: int, kind: str, params: RoundParameters) -> None:
        """Wait until a holder has made a statement of this kind; it is durable then."""

        async def done() -> bool | None:
            return True if self.holders[holder].stated(kind, params.sha256) else None

        await eventually(done, pause_s=0.001)

    async def finished(self, params: RoundParameters) -> FinishedRound:
        async def done() -> FinishedRound | None:
            records = await self.store.finished_rounds(params.task, limit=200)
            return next((each for each in records if each.number == params.round), None)

        return await eventually(done)

    async def leader(self, task: str) -> Worker:
        """The worker that leads a task."""
        lease = await self.connection.command("HGET", f"fedagg:{{{task}}}:lease", "owner")
        assert isinstance(lease, bytes)
        pid = int(lease.decode().split(":")[1])
        return next(each for each in self.workers if each.process is not None and each.pid == pid)

    async def step(self, task: str, record: FinishedRound) -> Vector:
        """What a published round changed."""
        assert record.model_version is not None, record
        before = await self._weights(task, record.base_version)
        change: Vector = await self._weights(task, record.model_version) - before
        return change

    async def _weights(self, task: str, version: int) -> Vector:
        model = await self.store.model(task, version)
        path = self.folder / "data" / "blobs" / model_blob(task, model.round_number, model.sha256)
        weights: Vector = decode_model(path.read_bytes())[0]["w"]
        return weights

    async def _check_in(
        self, stub: FederationAsyncStub, task: str, device: str
    ) -> pb.CheckInResponse:
        request = pb.CheckInRequest(
            task=task,
            device_id=device,
            check_in_id=f"c{self._check_ins}",
            max_wait_ms=int(CALL_S * 1000),
            state=pb.DeviceState(charging=True),
        )
        return await stub.CheckIn(request, timeout=CALL_S)

    def _sealed(self, params: RoundParameters, device: str) -> bytes:
        if device not in self._signers:
            files = identity_files(self.identities, device)
            self._signers[device] = DeviceSigner.from_pem(
                files.certificate.read_bytes(), files.private_key.read_bytes()
            )
        update = SealedUpdate(
            params,
            self.committee,
            self._signers[device],
            update_of(device, DIM),
            device_id=device,
            model_version=params.base_version,
        )
        return update[:]

    @asynccontextmanager
    async def _stub(self, avoid: Worker | None = None) -> AsyncIterator[FederationAsyncStub]:
        worker = next(each for each in self.workers if each is not avoid)
        async with grpc.aio.insecure_channel(worker.address, options=_OWN_CONNECTION) as channel:
            yield FederationStub(channel)


@asynccontextmanager
async def shared_cluster(
    folder: Path, tasks: Mapping[str, TaskSettings]
) -> AsyncIterator[SharedCluster]:
    """All processes, serving; all of them are gone at the end."""
    model = folder / "model.safetensors"
    model.write_bytes(encode_model({"w": np.zeros(DIM, dtype=np.float32)}))
    with contextlib.ExitStack() as stack:
        # The workers share their ports, as SO_REUSEPORT allows; a holder will not.
        ports = [stack.enter_context(reserved_port()) for _ in range(2)]
        with contextlib.ExitStack() as free:
            addresses = [f"127.0.0.1:{free.enter_context(reserved_port())}" for _ in HOLDERS]
        plan = CommitteePlan(threshold=THRESHOLD, addresses=addresses)
        committee = stack.enter_context(
            # Each is executed instead: a test kills them one by one.
            LocalCommittee(
                plan, folder / "committee", DEVICES, template=server_template({}), log_dir=folder
            )
        )
        for index in HOLDERS:
            with (folder / "committee" / f"holder-{index}" / HOLDER_CONFIG).open("a") as config:
                config.write(_POLICY)
        _write_config(folder, model, committee, tasks)
        store = stack.enter_context(EmbeddedStore(folder / "store", durability=Durability.PROCESS))
        connection = RedisClient(store.url)
        running = SharedCluster(
            folder=folder,
            committee=load_committee(committee.committee_path.read_bytes()),
            identities=committee.identities_dir,
            holders={index: _holder(index, folder, committee) for index in HOLDERS},
            workers=[
                Worker(index=i, folder=folder, store_url=store.url, port=port)
                for i, port in enumerate(ports)
            ],
            connection=connection,
        )
        try:
            await running.mend()
            yield running
        finally:
            for worker in running.workers:
                worker.kill()
            for holder in running.holders.values():
                holder.kill()
            await connection.close()


def _spawn(spec: ProcessSpec) -> subprocess.Popen[bytes]:
    environment = {**os.environ, **spec.environment}
    return subprocess.Popen(tied_to_parent(spec.command), env=environment, pass_fds=spec.pass_fds)


def _holder(index: int, folder: Path, committee: LocalCommittee) -> HolderProcess:
    data = folder / "committee" / f"holder-{index}" / "data"
    return HolderProcess(index=index, committee=committee, database=data / "holder.sqlite3")


def _write_config(
    folder: Path, model: Path, committee: LocalCommittee, tasks: Mapping[str, TaskSettings]
) -> None:
    text = _SERVER.format(data_dir=json.dumps(str(folder / "data")))
    for name, settings in tasks.items():
        text += _TASK.format(
            name=name,
            model=json.dumps(str(model)),
            committee=json.dumps(str(committee.committee_path)),
            max_wait_s=settings.max_wait_s,
            quorum=settings.quorum,
            checks=settings.checks,
            degraded=settings.degraded,
            more=settings.more,
        )
    (folder / "server.toml").write_text(text, encoding="utf-8")
