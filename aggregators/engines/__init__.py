"""Where a task's rules compute: in this process, on torch, or on Ray workers."""
