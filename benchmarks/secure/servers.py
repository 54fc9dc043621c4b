"""Processor time of the servers for each upload, in shared rounds beside plain ones.

Every round goes end to end: devices upload to the coordinator, which relays each share to its
holder, lets the holders vote, check and commit, opens the sum and publishes a model. Coordinator,
store and five share holders are processes of their own, on a temporary folder.
"""

from __future__ import annotations  # FederationAsyncStub exists in the stubs only

import asyncio
import contextlib
import functools
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

import grpc
import xxhash

from benchmarks.harness.cases import Benchmark, Case
from benchmarks.harness.figures import Figures, Target, judged, median, rounded
from benchmarks.harness.processes import ServerProcess, free_address, process_cpu_s
from benchmarks.secure.parties import (
    CLIP_NORM,
    HOLDERS,
    THRESHOLD,
    Update,
    device_id_of,
    random_update,
)
from benchmarks.service import page_cache
from benchmarks.service.deployment import BenchTask, Deployment, OpenRound, deployment
from benchmarks.service.load import CHUNK_BYTES
from cli.holder.committee_files import (
    COMMITTEE_FILE,
    HOLDER_CONFIG,
    IDENTITIES,
    CommitteePlan,
    holder_name,
    write_committee,
)
from protos.fedagg.v1 import federation_pb2 as pb
from protos.fedagg.v1.federation_pb2_grpc import FederationStub
from security.shared_round.keys.signing import DeviceSigner
from security.shared_round.terms.committee import Committee, load_committee
from security.shared_round.terms.parameters import RoundParameters
from security.shared_round.update.bundle import SealedUpdate
from simulation.fleet.identities import identity_files
from updates.codec import encode_dense

if TYPE_CHECKING:
    from protos.fedagg.v1.federation_pb2_grpc import FederationAsyncStub

MILLION: Final = 1_000_000
LIMIT: Final = 10.0
"""Times a plain upload: of any server, and with shamir-seeded of all together."""
MAX_SLOWEST_AT_MILLION: Final = 1.5
MAX_ALL_AT_MILLION: Final = 6.0
HOLDER_TIMEOUT_S: Final = 120.0
INLINE_BYTES: Final = 64 << 10
"""Payloads up to this travel in one message, as the device SDK sends them."""

_DISTINCT: Final = 16  # updates; more would differ no more, and take memory
_IN_FLIGHT: Final = 4  # large payloads; each is made while it is sent
_SMALL_IN_FLIGHT: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundLoad:
    """Rounds of `uploads` updates of `dim` elements."""

    dim: int
    uploads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A format of shares, and what is opened before the sum."""

    share_format: str
    checks: str

    @property
    def name(self) -> str:
        """Name the variant's task."""
        return f"{self.share_format}-{self.checks}"


LOADS: Final = (
    RoundLoad(dim=1_000, uploads=500),
    RoundLoad(dim=100_000, uploads=60),
    RoundLoad(dim=MILLION, uploads=20),
    RoundLoad(dim=10 * MILLION, uploads=4),
)
VARIANTS: Final = tuple(
    Variant(share_format=share_format, checks=checks)
    for share_format in ("shamir-seeded", "cnf-seeded")
    for checks in ("sum", "norm")
)


