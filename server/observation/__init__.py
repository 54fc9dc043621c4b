"""What is told of rounds: metrics, logs, traces, the audit trail."""
