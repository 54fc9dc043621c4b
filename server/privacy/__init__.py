"""A task's accountant, its budget and its noise."""
