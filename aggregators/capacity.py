"""How many updates a configured rule takes at least, by what it and the steps before it declare."""

from aggregators.config import AggregatorConfig
from aggregators.errors import TooFewUpdatesError
from aggregators.preaggregations.clipping import ADAPTIVE_TOLERANCE
from aggregators.preaggregations.nearest_neighbour_mixing import TOLERANCE as MIXING_TOLERANCE
from aggregators.registry import rule_spec
from aggregators.rule import Tolerance

_STEP_TOLERANCES = {"arc": ADAPTIVE_TOLERANCE, "nnm": MIXING_TOLERANCE}


def least_updates(config: AggregatorConfig) -> int:
    """Return the fewest updates that the rule, and the steps before it, can work with.

    Raises:
        AggregationError: if no rule or step has such a name.

    Guarantees:
        With fewer the rule raises `TooFewUpdatesError`; it takes so many, and any more.
    """
    *steps, rule = config.rule.split("+")
    least = max(1, _needed(rule_spec(config).traits.tolerance, config))
    if rule == "trimmed-mean" and config.trim is not None:
        least = 2 * config.trim + 1
    if rule == "multi-krum" and config.num_to_select is not None:
        least = max(least, config.num_to_select + config.num_malicious_nodes)
    for step in reversed(steps):
        if step == "bucketing":
            # ceil(n / s) buckets reach the rule, and those that f spoil must be a minority.
            size = config.bucket_size
            spoilt = 2 * config.num_malicious_nodes * size + 1
            least = max((least - 1) * size + 1, spoilt, size)
        else:
            least = max(least, _needed(_STEP_TOLERANCES.get(step), config))
    return least


def require_capacity(config: AggregatorConfig, num_updates: int) -> None:
    """Refuse a rule that cannot work with so many updates.

    Raises:
        AggregationError: if no rule or step has such a name.
        TooFewUpdatesError: if there are too few; it says how many would do.
    """
    least = least_updates(config)
    if num_updates < least:
        message = f"rule={config.rule!r} with num_byzantine={config.num_malicious_nodes} needs"
        message += f" n >= {least} updates, got n={num_updates}"
        raise TooFewUpdatesError(message)


def _needed(tolerance: Tolerance | None, config: AggregatorConfig) -> int:
    if tolerance is None:
        return 1
    return tolerance.per_byzantine * config.num_malicious_nodes + tolerance.base
