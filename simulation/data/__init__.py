"""Datasets, and how a population shares them out."""
