"""A coordinator, its store and five share holders, each a process, on a temporary folder."""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np

from benchmarks.deployment import BenchTask, Deployment, OpenRound
from benchmarks.processes import ServerProcess, free_address, server_process
from benchmarks.secure.cpu import process_cpu_s
from benchmarks.secure.parties import CLIP_NORM, HOLDERS, THRESHOLD, device_id_of
from cli.holder.committee_files import (
    COMMITTEE_FILE,
    HOLDER_CONFIG,
    IDENTITIES,
    CommitteePlan,
    holder_name,
    write_committee,
)
from security.shared_round.keys.signing import DeviceSigner
from security.shared_round.terms.committee import Committee, load_committee
from security.shared_round.terms.parameters import RoundParameters
from security.shared_round.update.bundle import SealedUpdate
from server.config.durability import Durability
from server.storage.embedded import EmbeddedStore
from simulation.fleet.identities import identity_files
from updates.vectors import encode_model

HOLDER_TIMEOUT_S: Final = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedTask:
    """A task of the coordinator.

    Attributes:
        dim: elements of an update.
        goal: updates in every round, exactly.
        format: of shares; empty: updates are plain.
        checks: what is opened before the sum; empty for a plain task.
    """

    dim: int
    goal: int
    format: str = ""
    checks: str = ""

    @property
    def is_shared(self) -> bool:
        return bool(self.format)

    @property
    def bench_task(self) -> BenchTask:
        name = f"{self.format}-{self.checks}" if self.is_shared else "plain"
        return BenchTask(name=name, dim=self.dim, goal=self.goal)


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

    def since(self, before: Self) -> "Used":
        """Subtract an earlier reading."""
        return Used(
            coordinator_s=self.coordinator_s - before.coordinator_s,
            store_s=self.store_s - before.store_s,
            holders_s=tuple(
                now - then for now, then in zip(self.holders_s, before.holders_s, strict=True)
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Everything that runs, and what devices know."""

    deployed: Deployment
    holders: Sequence[ServerProcess]
    committee: Committee
    signers: Mapping[str, DeviceSigner]
    folder: Path

    def used(self) -> Used:
        """Read all counters."""
        return Used(
            coordinator_s=process_cpu_s(self.deployed.coordinator.pid),
            store_s=process_cpu_s(self.deployed.store_pid),
            holders_s=tuple(process_cpu_s(holder.pid) for holder in self.holders),
        )

    def parameters(self, opened: OpenRound) -> RoundParameters:
        """Parameters of a shared round that is open."""
        round_ = self.deployed.snapshot(opened.task).round
        if round_ is None or round_.shared is None:
            msg = f"round {opened.number} of task {opened.task} must be open and shared"
            raise RuntimeError(msg)
        return RoundParameters.from_bytes(round_.shared.params_bytes)

    def seal(self, params: RoundParameters, device_id: str, update: np.ndarray) -> SealedUpdate:
        """Share and seal an update, as a device does."""
        return SealedUpdate(
            params,
            self.committee,
            self.signers[device_id],
            update,
            device_id=device_id,
            model_version=params.base_version,
        )


@contextlib.contextmanager
def service(tasks: Sequence[ServedTask]) -> Iterator[Service]:
    """Run all of it for as long as the block."""
    devices = [device_id_of(number) for number in range(max(task.goal for task in tasks))]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedagg-secure-")))
        secure = folder / "committee"
        addresses = [free_address() for _ in range(HOLDERS)]
        plan = CommitteePlan(threshold=THRESHOLD, addresses=addresses)
        write_committee(plan, secure, devices)
        holders = [_holder(stack, secure / holder_name(n)) for n in range(1, HOLDERS + 1)]
        committee = secure / COMMITTEE_FILE
        deployed = _coordinator(stack, folder, tasks, committee=committee)
        yield Service(
            deployed=deployed,
            holders=holders,
            committee=load_committee(committee.read_bytes()),
            signers={device: _signer(secure / IDENTITIES, device) for device in devices},
            folder=folder,
        )


def _holder(stack: contextlib.ExitStack, folder: Path) -> ServerProcess:
    arguments = ("--config", str(folder / HOLDER_CONFIG), "--log-file", str(folder / "log"))
    return stack.enter_context(server_process("server.holder.process", arguments))


def _coordinator(
    stack: contextlib.ExitStack, folder: Path, tasks: Sequence[ServedTask], *, committee: Path
) -> Deployment:
    target, data_dir = free_address(), folder / "data"
    config = folder / "fedagg.toml"
    config.write_text(_config(folder, target, tasks, committee), encoding="utf-8")
    store = stack.enter_context(EmbeddedStore(data_dir / "store", durability=Durability.PROCESS))
    log = folder / "coordinator.log"
    arguments = ("--config", str(config), "--store-url", store.url, "--log-file", str(log))
    coordinator = stack.enter_context(server_process("server.worker", arguments))
    if store.pid is None:
        msg = "the embedded store ended"
        raise RuntimeError(msg)
    return Deployment(
        target=target,
        coordinator=coordinator,
        store_url=store.url,
        store_pid=store.pid,
        data_dir=data_dir,
    )


def _config(folder: Path, target: str, tasks: Sequence[ServedTask], committee: Path) -> str:
    blocks = [
        f'[listen]\ngrpc = "{target}"\nhttp = "127.0.0.1:0"\nmetrics = "127.0.0.1:0"',
        "[tls]\ninsecure = true",
        f'[store]\ndata-dir = "{folder / "data"}"',
        '[observability]\nlog-level = "warning"',
    ]
    for task in tasks:
        name = task.bench_task.name
        model = folder / f"{name}.safetensors"
        model.write_bytes(encode_model({"weights": np.zeros(task.dim, np.float32)}))
        blocks.append(
            f'[[task]]\nname = "{name}"\ninitial-model = "{model}"\nnum-rounds = 1000\n'
            f"reporting-goal = {task.goal}\nover-selection = 1.0\ncollection-timeout-s = 3600"
        )
        if task.is_shared:
            blocks.append(
                f'mode = "shared"\n[task.plan]\nclipping-norm = {CLIP_NORM}\n'
                f'[task.sharing]\ncommittee = "{committee}"\nformat = "{task.format}"\n'
                f'checks = "{task.checks}"\nholder-timeout-s = {HOLDER_TIMEOUT_S}'
            )
    return "\n".join(blocks) + "\n"


def _signer(identities: Path, device_id: str) -> DeviceSigner:
    files = identity_files(identities, device_id)
    return DeviceSigner.from_pem(files.certificate.read_bytes(), files.private_key.read_bytes())
