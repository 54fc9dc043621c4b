"""The rules by name."""

from collections.abc import Callable
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from aggregators.config import AggregatorConfig
from aggregators.errors import AggregationError
from aggregators.rows import Rows
from aggregators.rule import Rule, RuleResult
from aggregators.rules.krum import krum
from aggregators.rules.mean import mean
from aggregators.rules.median import median
from aggregators.rules.multi_krum import multi_krum
from aggregators.rules.trimmed_mean import trimmed_mean

RuleFactory: TypeAlias = Callable[[AggregatorConfig], Rule]


def make_rule(config: AggregatorConfig) -> Rule:
    """Build the rule that `config.rule` names.

    Raises:
        AggregationError: if no rule has that name.
    """
    factory = RULES.get(config.rule)
    if factory is None:
        message = f"rule={config.rule!r} must be one of {', '.join(sorted(RULES))}"
        raise AggregationError(message)
    return factory(config)


def _mean(_config: AggregatorConfig) -> Rule:
    def rule(rows: Rows, weights: NDArray[np.float64]) -> RuleResult:
        return mean(rows, weights=weights)

    return rule


def _median(_config: AggregatorConfig) -> Rule:
    def rule(rows: Rows, weights: NDArray[np.float64]) -> RuleResult:  # noqa: ARG001
        return median(rows)

    return rule


def _trimmed_mean(config: AggregatorConfig) -> Rule:
    trim = config.num_malicious_nodes if config.trim is None else config.trim

    def rule(rows: Rows, weights: NDArray[np.float64]) -> RuleResult:  # noqa: ARG001
        return trimmed_mean(rows, trim=trim)

    return rule


def _krum(config: AggregatorConfig) -> Rule:
    def rule(rows: Rows, weights: NDArray[np.float64]) -> RuleResult:  # noqa: ARG001
        return krum(rows, num_byzantine=config.num_malicious_nodes)

    return rule


def _multi_krum(config: AggregatorConfig) -> Rule:
    def rule(rows: Rows, weights: NDArray[np.float64]) -> RuleResult:  # noqa: ARG001
        return multi_krum(
            rows,
            num_byzantine=config.num_malicious_nodes,
            num_to_select=config.num_to_select,
        )

    return rule


RULES: Final[dict[str, RuleFactory]] = {
    "krum": _krum,
    "mean": _mean,
    "median": _median,
    "multi-krum": _multi_krum,
    "trimmed-mean": _trimmed_mean,
}