class Payload(Protocol):
    """What is uploaded; pieces of it are made when they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> bytes: ...


Upload: TypeAlias = tuple[bytes, Payload]
"""Digest, and payload."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """Processor seconds: since the processes started, or between two readings.

    Attributes:
        coordinator_s: of the coordinator.
        store_s: of its store.
        holders_s: of each holder; their storage is in their own process.
    """

    coordinator_s: float
    store_s: float
    holders_s: tuple[float, ...]

    def since(self, before: Used) -> Used:
        """Subtract an earlier reading."""
        return Used(
            coordinator_s=self.coordinator_s - before.coordinator_s,
            store_s=self.store_s - before.store_s,
            holders_s=tuple(
                now - then for now, then in zip(self.holders_s, before.holders_s, strict=True)
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedService:
    """Everything that runs, and what devices know.

    Attributes:
        holders: of the committee, in its order.
        signers: by device.
        folder: of all files.
    """

    deployed: Deployment
    holders: Sequence[ServerProcess]
    committee: Committee
    signers: Mapping[str, DeviceSigner]
    folder: Path

    def used(self) -> Used:
        """Read all counters."""
        return Used(
            coordinator_s=process_cpu_s(self.deployed.coordinator),
            store_s=self.deployed.store_cpu_s(),
            holders_s=tuple(process_cpu_s(holder.pid) for holder in self.holders),
        )

    def parameters(self, opened: OpenRound) -> RoundParameters | None:
        """Read the parameters of a round that is open; None: it is a plain one."""
        round_ = self.deployed.snapshot(opened.task).round
        shared = round_.shared if round_ is not None else None
        return RoundParameters.from_bytes(shared.params_bytes) if shared is not None else None

    def upload(self, params: RoundParameters | None, device_id: str, update: Update) -> Upload:
        """Encode an update, or share and seal it, as a device does."""
        if params is None:
            data = encode_dense(update)
            return xxhash.xxh3_128_digest(data), data
        sealed = SealedUpdate(
            params,
            self.committee,
            self.signers[device_id],
            update,
            device_id=device_id,
            model_version=params.base_version,
        )
        return sealed.digest, sealed


def measure(rounds: int, *, load: RoundLoad) -> list[Figures]:
    """Give one row for each variant: the median of `rounds`, after one that does not count."""
    used: dict[str, list[Used]] = {"plain": [], **{variant.name: [] for variant in VARIANTS}}
    with service(load) as running:
        for number in range(rounds + 1):
            for task, found in used.items():
                spent = play(running, task, load)
                if number > 0:
                    found.append(spent)
    return [_row(load, variant, used[variant.name], used["plain"]) for variant in VARIANTS]


def play(running: SharedService, task: str, load: RoundLoad) -> Used:
    """Play one round from its first upload to its model; return what the servers used."""
    deployed = running.deployed
    published = deployed.snapshot(task).published_rounds
    opened = deployed.open_round(BenchTask(name=task, dim=load.dim, goal=load.uploads))
    devices = [device_id_of(number) for number in range(load.uploads)]
    params = running.parameters(opened)

    def upload_of(device: str) -> Upload:
        update = _update(load.dim, devices.index(device) % _DISTINCT)
        return running.upload(params, device, update)

    size = len(upload_of(devices[0])[1])
    page_cache.warm(running.folder, load.uploads * size * (1 if params is None else 2))
    before = running.used()
    asyncio.run(_upload_all(deployed.target, opened, devices, upload_of))
    deployed.wait_published(task, published + 1)
    used = running.used().since(before)
    deployed.discard_payloads()
    return used


@contextlib.contextmanager
def service(load: RoundLoad) -> Iterator[SharedService]:
    """Serve a plain task and one of each variant for as long as the block."""
    devices = [device_id_of(number) for number in range(load.uploads)]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedagg-secure-")))
        addresses = [free_address() for _ in range(HOLDERS)]
        write_committee(CommitteePlan(threshold=THRESHOLD, addresses=addresses), folder, devices)
        committee = folder / COMMITTEE_FILE
        holders = [
            stack.enter_context(_holder(folder / holder_name(number)))
            for number in range(1, HOLDERS + 1)
        ]
        tasks = [
            BenchTask(name="plain", dim=load.dim, goal=load.uploads),
            *(_shared_task(variant, load, committee) for variant in VARIANTS),
        ]
        yield SharedService(
            deployed=stack.enter_context(deployment(tasks)),
            holders=holders,
            committee=load_committee(committee.read_bytes()),
            signers={device: _signer(folder / IDENTITIES, device) for device in devices},
            folder=folder,
        )


def _holder(folder: Path) -> ServerProcess:
    arguments = ("--config", str(folder / HOLDER_CONFIG), "--log-format", "json")
    return ServerProcess("server.holder.process", arguments, ready="holder_started")


def _shared_task(variant: Variant, load: RoundLoad, committee: Path) -> BenchTask:
    return BenchTask(
        name=variant.name,
        dim=load.dim,
        goal=load.uploads,
        more=f"""mode = "shared"
