"""Shares as they come in and lie on the disk."""
