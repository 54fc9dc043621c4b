"""Shamir and replicated secret sharing of vectors over Mersenne fields: pure functions."""
