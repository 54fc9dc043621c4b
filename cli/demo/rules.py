"""What a demonstration asks of the rules; importing this loads them, and their compiler."""

from aggregators.capacity import least_updates, require_capacity
from aggregators.compressed import sparse_problem
from aggregators.config import AggregatorConfig
from aggregators.errors import AggregationError
from aggregators.pipeline import make_rule
from aggregators.registry import RULES, STEPS, traits_of
from cli.demo.settings import DemoSettings, min_contributions, num_malicious
from updates.compression_plan import Method


def rule_help() -> str:
    """List what `--aggregator` takes."""
    served = sorted(name for name, traits in RULES.items() if not traits.needs)
    return (
        f"A rule: {', '.join(served)}."
        f" Before it, joined by +, any of the steps {', '.join(sorted(STEPS))}."
    )


def rule_problem(name: str) -> str:
    """Tell why a demonstration has no such aggregator; empty: it has."""
    try:
        needs = traits_of(name).needs
        make_rule(AggregatorConfig(rule=name))
    except AggregationError as error:
        return f"cannot be used: {error}"
    return f"needs {', '.join(needs)}, which a demonstration does not have" if needs else ""


def needed_updates(settings: DemoSettings) -> int:
    """Count the fewest single updates that the rule can work with; 1 where it works on groups."""
    if settings.shared is not None and settings.shared.group_size:
        return 1
    return least_updates(_config(settings))


def capacity_problem(settings: DemoSettings) -> str:
    """Tell why the rule cannot work on a round's updates, by what it declares; empty: it can."""
    name, shared = settings.aggregator, settings.shared
    config = _config(settings)
    if settings.compression.method == Method.TOP_K.value:
        problem = sparse_problem(config, ratio=settings.compression.ratio)
        if problem:
            return f"does not go with --compression top-k: {problem}"
    attackers, updates = settings.scenario.num_attackers, settings.scenario.num_devices
    if shared is not None and shared.group_size:
        updates = min_contributions(settings) // shared.group_size
    try:
        require_capacity(config, updates)
    except AggregationError as error:
        among = f"{attackers} attackers among {settings.scenario.num_devices} devices"
        return f"{name} cannot take {among}: {error}"
    return ""


def _config(settings: DemoSettings) -> AggregatorConfig:
    return AggregatorConfig(rule=settings.aggregator, num_malicious_nodes=num_malicious(settings))
