"""What a demonstration asks of the rules; importing this loads them, and their compiler."""

from typing import Final

from aggregators.capacity import require_capacity
from aggregators.compressed import RANKING_RULES
from aggregators.config import AggregatorConfig
from aggregators.errors import AggregationError
from aggregators.pipeline import STEPS
from aggregators.registry import RULES, make_rule, rule_spec
from aggregators.sparse_rows import MIN_RANKABLE_DENSITY
from cli.demo.settings import DemoSettings, min_contributions, num_malicious
from server.config.sharing_config import SELECTING_RULES
from updates.plan import Method

_MIXING: Final = frozenset({"bucketing", "nnm"})
_SCALING: Final = frozenset({"arc", "clip", "hybrid"})


def rule_help() -> str:
    """List what `--aggregator` takes."""
    served = sorted(name for name, spec in RULES.items() if not spec.traits.needs)
    only_shared = sorted(SELECTING_RULES - RULES.keys())
    return (
        f"A rule: {', '.join(served)}; with --mode shared also {', '.join(only_shared)}."
        f" Before it, joined by +, any of the steps {', '.join(sorted(STEPS))}."
    )


def rule_problem(name: str, *, is_shared: bool) -> str:
    """Tell why a demonstration has no such aggregator; empty: it has."""
    if is_shared and name in SELECTING_RULES:
        return ""
    config = AggregatorConfig(rule=name)
    try:
        needs = rule_spec(config).traits.needs
        make_rule(config)
    except AggregationError as error:
        return f"cannot be used: {error}"
    return f"needs {', '.join(needs)}, which a demonstration does not have" if needs else ""


def capacity_problem(settings: DemoSettings) -> str:
    """Tell why the rule cannot work on a round's updates, by what it declares; empty: it can."""
    name, shared = settings.aggregator, settings.shared
    if settings.compression.method == Method.TOP_K.value:
        problem = _sparse_problem(name, settings.compression.ratio)
        if problem:
            return problem
    attackers, updates = settings.scenario.num_attackers, settings.scenario.num_devices
    if shared is not None and shared.group_size:
        updates = min_contributions(settings) // shared.group_size
    if name not in RULES and name in SELECTING_RULES:
        return ""
    config = AggregatorConfig(rule=name, num_malicious_nodes=num_malicious(settings))
    try:
        require_capacity(config, updates)
    except AggregationError as error:
        among = f"{attackers} attackers among {settings.scenario.num_devices} devices"
        return f"{name} cannot take {among}: {error}"
    return ""


def _sparse_problem(name: str, ratio: float) -> str:
    """Tell why a rule cannot work on updates of different coordinates."""
    *steps, rule = name.split("+")
    if rule in RANKING_RULES and ratio < MIN_RANKABLE_DENSITY:
        return (
            f"{name} ranks the values of a coordinate: --compression top-k needs"
            f" --compression-ratio of at least {MIN_RANKABLE_DENSITY}"
        )
    mixing = next((place for place, step in enumerate(steps) if step in _MIXING), len(steps))
    scaling = [step for step in [*steps[mixing:], rule] if step in _SCALING]
    if mixing < len(steps) and scaling:
        return f"{name} would scale averages, which --compression top-k does not allow"
    return ""
