"""The options of a demonstration as given, and which of them would do nothing or cannot work."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from aggregators.private_rules import private_rules
from aggregators.registry import RULES
from cli.contradictions import refuse
from cli.demo.settings import (
    PLAIN,
    SHARED,
    DemoSettings,
    SharedSettings,
    min_contributions,
)
from cli.demo.terms import CompressionTerms, ToldPrivacy
from cli.device.population import POPULATION, PopulationOptions, unless_one_of
from server.config.contradictions import Contradiction
from simulation.attackers.attacks import SHARED_ATTACKS
from updates.compression_plan import Method, ValueType

MODES: Final = (PLAIN, SHARED)
METHODS: Final = tuple(method.value for method in Method)
VALUE_TYPES: Final = tuple(kind.value for kind in ValueType)

_SHARED: Final = SharedSettings()
_COMPRESSION: Final = CompressionTerms()
_PRIVACY: Final = ToldPrivacy()
_MAX_EPSILON: Final = 1000.0
MIN_SHARED: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """The options of `fedagg demo`; see its help.

    Attributes:
        population: devices, data, attack, and which parameters the command line names.
        epsilon, delta, clipping_norm: of the privacy budget, where `dp` asks for one.
    """

    population: PopulationOptions = field(default_factory=PopulationOptions)
    rounds: int = 15
    aggregator: str = "mean"
    keep_dir: Path | None = None
    kill_at_round: int | None = None
    mode: str = PLAIN
    holders: int = _SHARED.holders
    threshold: int = _SHARED.threshold
    group_size: int = _SHARED.group_size
    compression: str = _COMPRESSION.method
    compression_ratio: float = _COMPRESSION.ratio
    value_type: str | None = _COMPRESSION.value_type
    dp: bool = False
    epsilon: float = _PRIVACY.epsilon
    delta: float = _PRIVACY.delta
    clipping_norm: float = _PRIVACY.clipping_norm

    @property
    def is_shared(self) -> bool:
        """Whether updates are shared among holders."""
        return self.mode == SHARED

    @property
    def is_dense(self) -> bool:
        """Whether every coordinate is sent."""
        return self.compression == Method.DENSE.value

    def gives(self, parameter: str) -> bool:
        """Tell whether the command line names a parameter."""
        return parameter in self.population.given

    def settings(self) -> DemoSettings:
        """Return what to run.

        Raises:
            OptionsError: with a line for every option that would do nothing or cannot work.
        """
        refuse(POPULATION, self.population)
        refuse(DEMO, self)
        settings = self._settings()
        refuse(RUNS, settings)
        return replace(settings, needed_updates=_needed_updates(settings))

    def _settings(self) -> DemoSettings:
        shared = privacy = None
        if self.is_shared:
            shared = SharedSettings(
                holders=self.holders, threshold=self.threshold, group_size=self.group_size
            )
        if self.dp:
            privacy = ToldPrivacy(
                epsilon=self.epsilon, delta=self.delta, clipping_norm=self.clipping_norm
            )
        return DemoSettings(
            scenario=self.population.scenario(self.rounds),
            aggregator=self.aggregator,
            kill_coordinator_at_round=self.kill_at_round,
            shared=shared,
            compression=CompressionTerms(
                method=self.compression, ratio=self.compression_ratio, value_type=self.value_type
            ),
            privacy=privacy,
        )


def _only_shared(option: str) -> Contradiction[DemoOptions]:
    return Contradiction(
        option,
        lambda o: o.gives(option.replace("-", "_")) and not o.is_shared,
        "does nothing without --mode shared",
    )


def _only_private(option: str) -> Contradiction[DemoOptions]:
    return Contradiction(
        option,
        lambda o: o.gives(option.replace("-", "_")) and not o.dp,
        "does nothing without --dp",
    )


def _needs_groups(rule: str) -> bool:
    traits = RULES.get(rule)
    return traits is None or not (traits.works_on_shares or traits.is_single)


def _rule_problem(options: DemoOptions) -> str:
    if options.aggregator == "mean":
        return ""
    # The rules bring their compiler, which nobody waits for who does not name one.
    from cli.demo.rules import rule_problem  # noqa: PLC0415

    return rule_problem(options.aggregator)


def _capacity_problem(settings: DemoSettings) -> str:
    if settings.aggregator == "mean":
        return ""
    from cli.demo.rules import capacity_problem  # noqa: PLC0415  # as above

    return capacity_problem(settings)


def _needed_updates(settings: DemoSettings) -> int:
    if settings.aggregator == "mean":
        return 1
    from cli.demo.rules import needed_updates  # noqa: PLC0415  # as above

    return needed_updates(settings)


def _unusable_folder(options: DemoOptions) -> str:
    folder = options.keep_dir
    if folder is None or not folder.exists():
        return ""
    if not folder.is_dir():
        return "is no folder"
    return "must be empty" if any(folder.iterdir()) else ""


DEMO: Final[tuple[Contradiction[DemoOptions], ...]] = (
    Contradiction("mode", lambda o: unless_one_of(o.mode, MODES), "{0.mode} must be one of {1}"),
    _only_shared("holders"),
    _only_shared("threshold"),
    _only_shared("group-size"),
    Contradiction(
        "threshold",
        lambda o: o.is_shared and o.threshold > o.holders,
        "{0.threshold} must not exceed --holders {0.holders}",
    ),
    Contradiction(
        "threshold",
        lambda o: o.is_shared and o.threshold <= o.holders < 2 * o.threshold - 1 and o.threshold,
        "{1} needs --holders of at least 2 x {1} - 1, from which norms and distances are opened",
    ),
    Contradiction(
        "attack",
        lambda o: o.population.attack in SHARED_ATTACKS and not o.is_shared,
        "{0.population.attack} is one on shares: it needs --mode shared",
    ),
    Contradiction(
        "attack",
        lambda o: o.population.attack == "inconsistent-shares" and not o.is_dense,
        "{0.population.attack} does nothing with --compression {0.compression}, whose shares are"
        " all the same to the holders",
    ),
    Contradiction(
        "kill-coordinator-at-round",
        lambda o: o.kill_at_round is not None and not 1 <= o.kill_at_round <= o.rounds,
        "{0.kill_at_round} must be in 1..{0.rounds}, the rounds there are",
    ),
    Contradiction("aggregator", _rule_problem, "{0.aggregator} {1}"),
    Contradiction(
        "aggregator",
        lambda o: o.is_shared and o.aggregator in RULES and RULES[o.aggregator].is_single,
        "{0.aggregator} would open a single update, which --mode shared never does",
    ),
    Contradiction(
        "aggregator",
        lambda o: o.is_shared and not o.group_size and _needs_groups(o.aggregator),
        "{0.aggregator} works on single updates or groups: --mode shared needs --group-size for it",
    ),
    Contradiction(
        "group-size",
        lambda o: o.is_shared and o.group_size == 1,
        "1 would open single updates",
    ),
    Contradiction(
        "compression",
        lambda o: unless_one_of(o.compression, METHODS),
        "{0.compression} must be one of {1}",
    ),
    Contradiction(
        "compression",
        lambda o: o.is_shared and o.compression == Method.TOP_K.value,
        "top-k does not work with --mode shared: sums of different coordinates mean nothing",
    ),
    Contradiction(
        "compression-ratio",
        lambda o: o.gives("compression_ratio") and o.is_dense,
        "does nothing without --compression of another kind than dense",
    ),
    Contradiction(
        "compression-ratio",
        lambda o: not 0 < o.compression_ratio <= 1,
        "{0.compression_ratio:g} must be above 0 and at most 1",
    ),
    Contradiction(
        "value-type",
        lambda o: o.value_type is not None and unless_one_of(o.value_type, VALUE_TYPES),
        "{0.value_type} must be one of {1}",
    ),
    Contradiction(
        "value-type",
        lambda o: o.is_shared and o.value_type not in {None, ValueType.FLOAT32.value},
        "{0.value_type} does nothing with --mode shared: shares are numbers of a field",
    ),
    _only_private("epsilon"),
    _only_private("delta"),
    _only_private("clipping-norm"),
    Contradiction(
        "epsilon",
        lambda o: not 0 < o.epsilon <= _MAX_EPSILON,
        f"{{0.epsilon:g}} must be above 0 and at most {_MAX_EPSILON:g}",
    ),
    Contradiction("delta", lambda o: not 0 < o.delta < 1, "{0.delta:g} must be between 0 and 1"),
    Contradiction(
        "clipping-norm",
        lambda o: not 0 < o.clipping_norm < math.inf,
        "{0.clipping_norm:g} must be finite and above 0",
    ),
    Contradiction(
        "group-size",
        lambda o: o.dp and o.is_shared and o.group_size > 0,
        "{0.group_size} does not go with --dp: it opens sums without the noise of the whole",
    ),
    Contradiction(
        "aggregator",
        lambda o: o.dp and not o.is_shared and o.aggregator not in private_rules(),
        "{0.aggregator} does not go with --dp: noise can be added to"
        f" {' and '.join(private_rules())}",
    ),
    Contradiction("keep-dir", _unusable_folder, "{0.keep_dir} {1}"),
)


RUNS: Final[tuple[Contradiction[DemoSettings], ...]] = (
    Contradiction(
        "devices",
        lambda s: s.shared is not None and min_contributions(s) < MIN_SHARED,
        "{0.scenario.num_devices} are too few for --mode shared, which opens sums of"
        f" {MIN_SHARED} updates and more",
    ),
    Contradiction(
        "group-size",
        lambda s: (
            s.shared is not None
            and s.shared.group_size > min_contributions(s)
            and min_contributions(s)
        ),
        "{0.shared.group_size} must not exceed {1}, the updates that a round is content with",
    ),
    Contradiction("aggregator", _capacity_problem, "{1}"),
)
