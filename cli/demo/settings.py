"""What a demonstration runs: the population, the rule, and the server configuration it leads to."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from aggregators.registry import traits_of
from cli.demo.terms import CompressionTerms, ToldPrivacy, TomlValue
from simulation.fleet.scenarios import Scenario

TASK: Final = "demo"
NUM_COORDINATORS: Final = 2
MODEL_FILE: Final = "initial.safetensors"
PLAIN: Final = "plain"
SHARED: Final = "shared"
DATA_DIR: Final = "server"

_MIN_CONTRIBUTIONS_SHARE: Final = 0.8
_COLLECTION_TIMEOUT_S: Final = 15.0
# Every device comes, however slow the machine: one that dies ends the demonstration.
_SELECTION_TIMEOUT_S: Final = 86_400.0
# Short, so that a killed leader is replaced while somebody watches.
_LEASE_TTL_S: Final = 2.0
_POLL_INTERVAL_S: Final = 0.2

# Of the shared mode. In units of 2^-19 a norm of 2 is what the wrap-around test bears.
_SHARED_CLIPPING_NORM: Final = 2.0
_SHARED_FRACTION_BITS: Final = 19
_HOLDER_TIMEOUT_S: Final = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedSettings:
    """The share holders of a demonstration in shared mode.

    Attributes:
        holders: n, 2 to 7.
        threshold: t, shares that open a sum; 2 to `holders`.
        group_size: updates in each sum that is opened; 0: one sum of all selected.
    """

    holders: int = 5
    threshold: int = 3
    group_size: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSettings:
    """One demonstration.

    Attributes:
        scenario: devices, data, attack, training, rounds.
        aggregator: a rule, or steps and a rule, as `AggregatorConfig.rule`.
        kill_coordinator_at_round: when this round collects, the leading coordinator is killed;
            None: none is.
        shared: the share holders; None: plain mode.
        compression: how updates are compressed.
        privacy: the privacy budget; None: none, and no noise.
        needed_updates: fewest single updates that the aggregator can work with.
    """

    scenario: Scenario
    aggregator: str = "mean"
    kill_coordinator_at_round: int | None = None
    shared: SharedSettings | None = None
    compression: CompressionTerms = field(default_factory=CompressionTerms)
    privacy: ToldPrivacy | None = None
    needed_updates: int = 1

    @property
    def is_usual(self) -> bool:
        """Whether rounds are plain averages, with which nothing can be wrong."""
        is_plain = self.shared is None and self.privacy is None and self.compression.is_dense
        return is_plain and self.aggregator == "mean"

    @property
    def mode(self) -> str:
        """`PLAIN` or `SHARED`."""
        return PLAIN if self.shared is None else SHARED

    def as_json(self) -> dict[str, object]:
        """Return the settings as the report tells them."""
        scenario = self.scenario
        return {
            "mode": self.mode,
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
            **(asdict(self.shared) if self.shared is not None else {}),
            "compression": self.compression.method,
            "compression_ratio": None if self.compression.is_dense else self.compression.ratio,
            "value_type": self.compression.value_type,
            "privacy": None if self.privacy is None else asdict(self.privacy),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoAddresses:
    """host:port of the three services."""

    grpc: str
    http: str
    metrics: str


def server_toml(
    settings: DemoSettings,
    addresses: DemoAddresses,
    folder: Path,
    *,
    committee: Path | None = None,
) -> str:
    """Write the coordinators' configuration.

    Args:
        settings: what is demonstrated.
        addresses: where the coordinators listen.
        folder: holds the initial model; the server's data goes into a folder in it.
        committee: file that names the share holders; None in plain mode.
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
        "[task.plan]": _plan(settings),
        "[task.aggregation]": _aggregation(settings),
    }
    if settings.shared is not None:
        sections["[task.sharing]"] = _sharing(settings, settings.shared, committee)
    if not settings.compression.is_dense:
        sections["[task.compression]"] = settings.compression.section()
    if settings.privacy is not None:
        is_shared = settings.shared is not None
        sections["[task.privacy]"] = settings.privacy.section(is_shared=is_shared)
    return "\n".join(f"{header}\n{_keys(values)}" for header, values in sections.items())


def _task(settings: DemoSettings, folder: Path) -> Mapping[str, TomlValue]:
    num_devices = settings.scenario.num_devices
    return {
        "name": TASK,
        "initial-model": str(folder / MODEL_FILE),
        "mode": settings.mode,
        "num-rounds": settings.scenario.num_rounds,
        "reporting-goal": num_devices,
        "min-contributions": min_contributions(settings),
        "over-selection": 1.0,
        "selection-timeout-s": _SELECTION_TIMEOUT_S,
        "collection-timeout-s": _COLLECTION_TIMEOUT_S,
        "seed": settings.scenario.seed,
    }


def min_contributions(settings: DemoSettings) -> int:
    """Count updates without which a round is abandoned."""
    share = math.ceil(_MIN_CONTRIBUTIONS_SHARE * settings.scenario.num_devices)
    return max(share, settings.needed_updates)


def num_malicious(settings: DemoSettings) -> int:
    """Count attackers that the rule is told to withstand."""
    attackers = settings.scenario.num_attackers
    if settings.aggregator == "mean":
        return 0
    if settings.shared is None or not settings.shared.group_size:
        return attackers
    # Each attacker spoils a group; a rule on group means bears fewer than half of them.
    num_groups = min_contributions(settings) // settings.shared.group_size
    return min(attackers, max(0, (num_groups - 1) // 2))


def min_members(settings: DemoSettings) -> int:
    """Return the fewest updates that are opened together in shared mode."""
    group_size = settings.shared.group_size if settings.shared is not None else 0
    return max(2, min(group_size or min_contributions(settings), _most_selected(settings)))


def _most_selected(settings: DemoSettings) -> int:
    """Count updates that a rule by distances leaves of the fewest that come in."""
    return min_contributions(settings) - settings.scenario.num_attackers


def _plan(settings: DemoSettings) -> Mapping[str, TomlValue]:
    values: dict[str, TomlValue] = {
        "local-epochs": settings.scenario.local_epochs,
        "batch-size": settings.scenario.batch_size,
        "learning-rate": settings.scenario.learning_rate,
    }
    if settings.shared is not None:
        values["clipping-norm"] = _SHARED_CLIPPING_NORM
    if settings.privacy is not None:
        values["clipping-norm"] = settings.privacy.clipping_norm
    return values


def _sharing(
    settings: DemoSettings, shared: SharedSettings, committee: Path | None
) -> Mapping[str, TomlValue]:
    picks = traits_of(settings.aggregator).picks_by_distances and not shared.group_size
    return {
        "committee": str(committee),
        # One vector for each update instead of three, where bytes are what matters.
        "format": "shamir-seeded" if settings.compression.is_dense else "cnf-seeded",
        "fraction-bits": _SHARED_FRACTION_BITS,
        "checks": "distances" if picks else "norm",
        "group-size": shared.group_size,
        "min-members": min_members(settings),
        "holder-timeout-s": _HOLDER_TIMEOUT_S,
    }


def _aggregation(settings: DemoSettings) -> Mapping[str, TomlValue]:
    values: dict[str, TomlValue] = {"rule": settings.aggregator}
    if settings.aggregator != "mean":
        values["num-malicious-nodes"] = num_malicious(settings)
    return values


def _keys(values: Mapping[str, TomlValue]) -> str:
    # JSON writes these as TOML does: basic strings, numbers, true and false.
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())
