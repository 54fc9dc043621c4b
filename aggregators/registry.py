"""The rules by name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeVar

from aggregators.config import AggregatorConfig
from aggregators.errors import AggregationError
from aggregators.pipeline import STEPS, pipeline
from aggregators.rows import Rows
from aggregators.rule import Context, Rule, RuleResult, Traits
from aggregators.rules import (
    aegis,
    agmami,
    auto_geometric_median,
    bulyan,
    caf,
    centered_clipping,
    dnc,
    fedmi,
    flame,
    fltrust,
    geometric_median,
    hybrid,
    krum,
    mean,
    mean_around_median,
    median,
    minimum_diameter,
    monna,
    multi_krum,
    norm_threshold,
    sign_guard,
    trimmed_mean,
)

Known = TypeVar("Known")
Apply: TypeAlias = Callable[[Rows, Context, AggregatorConfig], RuleResult]


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSpec:
    """A rule and what it declares.

    Attributes:
        apply: runs the rule with the settings it has a use for.
        traits: its constraint on (n, f), its breakdown point, its equivariances, its needs.
    """

    apply: Apply
    traits: Traits


def make_rule(config: AggregatorConfig) -> Rule:
    """Build the rule, or the pipeline ending in a rule, that `config.rule` names.

    Raises:
        AggregationError: if no rule or step has such a name.
    """
    spec = rule_spec(config)
    steps = [STEPS[name] for name in config.rule.split("+")[:-1]]

    def rule(rows: Rows, context: Context) -> RuleResult:
        return spec.apply(rows, context, config)

    return pipeline(steps, rule, config) if steps else rule


def rule_spec(config: AggregatorConfig) -> RuleSpec:
    """Find what the rule that `config.rule` ends in declares.

    Raises:
        AggregationError: if no rule or step has such a name.
    """
    *names, last = config.rule.split("+")
    for name in names:
        if name not in STEPS:
            message = f"rule={config.rule!r}: step {name!r} must be one of {_listed(STEPS)}"
            raise AggregationError(message)
    if last not in RULES:
        message = f"rule={last!r} must be one of {_listed(RULES)}"
        if names:
            message = f"rule={config.rule!r}: {message}"
        raise AggregationError(message)
    return RULES[last]


def _listed(names: dict[str, Any]) -> str:
    return ", ".join(sorted(names))


def _trimmed_mean(rows: Rows, _: Context, config: AggregatorConfig) -> RuleResult:
    trim = config.num_malicious_nodes if config.trim is None else config.trim
    return trimmed_mean.trimmed_mean(rows, trim=trim)


def _multi_krum(rows: Rows, _: Context, config: AggregatorConfig) -> RuleResult:
    return multi_krum.multi_krum(
        rows, num_byzantine=config.num_malicious_nodes, num_to_select=config.num_to_select
    )


def _geometric_median(rows: Rows, context: Context, config: AggregatorConfig) -> RuleResult:
    steps = {} if config.max_steps is None else {"max_steps": config.max_steps}
    return geometric_median.geometric_median(rows, weights=context.weights, **steps)


def _centered_clipping(rows: Rows, context: Context, config: AggregatorConfig) -> RuleResult:
    return centered_clipping.centered_clipping(
        rows,
        center=context.center,
        radius=config.clipping_radius,
        max_steps=1 if config.max_steps is None else config.max_steps,
    )


def _monna(rows: Rows, context: Context, config: AggregatorConfig) -> RuleResult:
    return monna.monna(
        rows,
        num_byzantine=config.num_malicious_nodes,
        pivot=_needed(context.root_update, "root_update"),
    )


def _fltrust(rows: Rows, context: Context, _: AggregatorConfig) -> RuleResult:
    return fltrust.fltrust(rows, root_update=_needed(context.root_update, "root_update"))


def _fedmi(rows: Rows, context: Context, _: AggregatorConfig) -> RuleResult:
    return fedmi.fedmi(rows, probe_outputs=_needed(context.probe_outputs, "probe_outputs"))


def _agmami(rows: Rows, context: Context, _: AggregatorConfig) -> RuleResult:
    return agmami.agmami(rows, probe_outputs=_needed(context.probe_outputs, "probe_outputs"))


def _aegis(rows: Rows, context: Context, _: AggregatorConfig) -> RuleResult:
    state = context.state
    if state is not None and not isinstance(state, aegis.AegisState):
        message = f"state of type {type(state).__name__} must be what aegis returned"
        raise AggregationError(message)
    return aegis.aegis(rows, state=state, num_samples=context.weights, keys=context.keys)


def _hybrid(rows: Rows, context: Context, config: AggregatorConfig) -> RuleResult:
    return hybrid.hybrid(
        rows,
        num_byzantine=config.num_malicious_nodes,
        weights=context.weights,
        trust=context.trust,
    )


def _needed(value: Known | None, name: str) -> Known:
    if value is None:
        message = f"the rule needs {name}, which is missing"
        raise AggregationError(message)
    return value


def _by_f(function: Callable[..., RuleResult]) -> Apply:
    """Adapt a rule whose only setting is f."""

    def apply(rows: Rows, _: Context, config: AggregatorConfig) -> RuleResult:
        return function(rows, num_byzantine=config.num_malicious_nodes)

    return apply


def _plain(function: Callable[[Rows], RuleResult]) -> Apply:
    """Adapt a rule without settings."""
    return lambda rows, context, config: function(rows)


RULES: Final[dict[str, RuleSpec]] = {
    "aegis": RuleSpec(apply=_aegis, traits=aegis.TRAITS),
    "agmami": RuleSpec(apply=_agmami, traits=agmami.TRAITS),
    "auto-geometric-median": RuleSpec(
        apply=_plain(auto_geometric_median.auto_geometric_median),
        traits=auto_geometric_median.TRAITS,
    ),
    "bulyan": RuleSpec(apply=_by_f(bulyan.bulyan), traits=bulyan.TRAITS),
    "caf": RuleSpec(apply=_by_f(caf.caf), traits=caf.TRAITS),
    "centered-clipping": RuleSpec(apply=_centered_clipping, traits=centered_clipping.TRAITS),
    "dnc": RuleSpec(
        apply=lambda rows, context, config: dnc.dnc(
            rows, num_byzantine=config.num_malicious_nodes, seed=context.seed
        ),
        traits=dnc.TRAITS,
    ),
    "fedmi": RuleSpec(apply=_fedmi, traits=fedmi.TRAITS),
    "flame": RuleSpec(apply=_plain(flame.flame), traits=flame.TRAITS),
    "fltrust": RuleSpec(apply=_fltrust, traits=fltrust.TRAITS),
    "geometric-median": RuleSpec(apply=_geometric_median, traits=geometric_median.TRAITS),
    "hybrid": RuleSpec(apply=_hybrid, traits=hybrid.TRAITS),
    "krum": RuleSpec(apply=_by_f(krum.krum), traits=krum.TRAITS),
    "mean": RuleSpec(
        apply=lambda rows, context, config: mean.mean(rows, weights=context.weights),
        traits=mean.TRAITS,
    ),
    "mean-around-median": RuleSpec(
        apply=_by_f(mean_around_median.mean_around_median), traits=mean_around_median.TRAITS
    ),
    "median": RuleSpec(apply=_plain(median.median), traits=median.TRAITS),
    "minimum-diameter": RuleSpec(
        apply=_by_f(minimum_diameter.minimum_diameter), traits=minimum_diameter.TRAITS
    ),
    "monna": RuleSpec(apply=_monna, traits=monna.TRAITS),
    "multi-krum": RuleSpec(apply=_multi_krum, traits=multi_krum.TRAITS),
    "norm-threshold": RuleSpec(
        apply=lambda rows, context, config: norm_threshold.norm_threshold(
            rows, factor=config.norm_factor
        ),
        traits=norm_threshold.TRAITS,
    ),
    "sign-guard": RuleSpec(
        apply=lambda rows, context, config: sign_guard.sign_guard(rows, seed=context.seed),
        traits=sign_guard.TRAITS,
    ),
    "trimmed-mean": RuleSpec(apply=_trimmed_mean, traits=trimmed_mean.TRAITS),
}
