"""Simulated populations: data sets, data splits, models, attackers and fleets of devices."""
