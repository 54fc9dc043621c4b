"""Errors of the compression package."""


class CompressionError(ValueError):
    """A setting or vector that cannot be compressed: names the argument, the rule and the value."""