[task.plan]
clipping-norm = {CLIP_NORM}
[task.sharing]
committee = "{committee}"
format = "{variant.share_format}"
checks = "{variant.checks}"
holder-timeout-s = {HOLDER_TIMEOUT_S}
""",
    )


def _signer(identities: Path, device_id: str) -> DeviceSigner:
    files = identity_files(identities, device_id)
    return DeviceSigner.from_pem(files.certificate.read_bytes(), files.private_key.read_bytes())


async def _upload_all(
    target: str,
    opened: OpenRound,
    devices: Sequence[str],
    upload_of: Callable[[str], Upload],
) -> None:
    waiting = iter(devices)
    async with grpc.aio.insecure_channel(target) as channel:
        stub: FederationAsyncStub = FederationStub(channel)

        async def work() -> None:
            for device in waiting:
                await _upload(stub, opened, device, *upload_of(device))

        # The first tells how large they are.
        first = upload_of(next(waiting))
        await _upload(stub, opened, devices[0], *first)
        workers = _SMALL_IN_FLIGHT if len(first[1]) <= INLINE_BYTES else _IN_FLIGHT
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(work())


async def _upload(
    stub: FederationAsyncStub, opened: OpenRound, device: str, digest: bytes, payload: Payload
) -> None:
    header = pb.UpdateHeader(
        task=opened.task,
        round=opened.number,
        device_id=device,
        submission_id=f"{opened.task}-{opened.number}-{device}",
        model_version=opened.base_version,
        num_samples=1,
        payload_bytes=len(payload),
        payload_digest=digest,
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


@functools.lru_cache(maxsize=_DISTINCT)
def _update(dim: int, seed: int) -> Update:
    return random_update(dim, seed=seed)


def _row(
    load: RoundLoad, variant: Variant, rounds: Sequence[Used], plain: Sequence[Used]
) -> Figures:
    per_ms = 1e3 / load.uploads
    plain_ms = per_ms * median([used.coordinator_s + used.store_s for used in plain])
    coordinator_ms = per_ms * median([used.coordinator_s + used.store_s for used in rounds])
    holder_ms = [
        per_ms * median([used.holders_s[index] for used in rounds]) for index in range(HOLDERS)
    ]
    all_ms = per_ms * median([sum(used.holders_s) for used in rounds])
    slowest, together = max(holder_ms) / plain_ms, all_ms / plain_ms
    return {
        "format": variant.share_format,
        "checks": variant.checks,
        "dim": load.dim,
        "uploads": load.uploads,
        "plain_ms": rounded(plain_ms),
        "holder_ms": " ".join(f"{value:.3g}" for value in holder_ms),
        "five_holders_ms": rounded(all_ms),
        "coordinator_ms": rounded(coordinator_ms),
        "slowest_ratio": rounded(slowest),
        "five_ratio": rounded(together),
        "coordinator_ratio": rounded(coordinator_ms / plain_ms),
        **judged(*_targets(load.dim, variant, slowest=slowest, together=together)),
    }


def _targets(dim: int, variant: Variant, *, slowest: float, together: float) -> list[Target]:
    is_strict = dim == MILLION and variant.share_format == "shamir-seeded"
    limit = MAX_SLOWEST_AT_MILLION if is_strict else LIMIT
    targets = [Target(name="slowest", figure=slowest, limit=limit, unit="x plain")]
    if variant.share_format == "shamir-seeded":
        limit = MAX_ALL_AT_MILLION if is_strict else LIMIT
        targets.append(Target(name="five", figure=together, limit=limit, unit="x plain"))
    return targets


BENCHMARK: Final = Benchmark(
    cases=[
        Case(
            name=f"{load.dim:,} elements",
            full=partial(measure, load=load),
            quick=None if number else partial(measure, load=RoundLoad(dim=load.dim, uploads=4)),
        )
        for number, load in enumerate(LOADS)
    ],
    repeats=3,
)
