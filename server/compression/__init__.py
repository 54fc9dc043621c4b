"""How a task's updates are compressed, and what a round announces of it."""
