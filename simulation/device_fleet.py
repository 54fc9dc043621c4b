"""A fleet of simulated devices: which device serves which task, and how its processes run it.

This module is loaded before the processes fork, so nothing in it may import grpc.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from simulation.attacks import SHARED_ATTACKS
from simulation.errors import ScenarioError
from simulation.fleet import Fleet, FleetConfig
from simulation.models import build_model
from simulation.scenarios import Scenario, local_data


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSpec:
    """One simulated device and the task it serves.

    Attributes:
        scenario: the population it belongs to.
        index: its position in the population, from 0; below `num_attackers` it is malicious.
        servers: addresses as in `client.ClientConfig`.
        task: name of the learning task.
        log_dir: existing directory of the event log; see `simulation.event_log`.
        data_dir: where the data set lies, as in `datasets.load`.
        max_rounds: stop after so many accepted updates; None: until the task is finished.
        root_ca: PEM file for TLS; None: plain text.
        certificate: PEM file of the device's certificate; None: it has none.
        private_key: PEM file of the certificate's key.
        committee: share holders of a shared task, JSON; None: the task is plain.
        identity_dir: folder with the certificates of all devices, as `simulation.identities`
            makes it; used where `certificate` is None.
        state_dir: folder for what compression left out, as in `client.ClientConfig`; the devices
            of a population may share it. None: kept in memory.

    Raises:
        ScenarioError: if an attack on shares has no shares to attack, or the device has a
            committee and no certificate.
    """

    scenario: Scenario
    index: int
    servers: tuple[str, ...]
    task: str
    log_dir: Path
    data_dir: Path | None = None
    max_rounds: int | None = None
    root_ca: Path | None = None
    certificate: Path | None = None
    private_key: Path | None = None
    committee: Path | None = None
    identity_dir: Path | None = None
    state_dir: Path | None = None

    def __post_init__(self) -> None:
        attack = self.scenario.attack
        if attack in SHARED_ATTACKS and self.committee is None:
            message = f"attack={attack!r} is one on shares: it needs a committee"
            raise ScenarioError(message)
        if self.committee is not None and self.certificate is None and self.identity_dir is None:
            message = "a device with a committee signs: it needs a certificate or an identity_dir"
            raise ScenarioError(message)

    @property
    def device_id(self) -> str:
        """The id it checks in with, such as `device-0007`; unique within the population."""
        return device_id(self.index)

    @property
    def log_path(self) -> Path:
        """Its event log."""
        return self.log_dir / f"{self.device_id}.jsonl"


def device_id(index: int) -> str:
    """The id of the device at a position in its population, from 0."""
    return f"device-{index:04d}"


def device_fleet(
    specs: Sequence[DeviceSpec], config: FleetConfig | None = None
) -> Fleet[DeviceSpec]:
    """Make a fleet that runs the devices until their task is finished or the fleet is stopped."""
    return Fleet(specs, run_devices, prepare=load_shared, config=config)


def load_shared(specs: Sequence[DeviceSpec]) -> None:
    """Load what every process needs, once: torch, the data and its split, the loops of sharing.

    Raises:
        DatasetError: if the data set cannot be loaded.
        PartitionError: if it has too few samples for the population.
    """
    build_model(specs[0].scenario.dataset)
    if any(spec.committee is not None for spec in specs):
        # A compiler takes seconds to load; a fleet whose tasks are plain must not wait for it.
        from security.secret_sharing.warm_up import warm_up  # noqa: PLC0415

        warm_up()
    for scenario, data_dir in {(spec.scenario, spec.data_dir) for spec in specs}:
        local_data(scenario, 0, data_dir)


def run_devices(specs: Sequence[DeviceSpec]) -> None:
    """Run devices side by side in this process; what a fleet's processes do."""
    # The client brings grpc, which must not be loaded before the fork.
    from simulation.device import run_all  # noqa: PLC0415

    run_all(specs)
