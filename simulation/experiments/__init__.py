"""Training runs that print a table."""
