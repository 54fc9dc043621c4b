"""Errors of the aggregators package."""


class AggregationError(ValueError):
    """An argument an aggregation cannot work with: names the argument, the rule and the value."""


class TooFewUpdatesError(AggregationError):
    """The rule cannot tolerate that many Byzantine updates among so few; more updates would do."""
