"""One simulated device: a real client with a shard of a data set, honest or malicious."""

import asyncio
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from client import (
    Assignment,
    ClientConfig,
    ClientEvent,
    ClientHooks,
    EventKind,
    FedaggError,
    MobileClient,
    Outcome,
    Plan,
    RefusedError,
    RetryPolicy,
    RoundOutcome,
    SharingConfig,
    TlsFiles,
    Trainer,
    TrainingResult,
    Weights,
)
from simulation.attackers.attacks import SHARED_ATTACKS, Vector
from simulation.attackers.shared_attacks import AttackingSealer
from simulation.dense_trainer import DenseTrainer
from simulation.fleet.device_spec import DeviceSpec, Hold
from simulation.fleet.event_log import EventLog
from simulation.fleet.identities import identity_files
from simulation.fleet.scenarios import attack_generator, local_data, poisoned, trainer_seed

# A simulated device is mains-powered and in no hurry to save its radio: it looks again for a
# restarting server every second or two, and never gives up by itself.
_RETRY: Final = RetryPolicy(initial_s=0.1, max_s=2.0, max_attempts=1_000_000, total_s=86_400.0)
_HOLD_POLL_S: Final = 0.02


def run_all(specs: Sequence[DeviceSpec]) -> None:
    """Run devices side by side until their task is finished or SIGTERM arrives.

    Exits with status 1 if a server can never accept one of them.
    """
    if not all(asyncio.run(_run_until_terminated(specs))):
        sys.exit(1)


async def run_device(spec: DeviceSpec) -> bool:
    """Run one device until its task ends; cancelling it stops it in order.

    Returns:
        False if the server can never accept the device, or its files cannot be used; its log
        says why.

    Raises:
        DatasetError, PartitionError: if it has no data.
    """
    with EventLog(spec.log_path, spec.device_id) as log:
        recorder = _Recorder(log)
        try:
            async with MobileClient(
                _client_config(spec), _trainer(spec), hooks=_hooks(spec, recorder)
            ) as client:
                await client.run(spec.max_rounds)
        except asyncio.CancelledError:
            recorder.end("stopped")
            raise
        except FedaggError as error:
            log.write("failed", error=str(error))
            return False
        recorder.end("exhausted" if recorder.is_exhausted else "finished")
        return True


async def _run_until_terminated(specs: Sequence[DeviceSpec]) -> list[bool]:
    devices = asyncio.gather(*(run_device(spec) for spec in specs))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, devices.cancel)
    try:
        return await devices
    except asyncio.CancelledError:
        return []


def _client_config(spec: DeviceSpec) -> ClientConfig:
    certificate, private_key = _identity(spec)
    tls = sharing = None
    if spec.root_ca is not None:
        tls = TlsFiles(root_ca=spec.root_ca, certificate=certificate, private_key=private_key)
    if spec.committee is not None:
        sharing = SharingConfig(
            committee=spec.committee, certificate=certificate, private_key=private_key
        )
    return ClientConfig(
        servers=spec.servers,
        task=spec.task,
        device_id=spec.device_id,
        tls=tls,
        insecure=tls is None,
        retry=_RETRY,
        sharing=sharing,
        state_dir=spec.state_dir,
    )


def _identity(spec: DeviceSpec) -> tuple[Path | None, Path | None]:
    if spec.certificate is not None or spec.private_key is not None or spec.identity_dir is None:
        return spec.certificate, spec.private_key
    files = identity_files(spec.identity_dir, spec.device_id)
    return files.certificate, files.private_key


def _trainer(spec: DeviceSpec) -> Trainer:
    data = local_data(spec.scenario, spec.index, spec.data_dir)
    trainer = DenseTrainer(data.x, data.y, seed=trainer_seed(spec.scenario, spec.index))
    return trainer if spec.hold is None else _HeldTrainer(trainer, spec.hold)


class _HeldTrainer:
    """Trains when it may go on; a round that wants this device stays open meanwhile."""

    def __init__(self, trainer: Trainer, hold: Hold) -> None:
        self._trainer = trainer
        self._hold = hold

    def train(
        self, weights: Weights, plan: Plan, should_stop: Callable[[], bool]
    ) -> TrainingResult:
        if plan.round == self._hold.round:
            while not (self._hold.until.exists() or should_stop()):
                time.sleep(_HOLD_POLL_S)
        return self._trainer.train(weights, plan, should_stop)


def _hooks(spec: DeviceSpec, recorder: "_Recorder") -> ClientHooks:
    def transform(update: Vector, assignment: Assignment) -> Vector:
        return poisoned(spec.scenario, spec.index, assignment.round, update)

    scenario = spec.scenario
    is_attacker = scenario.is_attacker(spec.index)
    sealer = None
    if is_attacker and scenario.attack in SHARED_ATTACKS:
        sealer = AttackingSealer(
            _client_config(spec),
            attack=scenario.attack,
            scale=scenario.attack_scale,
            rng=attack_generator(scenario, spec.index, 0),
        )
    return ClientHooks(
        update_transform=transform if is_attacker else None,
        sealer=sealer,
        on_event=recorder.record,
    )


class _Recorder:
    """Turns the client's events into lines of the log, and adds the traffic up.

    Attributes:
        is_exhausted: whether the device was told that the task's privacy budget is.
    """

    def __init__(self, log: EventLog) -> None:
        self.is_exhausted = False
        self._log = log
        self._accepted = 0
        self._bytes_up = 0
        self._bytes_down = 0

    def record(self, event: ClientEvent) -> None:
        match event:
            case ClientEvent(kind=EventKind.ASSIGNED, assignment=Assignment() as assignment):
                self._log.write(
                    "checked_in", round=assignment.round, model_version=assignment.model_version
                )
            case ClientEvent(
                kind=EventKind.KEPT | EventKind.REUSED, assignment=Assignment() as assignment
            ):
                self._log.write(event.kind.value, round=assignment.round)
            case ClientEvent(kind=EventKind.SUBMITTING, assignment=Assignment() as assignment):
                self._log.write(
                    "submitting", round=assignment.round, submission_id=event.submission_id
                )
            case ClientEvent(kind=EventKind.ACCEPTED, receipt=receipt) if receipt is not None:
                self._accepted += 1
                self._log.write(
                    "acked",
                    round=receipt.round,
                    submission_id=receipt.submission_id,
                    digest=receipt.payload_digest.hex(),
                )
            case ClientEvent(kind=EventKind.ENDED, outcome=RoundOutcome() as outcome):
                self._bytes_up += outcome.bytes_up
                self._bytes_down += outcome.bytes_down
                self.is_exhausted = outcome.outcome is Outcome.BUDGET_EXHAUSTED
                if outcome.error is not None:
                    self._refused(outcome, outcome.error)

    def _refused(self, outcome: RoundOutcome, error: FedaggError) -> None:
        self._log.write(
            "refused",
            outcome=outcome.outcome.value,
            reason=error.reason.name if isinstance(error, RefusedError) else type(error).__name__,
            round=outcome.round,
            submission_id=outcome.submission_id,
            detail=outcome.detail,
        )

    def end(self, event: str) -> None:
        self._log.write(
            event,
            accepted=self._accepted,
            bytes_up=self._bytes_up,
            bytes_down=self._bytes_down,
        )
