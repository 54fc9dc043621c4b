"""Simulated devices: their processes, identities and scenarios."""
