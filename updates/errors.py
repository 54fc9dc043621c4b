"""Errors of the updates package."""


class CompressionError(ValueError):
    """A setting or vector that cannot be compressed: names the argument, the rule and the value."""


class ModelError(ValueError):
    """Tensors, a vector or a file that are no model of the expected layout."""
