"""What a demonstration runs: the population, the rule, and the server configuration it leads to."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aggregators.config import AggregatorConfig
from aggregators.errors import AggregationError
from aggregators.registry import RuleSpec, rule_spec
from cli.exit_codes import CliError, ExitCode
from simulation.scenarios import Scenario

TASK: Final = "demo"
NUM_COORDINATORS: Final = 2
MODEL_FILE: Final = "initial.safetensors"
DATA_DIR: Final = "server"

_MIN_CONTRIBUTIONS_SHARE: Final = 0.8
_COLLECTION_TIMEOUT_S: Final = 15.0
# Patience with the first round: on a slow machine the devices take a while to start.
_SELECTION_TIMEOUT_S: Final = 120.0
# Short, so that a killed leader is replaced while somebody watches.
_LEASE_TTL_S: Final = 2.0
_POLL_INTERVAL_S: Final = 0.2

TomlValue = str | float | int | bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSettings:
    """One demonstration.

    Attributes:
        scenario: devices, data, attack, training, rounds.
        aggregator: a rule, or steps and a rule, as `AggregatorConfig.rule`.
        kill_coordinator_at_round: when this round collects, the leading coordinator is killed;
            None: none is.

    Raises:
        CliError: if there is no such rule.
    """

    scenario: Scenario
    aggregator: str = "mean"
    kill_coordinator_at_round: int | None = None

    def __post_init__(self) -> None:
        try:
            needs = _spec(self.aggregator).traits.needs
        except AggregationError as error:
            msg = f"no aggregator {self.aggregator!r}: {error}"
            raise CliError(msg, exit_code=ExitCode.USAGE) from error
        if needs:
            msg = f"aggregator {self.aggregator!r} needs {', '.join(needs)}, which the demo lacks"
            raise CliError(msg, exit_code=ExitCode.USAGE)

    def as_json(self) -> dict[str, object]:
        """The settings as the report tells them."""
        scenario = self.scenario
        return {
            "dataset": scenario.dataset,
            "devices": scenario.num_devices,
            "rounds": scenario.num_rounds,
            "aggregator": self.aggregator,
            "attack": scenario.attack,
            "attackers": scenario.num_attackers,
            "attack_scale": scenario.attack_scale,
            "alpha": scenario.alpha if math.isfinite(scenario.alpha) else "inf",
            "seed": scenario.seed,
            "coordinators": NUM_COORDINATORS,
            "kill_coordinator_at_round": self.kill_coordinator_at_round,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoAddresses:
    """host:port of the three services."""

    grpc: str
    http: str
    metrics: str


def server_toml(settings: DemoSettings, addresses: DemoAddresses, folder: Path) -> str:
    """Write the coordinators' configuration.

    Args:
        settings: what is demonstrated.
        addresses: where the coordinators listen.
        folder: holds the initial model; the server's data goes into a folder in it.
    """
    sections: dict[str, Mapping[str, TomlValue]] = {
        "[listen]": {
            "grpc": addresses.grpc,
            "http": addresses.http,
            "metrics": addresses.metrics,
            "workers": NUM_COORDINATORS,
        },
        "[tls]": {"insecure": True},
        "[store]": {"data-dir": str(folder / DATA_DIR)},
        "[rounds]": {"lease-ttl-s": _LEASE_TTL_S, "poll-interval-s": _POLL_INTERVAL_S},
        "[[task]]": _task(settings, folder),
        "[task.plan]": {
            "local-epochs": settings.scenario.local_epochs,
            "batch-size": settings.scenario.batch_size,
            "learning-rate": settings.scenario.learning_rate,
        },
        "[task.aggregation]": _aggregation(settings),
    }
    return "\n".join(f"{header}\n{_keys(values)}" for header, values in sections.items())


def _task(settings: DemoSettings, folder: Path) -> Mapping[str, TomlValue]:
    num_devices = settings.scenario.num_devices
    return {
        "name": TASK,
        "initial-model": str(folder / MODEL_FILE),
        "num-rounds": settings.scenario.num_rounds,
        "reporting-goal": num_devices,
        "min-contributions": math.ceil(_MIN_CONTRIBUTIONS_SHARE * num_devices),
        "over-selection": 1.0,
        "selection-timeout-s": _SELECTION_TIMEOUT_S,
        "collection-timeout-s": _COLLECTION_TIMEOUT_S,
        "seed": settings.scenario.seed,
    }


def _aggregation(settings: DemoSettings) -> Mapping[str, TomlValue]:
    values: dict[str, TomlValue] = {"rule": settings.aggregator}
    if settings.aggregator != "mean":
        values["num-malicious-nodes"] = settings.scenario.num_attackers
    return values


def _spec(aggregator: str) -> RuleSpec:
    return rule_spec(AggregatorConfig(rule=aggregator))


def _keys(values: Mapping[str, TomlValue]) -> str:
    # JSON writes these as TOML does: basic strings, numbers, true and false.
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())
