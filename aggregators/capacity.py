"""How many updates a configured rule takes at least, by what it and the steps before it declare."""

from aggregators.config import AggregatorConfig
from aggregators.errors import TooFewUpdatesError
from aggregators.registry import RULES, STEPS, parted


def least_updates(config: AggregatorConfig) -> int:
    """Return the fewest updates that the rule, and the steps before it, can work with.

    Raises:
        AggregationError: if no rule or step has such a name.

    Guarantees:
        With fewer the rule raises `TooFewUpdatesError`; it takes so many, and any more.
    """
    steps, rule = parted(config.rule)
    num_byzantine, traits = config.num_malicious_nodes, RULES[rule]
    least = 1
    if traits.least is not None:
        least = traits.least(config)
    elif traits.tolerance is not None:
        least = traits.tolerance.least(num_byzantine)
    for step in reversed(steps):
        declared = STEPS[step]
        if declared.merges_rows:
            # ceil(n / s) buckets reach the rule, and those that f spoil must be a minority.
            size = config.bucket_size
            least = max((least - 1) * size + 1, 2 * num_byzantine * size + 1, size)
        if declared.tolerance is not None:
            least = max(least, declared.tolerance.least(num_byzantine))
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
