"""The simulated population that `fedagg demo` and `fedagg device` are asked for."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import typer
from click.core import ParameterSource

from server.config.contradictions import Contradiction
from simulation.attackers.attacks import ATTACKS, UNSCALED
from simulation.data import datasets
from simulation.errors import DatasetError
from simulation.fleet.scenarios import Scenario

DEFAULTS: Final = Scenario()
DATASET_HELP: Final = f"{', '.join(sorted(datasets.DATASETS))}."
ATTACK_HELP: Final = f"What malicious devices do: {', '.join(ATTACKS)}."


@dataclass(frozen=True, slots=True, kw_only=True)
class PopulationOptions:
    """The options that describe a population.

    Attributes:
        given: parameters that the command line names.
        devices: devices that the data are split over.
        devices_option: the option that says so.
        attackers: the first so many devices are malicious.
    """

    given: frozenset[str] = frozenset()
    dataset: str = DEFAULTS.dataset
    devices: int = DEFAULTS.num_devices
    devices_option: str = "devices"
    alpha: float = DEFAULTS.alpha
    seed: int = 0
    attack: str = DEFAULTS.attack
    attackers: int = 0
    attack_scale: float = DEFAULTS.attack_scale
    data_dir: Path | None = None

    @property
    def is_attacked(self) -> bool:
        """Whether malicious devices do anything but train."""
        return self.attack != DEFAULTS.attack

    def scenario(self, num_rounds: int = DEFAULTS.num_rounds) -> Scenario:
        """Return the population, on its task.

        Raises:
            ScenarioError: if an option is out of range.
        """
        return Scenario(
            dataset=self.dataset,
            num_devices=self.devices,
            alpha=self.alpha,
            seed=self.seed,
            num_attackers=self.attackers,
            attack=self.attack,
            attack_scale=self.attack_scale,
            num_rounds=num_rounds,
        )


def given(context: typer.Context) -> frozenset[str]:
    """Name the parameters that the command line sets."""
    return frozenset(
        name
        for name in context.params
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    )


def unless_one_of(value: str, known: Collection[str]) -> str:
    """List what is known where the value is not among it; empty where it is."""
    return "" if value in known else ", ".join(known)


def _missing_samples(options: PopulationOptions) -> str:
    """Tell what the data set lacks for so many devices, without a look whether it can be read."""
    try:
        samples = len(datasets.load(options.dataset, options.data_dir).y_train)
    except DatasetError:
        return ""
    least = DEFAULTS.min_samples if math.isfinite(options.alpha) else 1
    needed = options.devices * least
    return f"{needed} samples, and {options.dataset} has {samples}" if needed > samples else ""


def _few_samples(option: str) -> Contradiction[PopulationOptions]:
    return Contradiction(
        option,
        lambda o: o.devices_option == option and _missing_samples(o),
        "{0.devices} needs {1}",
    )


POPULATION: Final[tuple[Contradiction[PopulationOptions], ...]] = (
    Contradiction(
        "dataset",
        lambda o: unless_one_of(o.dataset, sorted(datasets.DATASETS)),
        "{0.dataset} is unknown; there are {1}",
    ),
    Contradiction(
        "data-dir",
        lambda o: o.data_dir is not None and o.dataset == "digits",
        "does nothing with --dataset digits, which comes with fedagg",
    ),
    Contradiction(
        "data-dir",
        lambda o: o.data_dir is not None and not o.data_dir.is_dir(),
        "{0.data_dir} is no folder",
    ),
    Contradiction(
        "alpha", lambda o: not o.alpha > 0, "{0.alpha:g} must be above 0; inf splits evenly"
    ),
    _few_samples("devices"),
    _few_samples("num-devices"),
    Contradiction(
        "attack",
        lambda o: unless_one_of(o.attack, tuple(ATTACKS)),
        "{0.attack} is unknown; there are {1}",
    ),
    Contradiction(
        "attackers",
        lambda o: o.attackers > 0 and not o.is_attacked,
        "{0.attackers} needs --attack: without one nobody is malicious",
    ),
    Contradiction(
        "attack",
        lambda o: o.is_attacked and o.attackers == 0,
        "{0.attack} needs --attackers of at least 1: nobody is malicious",
    ),
    Contradiction(
        "attackers",
        lambda o: o.is_attacked and o.attackers >= o.devices,
        "{0.attackers} must be below --{0.devices_option} {0.devices}: nobody would be honest",
    ),
    Contradiction(
        "attack-scale",
        lambda o: "attack_scale" in o.given and not o.is_attacked,
        "does nothing without --attack",
    ),
    Contradiction(
        "attack-scale",
        lambda o: "attack_scale" in o.given and o.attack in UNSCALED,
        "does nothing with --attack {0.attack}, which has no strength",
    ),
    Contradiction(
        "attack-scale",
        lambda o: not 0 < o.attack_scale < math.inf,
        "{0.attack_scale:g} must be finite and above 0",
    ),
)
