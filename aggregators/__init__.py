"""Turns a round's updates into one aggregate: robust rules and the aggregators built on them."""

from aggregators.base import Aggregate, GradientAggregator, Update
from aggregators.config import AggregatorConfig
from aggregators.errors import AggregationError

__all__ = [
    "Aggregate",
    "AggregationError",
    "AggregatorConfig",
    "GradientAggregator",
    "Update",
]
