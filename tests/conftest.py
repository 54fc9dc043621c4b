"""Hypothesis profiles: the default repeats the same examples; `chaos` looks for new ones."""

from hypothesis import settings

# No deadline: what a slow machine needs for one example says nothing about the code.
settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.register_profile("chaos", deadline=None, max_examples=5_000, print_blob=True)
settings.load_profile("repeatable")
