"""Errors of the privacy package."""


class PrivacyError(ValueError):
    """An argument that would void a privacy bound: names the argument, the rule and the value."""
