"""Starting processes, keeping them running, and what every process of the service does."""
