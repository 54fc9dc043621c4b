"""One simulated device and the task it serves."""

from dataclasses import dataclass
from pathlib import Path

from simulation.attackers.attacks import SHARED_ATTACKS
from simulation.errors import ScenarioError
from simulation.fleet.scenarios import Scenario


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Where a device waits: in round `round`, before it trains, until the file `until` is there."""

    round: int
    until: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSpec:
    """One simulated device and the task it serves.

    Attributes:
        scenario: the population it belongs to.
        index: its position in the population, from 0; below `num_attackers` it is malicious.
        servers: addresses as in `client.ClientConfig`.
        task: name of the learning task.
        log_dir: existing directory of the event log; see `simulation.fleet.event_log`.
        data_dir: where the data set lies, as in `datasets.load`.
        max_rounds: stop after so many accepted updates; None: until the task is finished.
        root_ca: PEM file for TLS; None: plain text.
        certificate: PEM file of the device's certificate; None: it has none.
        private_key: PEM file of the certificate's key.
        committee: share holders of a shared task, JSON; None: the task is plain.
        identity_dir: folder with the certificates of all devices, as `simulation.fleet.identities`
            makes it; used where `certificate` is None.
        state_dir: folder for what compression left out, as in `client.ClientConfig`; the devices
            of a population may share it. None: kept in memory.
        hold: where it waits; None: nowhere.

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
    hold: Hold | None = None

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
    """Return the id of the device at a position in its population, from 0."""
    return f"device-{index:04d}"
