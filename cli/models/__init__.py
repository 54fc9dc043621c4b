"""`fedagg models`: start models for a task, and trained ones out of a server."""
