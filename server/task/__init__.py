"""A learning task: what its settings and files come to."""
