"""Measurements, one room for each thing measured; docs/Benchmarking.md says how to run them."""
