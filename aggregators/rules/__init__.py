"""Aggregation rules, one per module: pure functions from (n, d) rows to one vector."""
